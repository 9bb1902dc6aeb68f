"""Data parallelism: gradients are summed over replicas by all-reduces that overlap with backward.

Each tower sums with the same tower of the other replicas; gradients are never summed over towers.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.distributed.mesh import Mesh


class GradientSync:
    """Starts the all-reduce of each gradient as soon as autograd has accumulated it, fc8's first.

    The graph is the same on every rank, and so is the order of the all-reduces. Unless ``enabled``,
    gradients accumulate on this replica only.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self.enabled = True
        self._mesh = mesh
        self._pending: list[dist.Work] = []
        if mesh.replicas > 1:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._start)

    def _start(self, parameter: Tensor) -> None:
        if not self.enabled:
            return
        work = dist.all_reduce(parameter.grad, group=self._mesh.data_group, async_op=True)
        self._pending.append(work)

    def wait(self) -> None:
        """Wait until every ``grad`` is the sum over replicas. Collective, once per step."""
        if not self._pending:
            return
        with self._mesh.watchdog.exchange("gradients", "all-reduce"):
            for work in self._pending:
                work.wait()
        self._pending.clear()
