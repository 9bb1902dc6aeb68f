"""Data parallelism: each tower's gradients are summed over its replicas during backward.

No gradient is summed over towers.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.distributed.mesh import Mesh


class GradientSync:
    """All-reduces each gradient as soon as autograd has accumulated it, fc8's first.

    Every rank has the same graph and therefore the same order.
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
        """Until every ``grad`` is the sum over replicas. Collective, after each backward."""
        if not self._pending:
            return
        with self._mesh.watchdog.exchange("gradients", "sum"):
            for work in self._pending:
                work.wait()
        self._pending.clear()

    def reduce_loss(self, loss: Tensor) -> Tensor:
        """Its sum over the replicas; the towers of one replica have the same. Collective."""
        total = loss.clone()
        self._mesh.sum_over_replicas([total], "loss")
        return total
