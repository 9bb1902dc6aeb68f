"""Exchanges of activations between towers, each with its gradient, and a count of their bytes.

There are two gathers with the same forward and different backwards. Before a *sharded* layer every
tower multiplies the whole activation by its own kernels, so gradients are partial and are summed
over the towers. Before *replicated* computation (the loss) every tower computes the same gradient,
and a sum would count it T times.

Shapes: N images, c = C/T channels or units of one tower, C of the whole network, T towers. Feature
maps travel in channels-last layout, as they lie in memory.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from alexnet2012.distributed.mesh import Mesh
from alexnet2012.distributed.watchdog.watchdog import Watchdog
from alexnet2012.utils.shard import Shard, padded_shard_size, shard_of


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
class Communicator:
    """Connects one tower to its peers: a group of T processes, or None within a single process."""

    group: dist.ProcessGroup | None = None
    towers: int = 1
    tower: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    watchdog: Watchdog = field(default_factory=Watchdog)

    def all_gather(self, x: Tensor, layer: str, direction: str) -> list[Tensor]:
        """[...] → every tower's [...], tower 0's first; the own one is ``x`` itself."""
        to_peers = x.contiguous().expand(self.towers - 1, *x.shape).contiguous()
        received = self._all_to_all(to_peers, layer, direction)
        return [*received[: self.tower], x, *received[self.tower :]]

    def reduce_scatter(self, shards: Sequence[Tensor], layer: str, direction: str) -> Tensor:
        """One [...] for every tower → [...]: the sum over towers of what is for this one."""
        for_peers = [shard for tower, shard in enumerate(shards) if tower != self.tower]
        one = len(for_peers) == 1
        to_peers = for_peers[0].contiguous()[None] if one else torch.stack(for_peers)
        received = self._all_to_all(to_peers, layer, direction)
        total: Tensor = sum(received, shards[self.tower])
        return total

    def _all_to_all(self, to_peers: Tensor, layer: str, direction: str) -> Tensor:
        """[T - 1, ...] → [T - 1, ...]: each peer's part, and theirs for this tower.

        Nothing is sent to the own rank: for large maps that is faster than gloo's all_gather and
        reduce_scatter.
        """
        received = torch.empty_like(to_peers)
        splits = [int(tower != self.tower) for tower in range(self.towers)]
        started = time.perf_counter()
        with self.watchdog.exchange(layer, direction, to_peers[0].nbytes):
            dist.all_to_all_single(received, to_peers, splits, splits, group=self.group)
        self.traffic.seconds[layer, direction] += time.perf_counter() - started
        self.traffic.sent_bytes[layer, direction] += to_peers.nbytes
        return received


def communicator_of(mesh: Mesh) -> Communicator:
    """Between the towers of this rank's replica."""
    return Communicator(mesh.tower_group, mesh.towers, mesh.tower, watchdog=mesh.watchdog)


class _AllGatherToSharded(torch.autograd.Function):
    """x = all_gather(x_shard).  Backward: g_shard = reduce_scatter(g)."""

    @staticmethod
    def forward(
        ctx: Any, x_shard: Tensor, comm: Communicator, layer: str, direction: str
    ) -> Tensor:
        ctx.comm, ctx.layer = comm, layer
        shards = comm.all_gather(x_shard.movedim(1, -1), layer, direction)
        return torch.cat(shards, -1).movedim(-1, 1)  # T times [N, ..., c] → [N, C, ...]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None, None]:
        shards = grad.movedim(1, -1).chunk(ctx.comm.towers, -1)
        grad_shard = ctx.comm.reduce_scatter(shards, ctx.layer, "backward")
        return grad_shard.movedim(-1, 1), None, None, None


class _AllGatherToReplicated(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_shard: Tensor, comm: Communicator, layer: str, total: int, direction: str
    ) -> Tensor:
        ctx.own = shard_of(total, comm.towers, comm.tower)
        return gather_rows(x_shard.T, ctx.own, comm, layer, direction).T.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad_full,) = grads
        return grad_full[:, ctx.own.start : ctx.own.stop], None, None, None, None


def gather_rows(
    x_shard: Tensor, own: Shard, comm: Communicator, layer: str, direction: str
) -> Tensor:
    """[own.size, ...] → [own.total, ...], no gradient. Uneven shares travel padded."""
    if comm.towers == 1:
        return x_shard.clone(memory_format=torch.contiguous_format)
    padded = x_shard.new_zeros((padded_shard_size(own.total, comm.towers), *x_shard.shape[1:]))
    padded[: own.size] = x_shard
    gathered = torch.cat(comm.all_gather(padded, layer, direction))
    return gathered[: own.total]  # only the last shares can be short


def all_gather_to_sharded(x_shard: Tensor, comm: Communicator, layer: str) -> Tensor:
    """Gather the activations that a sharded layer reads.

    Forward: [N, c, ...] → [N, C, ...], tower 0's channels first.
    Backward: [N, C, ...] → [N, c, ...], the sum over towers of the own channels' gradient.
    """
    if comm.towers == 1:
        return x_shard
    x: Tensor = _AllGatherToSharded.apply(x_shard, comm, layer, direction())  # type: ignore[no-untyped-call]
    return x


def all_gather_to_replicated(x_shard: Tensor, comm: Communicator, layer: str, total: int) -> Tensor:
    """What every tower then treats alike: the logits before the loss.

    Forward: [N, c] → [N, total], tower 0's units first; shares may be uneven.
    Backward: [N, total] → [N, c], the own slice, no sum and no traffic.
    """
    if comm.towers == 1:
        return x_shard
    result: Tensor = _AllGatherToReplicated.apply(  # type: ignore[no-untyped-call]
        x_shard, comm, layer, total, direction()
    )
    return result


def direction() -> str:
    """Of an exchange on the way forward, as it is counted."""
    return "forward" if torch.is_grad_enabled() else "inference"
