"""The exchanges in float64: each backward against finite differences of its own forward.

Every rank computes a loss; what an exchange's backward must give is the derivative of the *sum* of
all losses where they differ (sharded use), and of *one* of them where they are all the same
(replicated use). Central differences of step 1e-6 on smooth functions of size 1 are good to about
1e-9; the two meanings differ by a factor of the number of towers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks
from torch import Tensor

from alexnet2012.distributed.collectives import (
    Communicator,
    all_gather_to_replicated,
    all_gather_to_sharded,
    gather_rows,
)
from alexnet2012.utils.shard import shard_of

STEP, BOUND = 1e-6, 1e-8
Gather = Callable[[Tensor, Communicator, int], Tensor]


def link() -> Communicator:
    return Communicator(dist.group.WORLD, dist.get_world_size(), dist.get_rank())


def full_input(*shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=draw, dtype=torch.float64)


def columns(full: Tensor, towers: int, tower: int) -> Tensor:
    own = shard_of(full.shape[1], towers, tower)
    return full[:, own.start : own.stop].contiguous()


def to_sharded(x_shard: Tensor, way: Communicator, total: int) -> Tensor:
    return all_gather_to_sharded(x_shard, way, "conv3")


def to_replicated(x_shard: Tensor, way: Communicator, total: int) -> Tensor:
    return all_gather_to_replicated(x_shard, way, "logits", total)


def loss_of_tower(x_full: Tensor, tower: int) -> Tensor:
    """Smooth, and another function of every element for every tower."""
    weights = torch.arange(1, x_full.numel() + 1, dtype=x_full.dtype).reshape(x_full.shape)
    return (torch.sin(x_full * (1 + tower)) * torch.cos(weights * (2 + tower))).sum()


def loss_of_all(x_full: Tensor, tower: int) -> Tensor:
    return loss_of_tower(x_full, 0)


def gradients(gather: Gather, loss: Any, shape: tuple[int, ...], sum_losses: bool) -> Any:
    """This rank's analytic and numeric gradient of its own columns, and what it gathered."""
    way, full = link(), full_input(*shape)
    x_shard = columns(full, way.towers, way.tower).requires_grad_()
    x_full = gather(x_shard, way, shape[1])
    loss(x_full, way.tower).backward()

    def total(moved: Tensor) -> float:
        with torch.no_grad():
            x = gather(columns(moved, way.towers, way.tower), way, shape[1])
            value = loss(x, way.tower)
        if sum_losses:
            dist.all_reduce(value)
        return float(value)

    numeric = torch.empty_like(full)
    for index in range(full.numel()):
        nudge = torch.zeros(full.numel(), dtype=full.dtype)
        nudge[index] = STEP
        nudge = nudge.reshape(full.shape)
        numeric.view(-1)[index] = (total(full + nudge) - total(full - nudge)) / (2 * STEP)
    return {
        "analytic": x_shard.grad.numpy(),
        "numeric": columns(numeric, way.towers, way.tower).numpy(),
        "gathered": x_full.detach().numpy(),
        "full": full.numpy(),
    }


SHARDED = [(2, 4, 2, 1), (3, 8), (1, 4, 1, 2)]
REPLICATED = [(2, 7), (3, 5), (2, 1), (1, 8)]


def check_sharded() -> list[Any]:
    return [gradients(to_sharded, loss_of_tower, shape, True) for shape in SHARDED]


def check_replicated() -> list[Any]:
    return [gradients(to_replicated, loss_of_all, shape, False) for shape in REPLICATED]


def check_swapped() -> list[Any]:
    """Each gather where the other belongs."""
    return [
        gradients(to_replicated, loss_of_tower, (2, 4), True),
        gradients(to_sharded, loss_of_all, (2, 4), False),
    ]


def worst(result: Any) -> float:
    return float(np.abs(result["analytic"] - result["numeric"]).max(initial=0))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("check", [check_sharded, check_replicated])
