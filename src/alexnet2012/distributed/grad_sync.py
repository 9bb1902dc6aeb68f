"""Data parallelism: gradients are summed over replicas by all-reduces that overlap with backward.

Each tower sums with the same tower of the other replicas; gradients are never summed over towers.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.distributed.mesh import Mesh


class GradientSync:
    """Starts the all-reduce of each gradient as soon as autograd has accumulated it, fc8's first.

    The graph is the same on every rank, and so is the order of the all-reduces.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self._mesh = mesh
        self._pending: list[dist.Work] = []
        if mesh.replicas > 1:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._start)

    def _start(self, parameter: Tensor) -> None:
        group = self._mesh.data_group
        self._pending.append(dist.all_reduce(parameter.grad, group=group, async_op=True))

    def wait(self) -> None:
        """Wait until every ``grad`` is the sum over replicas. Collective, after each backward."""
        if not self._pending:
            return
        with self._mesh.watchdog.exchange("gradients", "all-reduce"):
            for work in self._pending:
                work.wait()
        self._pending.clear()

    def reduce_loss(self, loss: Tensor) -> Tensor:
        """The loss summed over replicas, as a new tensor. Collective."""
        total = loss.clone()  # the towers of one replica hold the same loss: no sum over towers
        self._mesh.sum_over_replicas([total], "loss")
        return total
