"""The all-gathers in float64: each backward against finite differences of its forward.

Every rank computes a loss. The backward of an all-gather must return the derivative of the *sum* of
all losses if they differ (sharded use), and of *one* of them if they are equal (replicated use).
Central differences of step 1e-6 on smooth functions of size 1 are accurate to about 1e-9; the two
derivatives differ by a factor of the number of towers.
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


def world_comm() -> Communicator:
    return Communicator(dist.group.WORLD, dist.get_world_size(), dist.get_rank())


def full_input(*shape: int) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def columns(full: Tensor, towers: int, tower: int) -> Tensor:
    shard = shard_of(full.shape[1], towers, tower)
    return full[:, shard.start : shard.stop].contiguous()


def to_sharded(x_shard: Tensor, comm: Communicator, total: int) -> Tensor:
    return all_gather_to_sharded(x_shard, comm, "conv3")


def to_replicated(x_shard: Tensor, comm: Communicator, total: int) -> Tensor:
    return all_gather_to_replicated(x_shard, comm, "logits", total)


def loss_of_tower(x_full: Tensor, tower: int) -> Tensor:
    """A smooth function, different for every element and every tower."""
    weights = torch.arange(1, x_full.numel() + 1, dtype=x_full.dtype).reshape(x_full.shape)
    return (torch.sin(x_full * (1 + tower)) * torch.cos(weights * (2 + tower))).sum()


def loss_of_all(x_full: Tensor, tower: int) -> Tensor:
    return loss_of_tower(x_full, 0)


def gradients(gather: Gather, loss: Any, shape: tuple[int, ...], sum_losses: bool) -> Any:
    """Analytic and numeric gradient of this rank's columns, and the gathered tensor."""
    comm, full = world_comm(), full_input(*shape)
    x_shard = columns(full, comm.towers, comm.tower).requires_grad_()
    x_full = gather(x_shard, comm, shape[1])
    loss(x_full, comm.tower).backward()

    def total(moved: Tensor) -> float:
        with torch.no_grad():
            x = gather(columns(moved, comm.towers, comm.tower), comm, shape[1])
            value = loss(x, comm.tower)
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
        "numeric": columns(numeric, comm.towers, comm.tower).numpy(),
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
    """Each all-gather where the other one belongs."""
    return [
        gradients(to_replicated, loss_of_tower, (2, 4), True),
        gradients(to_sharded, loss_of_all, (2, 4), False),
    ]


def worst(result: Any) -> float:
    return float(np.abs(result["analytic"] - result["numeric"]).max(initial=0))


@pytest.mark.parametrize("world_size", [2, 4])
@pytest.mark.parametrize("check", [check_sharded, check_replicated])
def test_the_backward_of_each_all_gather_is_the_derivative_of_its_forward(
    world_size: int, check: Callable[[], list[Any]]
) -> None:
    for rank in run_ranks(world_size, check):
        for result in rank:
            assert np.array_equal(result["gathered"], result["full"])
            assert worst(result) < BOUND


def test_either_all_gather_in_place_of_the_other_has_wrong_gradients() -> None:
    for rank in run_ranks(2, check_swapped):
        for result in rank:
            assert np.array_equal(result["gathered"], result["full"])  # the forwards are equal
            assert worst(result) > 1e-2
        doubled = rank[1]
        assert np.allclose(doubled["analytic"], 2 * doubled["numeric"], atol=BOUND)


def backward_twice() -> bool:
    """Two backward passes through one forward."""
    comm = world_comm()
    x = columns(full_input(3, 8), comm.towers, comm.tower).requires_grad_()
    y = to_sharded(x, comm, 8)
    y.square().sum().backward(retain_graph=True)
    once = x.grad.clone()
    y.square().sum().backward()
    return torch.equal(x.grad, 2 * once)


def test_a_retained_graph_allows_a_second_backward() -> None:
    assert run_ranks(2, backward_twice) == [True, True]


def edge_cases() -> dict[str, Any]:
    comm = world_comm()
    results: dict[str, Any] = {}
    for name, gather, shape in (
        ("sharded maps", to_sharded, (0, 2, 3, 3)),
        ("sharded units", to_sharded, (0, 2)),
        ("logits", to_replicated, (0, shard_of(5, 2, comm.tower).size)),
    ):
        x = torch.zeros(shape, dtype=torch.float64, requires_grad=True)
        y = gather(x, comm, 5)
        y.sum().backward()
        results[name] = (tuple(y.shape), tuple(x.grad.shape))

    x_shard = columns(full_input(2, 4, 3, 3), 2, comm.tower)
    contiguous = to_sharded(x_shard, comm, 4)
    channels_last = to_sharded(x_shard.to(memory_format=torch.channels_last), comm, 4)
    results["layout"] = torch.equal(contiguous, channels_last)

    rows = shard_of(5, 2, comm.tower)
    full = full_input(5, 2)
    results["rows"] = torch.equal(
        gather_rows(rows.of(full), rows, comm, "state", "inference"), full
    )
    return results


def test_empty_batches_any_layout_and_uneven_rows_are_gathered() -> None:
    for rank in run_ranks(2, edge_cases):
        assert rank["sharded maps"] == ((0, 4, 3, 3), (0, 2, 3, 3))
        assert rank["sharded units"] == ((0, 4), (0, 2))
        assert rank["logits"][0] == (0, 5)
        assert rank["layout"]
        assert rank["rows"]


def count_bytes() -> dict[tuple[str, str], int]:
    comm = world_comm()
    x = torch.ones(3, 2, 5, dtype=torch.float64, requires_grad=True)
    to_sharded(x, comm, 0).sum().backward()
    logits = torch.ones(3, shard_of(7, comm.towers, comm.tower).size, requires_grad=True)
    to_replicated(logits, comm, 7).sum().backward()
    with torch.no_grad():
        to_sharded(x, comm, 0)
    assert set(comm.traffic.seconds) == set(comm.traffic.sent_bytes)
    seconds = sum(s for (_, kind), s in comm.traffic.seconds.items() if kind != "inference")
    assert comm.traffic.training_seconds() == seconds > 0
    return dict(comm.traffic.sent_bytes)


@pytest.mark.parametrize("world_size", [2, 4])
def test_a_tower_counts_its_shard_once_for_every_peer(world_size: int) -> None:
    peers, padded_classes = world_size - 1, -(-7 // world_size)
    for rank in run_ranks(world_size, count_bytes):
        assert rank == {
            ("conv3", "forward"): 3 * 2 * 5 * 8 * peers,
            ("conv3", "backward"): 3 * 2 * 5 * 8 * peers,
            ("conv3", "inference"): 3 * 2 * 5 * 8 * peers,
            ("logits", "forward"): 3 * padded_classes * 4 * peers,  # uneven shards are padded
        }


def test_a_single_tower_sends_and_counts_nothing() -> None:
    comm, x = Communicator(), torch.ones(2, 3)
    assert torch.equal(to_sharded(x, comm, 3), x)
    assert torch.equal(to_replicated(x, comm, 3), x)
    assert not comm.traffic.sent_bytes
