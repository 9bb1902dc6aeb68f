"""Figure 4: neighbours by activations against those by pixels and by an untrained network."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet2012.inference.nearest import BLOCK, nearest
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.measurements.nearest_neighbours import (
    FROM_SAMPLE,
    Neighbours,
    neighbours_measurements,
    shares_nearer,
)

HOW = (Scale.reduced, "…", "tiny")
CLASSES, PER_CLASS = 8, 50


def test_nearest_returns_the_smallest_distances() -> None:
    draw = np.random.default_rng(0)
    queries, among = draw.normal(size=(7, 20)), draw.normal(size=(50, 20))
    expected = np.stack([np.argsort(((among - query) ** 2).sum(1))[:6] for query in queries])
    found = nearest(torch.from_numpy(queries), torch.from_numpy(among))
    assert np.array_equal(found.numpy(), expected)


def test_nearest_searches_across_blocks() -> None:
    draw = torch.Generator().manual_seed(0)
    among = torch.randn(2 * BLOCK + 3, 4, generator=draw)
    queries = torch.randn(BLOCK + 2, 4, generator=draw)
    found = nearest(queries, among, 5)
    for place in (0, 1, BLOCK, BLOCK + 1):
        away = (among.double() - queries[place].double()).norm(dim=1)
        assert found[place].tolist() == away.argsort()[:5].tolist()


def drawn(same: float, labels: np.ndarray, draw: np.random.Generator) -> Tensor:
    """Neighbours that have the query's class with a probability, else any class."""
    like = draw.random((len(labels), 6)) < same
    wanted = np.where(like, labels[:, None], draw.integers(CLASSES, size=like.shape))
    return torch.from_numpy(PER_CLASS * wanted + draw.integers(PER_CLASS, size=like.shape))


def neighbours(
    same: float, pixels: float = 0.0, untrained: float = 0.0, nearer: float = 0.5, seed: int = 0
) -> Neighbours:
    draw = np.random.default_rng(seed)
    labels = np.arange(160) % CLASSES
    lists = (drawn(share, labels, draw) for share in (same, untrained, pixels))
    ranks = torch.from_numpy(draw.random((160, 6)) * 2 * nearer)
    of_train = torch.arange(CLASSES).repeat_interleave(PER_CLASS)
    return Neighbours(torch.from_numpy(labels), of_train, *lists, ranks)


def of_class(found: Neighbours) -> Measurement:
    return neighbours_measurements(found, *HOW)[0]


def in_pixels(found: Neighbours) -> Measurement:
    return neighbours_measurements(found, *HOW)[1]


def measured(**shares: float) -> Measurement:
    return of_class(neighbours(**shares))  # type: ignore[arg-type]


def test_neighbours_of_the_same_class_are_judged_against_both_controls() -> None:
    found = measured(same=0.5)
    assert found.agrees is True
    # Half are of the class, and an eighth of the others.
    assert float(found.numbers["same_class_pct"]) == pytest.approx(56, abs=4)
    assert float(found.numbers["chance_pct"]) == pytest.approx(12.5, abs=2)
    assert found.p_value == 2 / 2**CLASSES


@pytest.mark.parametrize("control", ["pixels", "untrained"])
def test_a_control_that_does_as_well_leaves_the_claim_open(control: str) -> None:
    found = measured(same=0.5, **{control: 0.5})
    assert float(found.numbers["same_class_pct"]) > 50  # far more than with shuffled labels
    assert found.agrees is None


@pytest.mark.parametrize("control", ["pixels", "untrained"])
def test_a_control_that_does_better_contradicts_the_claim(control: str) -> None:
    assert measured(same=0.2, **{control: 0.6}).agrees is False


def test_random_neighbours_rarely_support_the_claim() -> None:
    supported = sum(measured(same=0.0, seed=seed).agrees is True for seed in range(30))
    assert supported <= 2


def test_queries_that_share_their_neighbours_count_once_per_class() -> None:
    """One class with an advantage is one class, however many queries it has."""
    base = neighbours(same=0.0, pixels=0.0)
    one = base.labels == 0
    by_activations = torch.where(one[:, None], torch.arange(6), base.by_pixels)
    lucky = Neighbours(
        base.labels,
        base.train_labels,
        by_activations,
        base.by_pixels,
        base.by_pixels,
        base.nearer_in_pixels,
    )
    assert of_class(lucky).agrees is None


def test_shares_nearer_are_ranks_among_the_distances() -> None:
    distances = torch.tensor([[3.0, 1.0, 2.0, 4.0]])
    assert shares_nearer(distances, torch.tensor([[1, 0, 3]])).tolist() == [[0.0, 0.5, 0.75]]


def test_neighbours_far_in_pixels_support_the_claim_and_near_ones_contradict_it() -> None:
    far, near = (in_pixels(neighbours(same=0.5, nearer=nearer)) for nearer in (0.5, 0.004))
    assert (far.agrees, near.agrees) == (True, False)
    assert float(far.numbers["median_rank_pct"]) == pytest.approx(50, abs=5)
    assert float(near.numbers["near_in_pixels_pct"]) == 100
    half = neighbours(same=0.5)
    half.nearer_in_pixels[half.labels < 4] = 0.0  # those of half of the classes
    assert in_pixels(half).agrees is None


def test_the_overlap_is_that_of_the_two_sets_whatever_their_order() -> None:
    found = neighbours(same=0.5)
    found.by_pixels[:] = found.by_activations.flip(1)
    assert in_pixels(found).numbers["overlap_pct"] == pytest.approx(100)
    found.by_pixels[:, :3] = -1
    assert in_pixels(found).numbers["overlap_pct"] < 60


def test_measurements_are_repeated_from_their_samples() -> None:
    for first in neighbours_measurements(neighbours(same=0.4, pixels=0.2), *HOW):
        assert FROM_SAMPLE[first.claim](first.sample, *HOW) == first
