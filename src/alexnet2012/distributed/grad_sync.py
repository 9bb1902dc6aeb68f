"""Gradients of one tower, summed over the replicas while backward still runs.

Nothing is summed between towers.
"""

from __future__ import annotations

import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.distributed.mesh import Mesh


class GradientSum:
    """Sends each gradient as soon as autograd hands it out, in backward's order: fc8's first.

    Every rank has the same graph, and so the same order.
    """

    def __init__(self, model: nn.Module, mesh: Mesh) -> None:
        self._mesh = mesh
        self._under_way: list[dist.Work] = []
        if mesh.replicas > 1:
            for parameter in model.parameters():
                parameter.register_post_accumulate_grad_hook(self._send)

    def _send(self, parameter: Tensor) -> None:
        group = self._mesh.data_group
        self._under_way.append(dist.all_reduce(parameter.grad, group=group, async_op=True))

    def wait(self) -> None:
        """Until every ``grad`` is the sum over replicas. Collective, after each backward."""
        if not self._under_way:
            return
        with self._mesh.watchdog.exchange("gradients", "sum"):
            for work in self._under_way:
                work.wait()
        self._under_way.clear()
