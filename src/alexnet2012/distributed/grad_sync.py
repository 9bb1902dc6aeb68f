"""Data parallelism: gradients are summed over replicas by all-reduces that overlap with backward.

Each tower sums with the same tower of the other replicas; gradients are never summed over towers.
"""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.distributed.mesh import Mesh


class GradientSync:
    """Starts the all-reduce of each gradient as soon as autograd has accumulated it, fc8's first.

    The graph is the same on every rank, and so is the order of the all-reduces. Gradients of biases
    are small: they are summed in one message. Unless ``enabled``, gradients accumulate on this
    replica only.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self.enabled = True
        self._mesh = mesh
        self._pending: list[dist.Work] = []
        self._biases: list[Tensor] = []  # their gradients
        if mesh.replicas > 1:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._start)

    def _start(self, parameter: Tensor) -> None:
        if not self.enabled:
            return
        assert parameter.grad is not None
        if parameter.dim() == 1:
            self._biases.append(parameter.grad)
        else:
            work = dist.all_reduce(parameter.grad, group=self._mesh.data_group, async_op=True)
            self._pending.append(work)

    def discard(self) -> None:
        """Forget what a failed backward pass has left."""
        self._pending.clear()
        self._biases.clear()

    def wait(self) -> None:
        """Wait until every ``grad`` is the sum over replicas. Collective, once per step."""
        if not self._pending and not self._biases:
            return
        with self._mesh.watchdog.exchange("gradients", "all-reduce"):
            if self._biases:
                sums = torch.cat(self._biases)
                dist.all_reduce(sums, group=self._mesh.data_group)
                for grad, total in zip(
                    self._biases, sums.split([*map(len, self._biases)]), strict=True
                ):
                    grad.copy_(total)
            for work in self._pending:
                work.wait()
        self.discard()
