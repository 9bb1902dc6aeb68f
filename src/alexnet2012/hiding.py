"""Exchanges with the product that needs them: what a tower has is multiplied meanwhile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from alexnet2012.collectives import Product, TowerLink, UnderWay, direction


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
    gather = HiddenGather(link, layer)
    x = gather.begin(x_shard)
    y = product(x, by_tower[link.tower], bias)
    for tower, there in gather.end(x).items():
        y = y + product(there, by_tower[tower], None)
    return y


class HiddenGather:
    """The gather in two halves, with work to do between them.

    ``begin`` sends the own channels and returns them; ``end`` returns those of each peer. What is
    computed of the own channels after ``begin`` and of the peers' after ``end`` hides the exchange
    in both directions: backward runs it the other way round, the peers' products first.

    Forward: [N, c, ...] → [N, c, ...] and T - 1 times [N, c, ...].
    Backward: the sum over towers of the own channels' gradient.
    """

    def __init__(self, link: TowerLink, layer: str) -> None:
        self.link, self.layer, self.direction = link, layer, direction()
        self.under_way: UnderWay[Any]

    def begin(self, x_shard: Tensor) -> Tensor:
        x: Tensor = _Begin.apply(x_shard, self)  # type: ignore[no-untyped-call]
        return x

    def end(self, x: Tensor) -> dict[int, Tensor]:
        """By tower; ``x`` is what ``begin`` returned."""
        others = (tower for tower in range(self.link.towers) if tower != self.link.tower)
        return dict(zip(others, _End.apply(x, self), strict=True))  # type: ignore[no-untyped-call]


class _Begin(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_shard: Tensor, gather: HiddenGather) -> Tensor:
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
    def forward(ctx: Any, x: Tensor, gather: HiddenGather) -> tuple[Tensor, ...]:
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
