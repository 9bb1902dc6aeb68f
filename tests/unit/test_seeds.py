"""What is said of several nets' views, ensembles, colours and look-alikes follows from numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet2012.claims import Measurement, Scale, load_claims, verdict
from alexnet2012.lookalikes import lookalikes_measurement, nearest
from alexnet2012.seeds import Pair, colour_measurement, ensemble_measurement, views_measurement

HOW = (Scale.reduced, "tiny", "…")


def pairs(*top1: float) -> list[Pair]:
    return [Pair(error, error / 2) for error in top1]


def kernels(colourful: float, seed: int) -> Tensor:
    """The second half coloured so much more than the first."""
    stream = torch.Generator().manual_seed(seed)
    grey = torch.randn(16, 1, 5, 5, generator=stream).expand(-1, 3, -1, -1).clone()
    colour = torch.randn(16, 3, 5, 5, generator=stream)
    return grey + torch.cat([0.1 * colour[:8], (0.1 + colourful) * colour[8:]])


@pytest.mark.parametrize(
    ("one", "ten", "agrees"),
    [
        ((41, 42, 43), (40, 40.9, 42.1), True),
        ((40, 40.9, 42.1), (41, 42, 43), False),
        ((40, 44, 42), (41, 42, 43), None),
        ((41, 42), (40, 41), None),  # two seeds say nothing
    ],
)
def test_views_are_compared_net_by_net(
    one: tuple[float, ...], ten: tuple[float, ...], agrees: bool | None
) -> None:
    found = views_measurement(pairs(*one), pairs(*ten), *HOW)
    assert found.agrees is agrees
    assert found.numbers["top1_gain_points"] == pytest.approx(np.mean(one) - np.mean(ten))
    assert found.n_seeds == len(one)


def test_an_ensemble_is_compared_with_each_of_its_nets() -> None:
    found = ensemble_measurement(pairs(40, 41, 42, 41), Pair(38, 16), *HOW)
    assert found.agrees is True
    assert found.numbers == {"top1_gain_points": 3.0, "nets": 4}
    assert ensemble_measurement(pairs(40, 41, 42), Pair(41.2, 16), *HOW).agrees is None
    assert ensemble_measurement(pairs(40, 41, 42), Pair(50, 16), *HOW).agrees is False


def test_towers_part_in_colour_only_where_halves_of_a_whole_net_do_not() -> None:
    apart, alike = ([kernels(c, seed) for seed in range(4)] for c in (1.0, 0.0))
    assert colour_measurement(apart, alike, *HOW).agrees is True
    assert colour_measurement(alike, apart, *HOW).agrees is False
    assert colour_measurement(alike, alike[::-1], *HOW).agrees is None
    # Which tower is the colourful one is a matter of numbering.
    turned = [half.flip(0) for half in apart]
    assert colour_measurement(turned, alike, *HOW).agrees is True


def test_the_nearest_are_those_of_smallest_distance() -> None:
    draw = np.random.default_rng(0)
    queries, among = draw.normal(size=(7, 20)), draw.normal(size=(50, 20))
    expected = np.stack([np.argsort(((among - query) ** 2).sum(1))[:6] for query in queries])
    found = nearest(torch.from_numpy(queries), torch.from_numpy(among))
    assert np.array_equal(found.numpy(), expected)


def likeness(same: float, seed: int = 0) -> Measurement:
    """Neighbours that are of the query's class with a probability, else of any."""
    draw = np.random.default_rng(seed)
    labels, of_neighbours = draw.integers(4, size=60), np.repeat(np.arange(4), 50)
    like = draw.random((60, 6)) < same
    wanted = np.where(like, labels[:, None], draw.integers(4, size=(60, 6)))
    parts = 50 * wanted + draw.integers(50, size=(60, 6)), labels, of_neighbours
    return lookalikes_measurement(*map(torch.from_numpy, parts), *HOW)


def test_likeness_is_judged_against_shuffled_labels() -> None:
    found = likeness(0.5)
    assert found.agrees is True
    # Half are of the class, and a quarter of the others.
    assert float(found.numbers["same_class_pct"]) == pytest.approx(62.5, abs=6)
    assert float(found.numbers["chance_pct"]) == pytest.approx(25, abs=3)
    fig4 = next(claim for claim in load_claims() if claim.id == "fig4")
    assert verdict(fig4, found).value == "measured at reduced scale"


def test_neighbours_without_any_likeness_support_almost_nothing() -> None:
    supported = sum(likeness(0.0, seed).agrees is True for seed in range(80))
    assert supported <= 8  # 1 in 40 is to be expected


def test_unlike_neighbours_contradict() -> None:
    labels, of_neighbours = torch.arange(40) % 2, torch.arange(20) % 2
    neighbours = (1 - labels)[:, None] + 2 * torch.arange(6)  # all of the other class
    assert lookalikes_measurement(neighbours, labels, of_neighbours, *HOW).agrees is False
