"""The exchanges between towers: each forward with its conjugate, and a count of what crossed.

Two gathers with the same forward and different backwards. Before a *sharded* layer every tower
uses the whole activation for its own kernels, so its gradients are partial and must be summed.
Before *replicated* computation (the loss) every tower computes the same thing, and a sum would
count it T times.

Legend: N images, c = C/T channels or units of a tower, C of the net, T towers.
"""

from __future__ import annotations

import time
from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet2012.mesh import Mesh
from alexnet2012.sharding import Share, largest_share, share
from alexnet2012.watchdog import Watchdog


@dataclass
class Traffic:
    """What this process sent and how long it took, by (layer, direction).

    Directions are ``forward`` and ``backward`` in training and ``inference`` without gradients.
    On CUDA the seconds are only those to enqueue an exchange.
    """

    sent_bytes: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def training_seconds(self) -> float:
        return sum(s for (_, direction), s in self.seconds.items() if direction != "inference")


@dataclass(frozen=True)
class TowerLink:
    """The way from one tower to its peers: a group of T processes, or None within one process."""

    group: dist.ProcessGroup | None = None
    towers: int = 1
    tower: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    watchdog: Watchdog = field(default_factory=Watchdog)

    def all_gather(self, x: Tensor, layer: str, direction: str) -> Tensor:
        """[...] → [T, ...], tower 0 first."""
        gathered = x.new_empty((self.towers, *x.shape))
        own_bytes = x.numel() * x.element_size()
        began = time.perf_counter()
        with self.watchdog.exchange(layer, direction, own_bytes):
            dist.all_gather_single(gathered.flatten(0, 1), x.contiguous(), group=self.group)
        self._count(own_bytes, layer, direction, began)
        return gathered

    def reduce_scatter(self, parts: Tensor, layer: str, direction: str) -> Tensor:
        """[T, ...] → [...]: the sum over towers of the part that is this tower's."""
        own = parts.new_empty(parts.shape[1:])
        own_bytes = own.numel() * own.element_size()
        began = time.perf_counter()
        with self.watchdog.exchange(layer, direction, own_bytes):
            dist.reduce_scatter_single(own, parts.flatten(0, 1).contiguous(), group=self.group)
        self._count(own_bytes, layer, direction, began)
        return own

    def _count(self, own_bytes: int, layer: str, direction: str, began: float) -> None:
        self.traffic.seconds[layer, direction] += time.perf_counter() - began
        self.traffic.sent_bytes[layer, direction] += own_bytes * (self.towers - 1)


def link_of(mesh: Mesh) -> TowerLink:
    """A rank's way to the other towers of its replica."""
    return TowerLink(mesh.tower_group, mesh.towers, mesh.tower, watchdog=mesh.watchdog)


class _AllGatherToSharded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_shard: Tensor, link: TowerLink, layer: str, direction: str) -> Tensor:
        ctx.link, ctx.layer = link, layer
        gathered = link.all_gather(x_shard, layer, direction)  # [T, N, c, ...]
        return gathered.transpose(0, 1).flatten(1, 2)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        (grad_full,) = grads
        parts = grad_full.unflatten(1, (ctx.link.towers, -1)).transpose(0, 1)  # [T, N, c, ...]
        return ctx.link.reduce_scatter(parts, ctx.layer, "backward"), None, None, None


class _AllGatherToReplicated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_shard: Tensor, link: TowerLink, layer: str, total: int, direction: str
    ) -> Tensor:
        ctx.own = share(total, link.towers, link.tower)
        return gather_rows(x_shard.T, ctx.own, link, layer, direction).T.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_full,) = grads
        return grad_full[:, ctx.own.start : ctx.own.stop], None, None, None, None


def gather_rows(x_shard: Tensor, own: Share, link: TowerLink, layer: str, direction: str) -> Tensor:
    """[own.size, ...] → [own.total, ...], no gradient. Uneven shares travel padded."""
    if link.towers == 1:
        return x_shard.clone(memory_format=torch.contiguous_format)
    padded = x_shard.new_zeros((largest_share(own.total, link.towers), *x_shard.shape[1:]))
    padded[: own.size] = x_shard
    gathered = link.all_gather(padded, layer, direction)
    return gathered.flatten(0, 1)[: own.total]  # only the last shares can be short


def all_gather_to_sharded(x_shard: Tensor, link: TowerLink, layer: str) -> Tensor:
    """What a sharded layer reads.

    Forward: [N, c, ...] → [N, C, ...], tower 0's channels first.
    Backward: [N, C, ...] → [N, c, ...], the sum over towers of the own channels' gradient.
    """
    if link.towers == 1:
        return x_shard
    result: Tensor = _AllGatherToSharded.apply(  # type: ignore[no-untyped-call]
        x_shard, link, layer, _direction()
    )
    return result


def all_gather_to_replicated(x_shard: Tensor, link: TowerLink, layer: str, total: int) -> Tensor:
    """What every tower then treats alike: the logits before the loss.

    Forward: [N, c] → [N, total], tower 0's units first; shares may be uneven.
    Backward: [N, total] → [N, c], the own slice, no sum and no traffic.
    """
    if link.towers == 1:
        return x_shard
    result: Tensor = _AllGatherToReplicated.apply(  # type: ignore[no-untyped-call]
        x_shard, link, layer, total, _direction()
    )
    return result


def _direction() -> str:
    return "forward" if torch.is_grad_enabled() else "inference"
