"""Exchanges with the product that needs them: what a tower has is multiplied meanwhile."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from alexnet2012.distributed.collectives import Product, TowerLink, direction


def gather_hidden(
    x_shard: Tensor,
    link: TowerLink,
    layer: str,
    product: Product,
    weight: Tensor,
    bias: Tensor | None,
) -> Tensor:
    """As ``all_gather_to_sharded``, behind the product's own parts.

    The own channels are multiplied while those of the peers are under way; backward runs it the
    other way round, the peers' products first.
    """
    by_tower = weight.split(x_shard.shape[1], dim=1)
    gather = _Gather(link, layer, direction())
    x: Tensor = _Begin.apply(x_shard, gather)  # type: ignore[no-untyped-call]
    y = product(x, by_tower[link.tower], bias)
    others = [w for tower, w in enumerate(by_tower) if tower != link.tower]
    from_peers = _End.apply(x, gather)  # type: ignore[no-untyped-call]
    for there, of_peer in zip(from_peers, others, strict=True):
        y = y + product(there, of_peer, None)
    return y


@dataclass
class _Gather:
    """One exchange, which one function begins and the other ends, and backward the other way round.

    Forward: [N, c, ...] → [N, c, ...] and T - 1 times [N, c, ...].
    Backward: the sum over towers of the own channels' gradient.
    """

    link: TowerLink
    layer: str
    direction: str
    under_way: Any = None  # an UnderWay


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_shard: Tensor, gather: _Gather) -> Tensor:
        ctx.gather = gather
        x_last = x_shard.movedim(1, -1)
        gather.under_way = gather.link.all_gather(x_last, gather.layer, gather.direction)
        return x_shard.view_as(x_shard)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        of_peers = ctx.gather.under_way.wait().movedim(-1, 1)  # by their products
        return grads[0] + of_peers, None


class _End(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, gather: _Gather) -> tuple[Tensor, ...]:
        ctx.gather = gather
        gathered, tower = gather.under_way.wait(), gather.link.tower
        return tuple(x.movedim(-1, 1) for x in (*gathered[:tower], *gathered[tower + 1 :]))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        gather, tower = ctx.gather, ctx.gather.link.tower
        nothing = grads[0].new_zeros(())  # the own product's gradient stays here
        of_peers = [grad.movedim(1, -1) for grad in grads]
        parts = [*of_peers[:tower], nothing, *of_peers[tower:]]
        gather.under_way = gather.link.reduce_scatter(parts, gather.layer, "backward")
        return None, None
