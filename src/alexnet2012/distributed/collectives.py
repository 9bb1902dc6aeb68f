"""Collectives between towers, with their gradients, and a count of the bytes they send.

There are two all-gathers with the same forward and different backwards. Before a *sharded* layer
every tower multiplies the full activation by its own kernels, so gradients are partial and are
summed over the towers (reduce-scatter). Before *replicated* computation (the loss) every tower
computes the same gradient, and a sum would count it T times.

Shapes: N images, c = C/T channels or units of one tower, C of the whole network, T towers. Feature
maps are sent in channels-last layout, which is their memory format.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
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
    """Bytes this process sent and the seconds that took, by (layer, direction).

    Directions are ``forward`` and ``backward`` in training and ``inference`` without gradients.
    On CUDA the seconds cover only enqueueing the collective; a replayed graph adds none.
    """

    sent_bytes: dict[tuple[str, str], int] = field(default_factory=lambda: defaultdict(int))
    seconds: dict[tuple[str, str], float] = field(default_factory=lambda: defaultdict(float))

    def training_seconds(self) -> float:
        return sum(s for (_, direction), s in self.seconds.items() if direction != "inference")

    @contextmanager
    def apart(self) -> Iterator[Traffic]:
        """Count what the ``with`` block sends in the returned Traffic instead of this one."""
        before, apart = (self.sent_bytes, self.seconds), Traffic()
        self.sent_bytes, self.seconds = apart.sent_bytes, apart.seconds
        try:
            yield apart
        finally:
            self.sent_bytes, self.seconds = before

    def add_bytes(self, other: Traffic) -> None:
        for key, sent in other.sent_bytes.items():
            self.sent_bytes[key] += sent


@dataclass(frozen=True)
class Communicator:
    """Connects one tower to its peers: a group of T processes, or None in a single process."""

    group: dist.ProcessGroup | None = None
    towers: int = 1
    tower: int = 0
    traffic: Traffic = field(default_factory=Traffic)
    watchdog: Watchdog = field(default_factory=Watchdog)

    def all_gather(self, x: Tensor, layer: str, direction: str) -> list[Tensor]:
        """[...] → every tower's [...], tower 0's first; this tower's entry is ``x`` itself."""
        to_peers = x.contiguous().expand(self.towers - 1, *x.shape).contiguous()
        received = self._all_to_all(to_peers, layer, direction)
        return [*received[: self.tower], x, *received[self.tower :]]

    def reduce_scatter(self, shards: Sequence[Tensor], layer: str, direction: str) -> Tensor:
        """List of one [...] for each tower → [...]: the sum over towers of this tower's shard."""
        for_peers = [shard for tower, shard in enumerate(shards) if tower != self.tower]
        received = self._all_to_all(torch.stack(for_peers), layer, direction)
        total: Tensor = sum(received, shards[self.tower])
        return total

    def _all_to_all(self, to_peers: Tensor, layer: str, direction: str) -> Tensor:
        """[T - 1, ...] → [T - 1, ...]: send one tensor to each peer, receive one from each.

        Sends nothing to its own rank: for large maps faster than gloo's all_gather, reduce_scatter.
        """
        received = torch.empty_like(to_peers)
        splits = [int(tower != self.tower) for tower in range(self.towers)]
        started = time.perf_counter()
        with self.watchdog.exchange(layer, direction, to_peers[0].nbytes):
            dist.all_to_all_single(received, to_peers, splits, splits, group=self.group)
        self.traffic.seconds[layer, direction] += time.perf_counter() - started
        self.traffic.sent_bytes[layer, direction] += to_peers.nbytes
        return received


def communicator_of(mesh: Mesh, group: dist.ProcessGroup | None = None) -> Communicator:
    """Communicator between the towers of this rank's replica, in ``group`` or the mesh's own."""
    group = group or mesh.tower_group
    return Communicator(group, mesh.towers, mesh.tower, watchdog=mesh.watchdog)


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
    """x = all_gather(x_shard).  Backward: g_shard = this tower's slice of g."""

    @staticmethod
    def forward(
        ctx: Any, x_shard: Tensor, comm: Communicator, layer: str, total: int, direction: str
    ) -> Tensor:
        ctx.shard = shard_of(total, comm.towers, comm.tower)
        return gather_rows(x_shard.T, ctx.shard, comm, layer, direction).T.contiguous()

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        return grads[0][:, ctx.shard.start : ctx.shard.stop], None, None, None, None


def gather_rows(
    x_shard: Tensor, shard: Shard, comm: Communicator, layer: str, direction: str
) -> Tensor:
    """All-gather rows, also uneven: [shard.size, ...] → [shard.total, ...], without a gradient."""
    if comm.towers == 1:
        return x_shard.clone(memory_format=torch.contiguous_format)
    padded = x_shard.new_zeros((padded_shard_size(shard.total, comm.towers), *x_shard.shape[1:]))
    padded[: shard.size] = x_shard
    gathered = torch.cat(comm.all_gather(padded, layer, direction))
    return gathered[: shard.total]  # only the last shards can be short


def all_gather_to_sharded(x_shard: Tensor, comm: Communicator, layer: str) -> Tensor:
    """Gather the activations that a sharded layer reads.

    Forward (all-gather): [N, c, ...] → [N, C, ...], tower 0's channels first.
    Backward (reduce-scatter): [N, C, ...] → [N, c, ...], summed over towers.
    """
    if comm.towers == 1:
        return x_shard
    x: Tensor = _AllGatherToSharded.apply(x_shard, comm, layer, direction())  # type: ignore[no-untyped-call]
    return x


def all_gather_to_replicated(x_shard: Tensor, comm: Communicator, layer: str, total: int) -> Tensor:
    """Gather activations for computation that every tower repeats: the logits before the loss.

    Forward (all-gather): [N, c] → [N, total], tower 0's units first; shards may be uneven.
    Backward (slice): [N, total] → [N, c], this tower's units; no sum and no communication.
    """
    if comm.towers == 1:
        return x_shard
    arguments = x_shard, comm, layer, total, direction()
    x: Tensor = _AllGatherToReplicated.apply(*arguments)  # type: ignore[no-untyped-call]
    return x


def direction() -> str:
    """Direction under which a forward exchange is counted: ``forward`` or ``inference``."""
    return "forward" if torch.is_grad_enabled() else "inference"
