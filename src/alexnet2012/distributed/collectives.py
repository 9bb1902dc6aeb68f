"""The exchanges between towers: each forward with its conjugate, and a count of what crossed.

Two gathers with the same forward and different backwards. Before a *sharded* layer every tower
uses the whole activation for its own kernels, so its gradients are partial and must be summed.
Before *replicated* computation (the loss) every tower computes the same thing, and a sum would
count it T times.

Legend: N images, c = C/T channels or units of a tower, C of the net, T towers. Maps travel as they
lie in memory, channels last.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.autograd.graph import get_gradient_edge

from alexnet2012.distributed.mesh import Mesh
from alexnet2012.distributed.watchdog.watchdog import Watchdog
from alexnet2012.utils.shard import Share, largest_share, share

Result = TypeVar("Result")
Product = Callable[..., Tensor]  # of all that a layer reads, and of its weights


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

    def all_gather(self, x: Tensor, layer: str, direction: str) -> UnderWay[list[Tensor]]:
        """[...] → every tower's [...], tower 0's first; the own one is ``x`` itself."""
        to_peers = x.contiguous().expand(self.towers - 1, *x.shape).contiguous()

        def all_parts(received: Tensor) -> list[Tensor]:
            return [*received[: self.tower], x, *received[self.tower :]]

        return UnderWay(self, layer, direction, to_peers, all_parts)

    def reduce_scatter(
        self, parts: Sequence[Tensor], layer: str, direction: str
    ) -> UnderWay[Tensor]:
        """A [...] for every tower → [...]: the sum over towers of what is for this one."""
        for_peers = [part for tower, part in enumerate(parts) if tower != self.tower]
        one = len(for_peers) == 1
        to_peers = for_peers[0].contiguous()[None] if one else torch.stack(for_peers)
        own = parts[self.tower]
        return UnderWay(self, layer, direction, to_peers, lambda received: sum(received, own))


class UnderWay(Generic[Result]):
    """An exchange that has begun; no other begins before its result is taken.

    Every tower sends each peer a part [...] of its own, and nothing to itself: of large maps that
    is sooner done than gloo's gathers and sums of all.
    """

    def __init__(
        self,
        link: TowerLink,
        layer: str,
        direction: str,
        to_peers: Tensor,  # [T - 1, ...]
        result_of: Callable[[Tensor], Result],
    ) -> None:
        self._link, self.key = link, (layer, direction)
        self._received, self._result_of = torch.empty_like(to_peers), result_of
        splits = [int(tower != link.tower) for tower in range(link.towers)]
        began = time.perf_counter()
        with ExitStack() as stack:
            watched = link.watchdog.exchange(layer, direction, to_peers[0].nbytes)
            stack.enter_context(watched)
            self._work = dist.all_to_all_single(
                self._received, to_peers, splits, splits, group=link.group, async_op=True
            )
            self._watched = stack.pop_all()  # it began: what goes wrong from here on, wait tells
        link.traffic.seconds[self.key] += time.perf_counter() - began
        link.traffic.sent_bytes[self.key] += to_peers.nbytes

    def wait(self) -> Result:
        """The result. Only the time until it has come counts as spent in the exchange."""
        began = time.perf_counter()
        with self._watched:
            self._work.wait()
        self._link.traffic.seconds[self.key] += time.perf_counter() - began
        return self._result_of(self._received)


def link_of(mesh: Mesh) -> TowerLink:
    """A rank's way to the other towers of its replica."""
    return TowerLink(mesh.tower_group, mesh.towers, mesh.tower, watchdog=mesh.watchdog)


class _AllGatherToSharded(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        x_shard: Tensor,
        link: TowerLink,
        layer: str,
        direction: str,
        product: Product,
        *weights: Tensor | None,
    ) -> Tensor:
        ctx.link, ctx.layer = link, layer
        parts = link.all_gather(x_shard.movedim(1, -1), layer, direction).wait()
        whole = torch.cat(parts, -1).movedim(-1, 1)  # T times [N, ..., c] → [N, C, ...]
        needed = (ctx.needs_input_grad[0], *ctx.needs_input_grad[5:])
        leaves = [
            None if t is None else t.detach().requires_grad_(need)
            for t, need in zip((whole, *weights), needed, strict=True)
        ]
        with torch.set_grad_enabled(direction == "forward"):
            y = product(*leaves)  # has a graph of its own, for backward to go through in two parts
        if y.requires_grad:
            ctx.save_for_backward(leaves[0])
            ctx.weights, ctx.end = leaves[1:], get_gradient_edge(y)
        return y.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        retain = torch._C._autograd._get_current_graph_task_keep_graph()  # as the caller asked
        (whole,), weights, end = ctx.saved_tensors, ctx.weights, ctx.end
        if not retain:
            del ctx.weights, ctx.end  # which hold what was gathered
        returned = None
        if whole.requires_grad:
            (of_whole,) = torch.autograd.grad([end], [whole], [grad], retain_graph=True)
            parts = of_whole.movedim(1, -1).chunk(ctx.link.towers, -1)
            returned = ctx.link.reduce_scatter(parts, ctx.layer, "backward")  # [N, ..., c]
        # While that is under way:
        asked = [w for w in weights if w is not None and w.requires_grad]
        found = torch.autograd.grad([end], asked, [grad], retain_graph=retain) if asked else ()
        by_weight = dict(zip(map(id, asked), found, strict=True))
        own = None if returned is None else returned.wait().movedim(-1, 1)
        return own, None, None, None, None, *(by_weight.get(id(w)) for w in weights)


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
    gathered = torch.cat(link.all_gather(padded, layer, direction).wait())
    return gathered[: own.total]  # only the last shares can be short


def all_gather_to_sharded(
    x_shard: Tensor,
    link: TowerLink,
    layer: str,
    product: Product = lambda x: x,
    *weights: Tensor | None,
) -> Tensor:
    """What a sharded layer makes, by ``product(x, *weights)``, of the x of all towers.

    Forward: [N, c, ...] → [N, C, ...], tower 0's channels first, and the product of it.
    Backward: [N, C, ...] → [N, c, ...], the sum over towers of the own channels' gradient; under
    way while the gradients of ``weights`` are computed.
    """
    if link.towers == 1:
        return product(x_shard, *weights)
    result: Tensor = _AllGatherToSharded.apply(  # type: ignore[no-untyped-call]
        x_shard, link, layer, direction(), product, *weights
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
        x_shard, link, layer, total, direction()
    )
    return result


def direction() -> str:
    """Of an exchange on the way forward, as it is counted."""
    return "forward" if torch.is_grad_enabled() else "inference"