def test_each_gathers_backward_is_the_derivative_of_its_forward(
    world_size: int, check: Callable[[], list[Any]]
) -> None:
    for rank in run_ranks(world_size, check):
        for result in rank:
            assert np.array_equal(result["gathered"], result["full"])
            assert worst(result) < BOUND


def test_either_gather_has_wrong_gradients_in_the_others_place() -> None:
    for rank in run_ranks(2, check_swapped):
        for result in rank:
            assert np.array_equal(result["gathered"], result["full"])  # the forward cannot tell
            assert worst(result) > 1e-2
        doubled = rank[1]
        assert np.allclose(doubled["analytic"], 2 * doubled["numeric"], atol=BOUND)


def retained() -> bool:
    """Backward twice through one forward."""
    way = link()
    x = columns(full_input(3, 8), way.towers, way.tower).requires_grad_()
    y = to_sharded(x, way, 8)
    y.square().sum().backward(retain_graph=True)
    once = x.grad.clone()
    y.square().sum().backward()
    return torch.equal(x.grad, 2 * once)


def test_a_retained_graph_is_gone_through_again() -> None:
    assert run_ranks(2, retained) == [True, True]


def edge_cases() -> dict[str, Any]:
    way = link()
    results: dict[str, Any] = {}
    for name, gather, shape in (
        ("sharded maps", to_sharded, (0, 2, 3, 3)),
        ("sharded units", to_sharded, (0, 2)),
        ("logits", to_replicated, (0, shard_of(5, 2, way.tower).size)),
    ):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = gather(x, way, 5)
        y.sum().backward()
        results[name] = (tuple(y.shape), tuple(x.grad.shape))

    own = columns(full_input(2, 4, 3, 3), 2, way.tower)
    contiguous = to_sharded(own, way, 4)
    channels_last = to_sharded(own.to(memory_format=torch.channels_last), way, 4)
    results["layout"] = torch.equal(contiguous, channels_last)

    rows = shard_of(5, 2, way.tower)
    full = full_input(5, 2)
    results["rows"] = torch.equal(gather_rows(rows.of(full), rows, way, "state", "inference"), full)
    return results


def test_empty_batches_any_layout_and_uneven_rows_gather_whole() -> None:
    for rank in run_ranks(2, edge_cases):
        assert rank["sharded maps"] == ((0, 4, 3, 3), (0, 2, 3, 3))
        assert rank["sharded units"] == ((0, 4), (0, 2))
        assert rank["logits"][0] == (0, 5)
        assert rank["layout"]
        assert rank["rows"]


def counted() -> dict[tuple[str, str], int]:
    way = link()
    x = torch.ones(3, 2, 5, dtype=torch.float64, requires_grad=True)
    to_sharded(x, way, 0).sum().backward()
    logits = torch.ones(3, shard_of(7, way.towers, way.tower).size, requires_grad=True)
    to_replicated(logits, way, 7).sum().backward()
    with torch.no_grad():
        to_sharded(x, way, 0)
    assert set(way.traffic.seconds) == set(way.traffic.sent_bytes)
    spent = sum(s for (_, kind), s in way.traffic.seconds.items() if kind != "inference")
    assert way.traffic.training_seconds() == spent > 0
    return dict(way.traffic.sent_bytes)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_tower_counts_its_part_once_for_every_peer(world_size: int) -> None:
    peers, padded_classes = world_size - 1, -(-7 // world_size)
    for rank in run_ranks(world_size, counted):
        assert rank == {
            ("conv3", "forward"): 3 * 2 * 5 * 8 * peers,
            ("conv3", "backward"): 3 * 2 * 5 * 8 * peers,
            ("conv3", "inference"): 3 * 2 * 5 * 8 * peers,
            ("logits", "forward"): 3 * padded_classes * 4 * peers,  # uneven shares travel padded
        }


def test_one_tower_alone_exchanges_and_counts_nothing() -> None:
    way, x = Communicator(), torch.ones(2, 3)
    assert torch.equal(to_sharded(x, way, 3), x)
    assert torch.equal(to_replicated(x, way, 3), x)
    assert not way.traffic.sent_bytes
