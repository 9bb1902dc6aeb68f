"""Verdicts on views, ensembles, colours and nearest images follow from the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.nearest import BLOCK, nearest
from alexnet2012.ledger.claims import Measurement, Scale, load_claims, verdict
from alexnet2012.ledger.ensembles import (
    Errors,
    colour_measurement,
    ensemble_measurement,
    seed_measurements,
    views_measurement,
)
from alexnet2012.ledger.nearest_neighbours import (
    Neighbours,
    neighbours_measurement,
)
from alexnet2012.utils.intervals import jackknife_interval, mean_interval

HOW = (Scale.reduced, "…", "tiny")


def pairs(*top1: float) -> list[Errors]:
    return [Errors(error, error / 2) for error in top1]


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
def test_views_are_compared_model_by_model(
    one: tuple[float, ...], ten: tuple[float, ...], agrees: bool | None
) -> None:
    found = views_measurement(pairs(*one), pairs(*ten), *HOW)
    assert found.agrees is agrees
    assert found.numbers["top1_gain_points"] == pytest.approx(np.mean(one) - np.mean(ten))
    assert found.n_seeds == len(one)


def test_an_ensemble_is_compared_with_each_of_its_models() -> None:
    def found(together: float, *without: float) -> Measurement:
        return ensemble_measurement(
            pairs(40, 41, 42, 41), Errors(together, 16), pairs(*without), *HOW
        )

    gain = found(38, 38.7, 38.3, 38.0, 38.4)
    assert gain.agrees is True
    assert gain.numbers == {"top1_gain_points": 3.0, "nets": 4}
    assert gain.interval is not None
    assert sum(gain.interval) / 2 == pytest.approx(3)  # no correction of the gain itself
    assert found(41.2, 41, 41.5, 41, 41.3).agrees is None
    assert found(50, 50, 50.5, 51, 50.3).agrees is False
    # However alike the nets are: an ensemble that hangs on one of them says nothing.
    assert found(38, 44, 38, 38, 38).agrees is None


def test_the_jackknife_interval_has_its_nominal_coverage() -> None:
    """Of a plain mean the jackknife is Student's interval, so 95 of 100 hold the truth."""
    draws = np.random.default_rng(0).normal(size=(400, 5))
    held = 0
    for values in draws:
        left_out = [(values.sum() - value) / 4 for value in values]
        interval = jackknife_interval(values.mean(), left_out)
        _, low, high = mean_interval(values.tolist())
        assert interval == pytest.approx((low, high))
        assert interval is not None
        held += interval[0] <= 0 <= interval[1]
    assert 365 <= held <= 392
    assert jackknife_interval(3.0, [2.0]) is None


def test_tower_colour_difference_is_judged_against_halves_of_one_tower_models() -> None:
    apart, alike = ([kernels(c, seed) for seed in range(4)] for c in (1.0, 0.0))
    assert colour_measurement(apart, alike, *HOW).agrees is True
    assert colour_measurement(alike, apart, *HOW).agrees is False
    assert colour_measurement(alike, alike[::-1], *HOW).agrees is None
    # Which tower is the colourful one is a matter of numbering.
    turned = [half.flip(0) for half in apart]
    assert colour_measurement(turned, alike, *HOW).agrees is True


def test_one_seed_shows_its_views_and_two_an_ensemble(saved_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no finished run of ablation=none"):
        seed_measurements(tmp_path, *HOW)
    for seed in ("0", "1"):
        net = shutil.copytree(saved_run, tmp_path / "none" / seed)
        (net / "summary.json").write_text("{}")
    (one,) = seed_measurements(tmp_path, *HOW, only=[1])
    assert (one.claim, one.n_seeds, one.interval) == ("lsvrc2010-1crop", 1, None)
    views, together = seed_measurements(tmp_path, *HOW)
    assert (views.claim, views.n_seeds) == ("lsvrc2010-1crop", 2)
    assert together.claim == "table2"
    assert together.numbers["top1_gain_points"] == pytest.approx(0)  # a net and itself
    assert together.interval == pytest.approx((0, 0))


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


def likeness(same: float, seed: int = 0) -> Measurement:
    """Neighbours that are of the query's class with a probability, else of any."""
    draw = np.random.default_rng(seed)
    labels, of_neighbours = draw.integers(4, size=60), np.repeat(np.arange(4), 50)
    like = draw.random((60, 6)) < same
    wanted = np.where(like, labels[:, None], draw.integers(4, size=(60, 6)))
    parts = 50 * wanted + draw.integers(50, size=(60, 6)), labels, of_neighbours
    indices, of_queries, of_train = map(torch.from_numpy, parts)
    return neighbours_measurement(Neighbours(indices, of_queries, of_train), *HOW)


def test_neighbour_agreement_is_judged_against_shuffled_labels() -> None:
    found = likeness(0.5)
    assert found.agrees is True
    # Half are of the class, and a quarter of the others.
    assert float(found.numbers["same_class_pct"]) == pytest.approx(62.5, abs=6)
    assert float(found.numbers["chance_pct"]) == pytest.approx(25, abs=3)
    fig4 = next(claim for claim in load_claims() if claim.id == "fig4")
    assert verdict(fig4, found).value == "measured at reduced scale"


def test_random_neighbours_rarely_support_the_claim() -> None:
    supported = sum(likeness(0.0, seed).agrees is True for seed in range(80))
    assert supported <= 8  # 1 in 40 is to be expected


def test_neighbours_of_other_classes_contradict_the_claim() -> None:
    labels, of_neighbours = torch.arange(40) % 2, torch.arange(20) % 2
    neighbours = (1 - labels)[:, None] + 2 * torch.arange(6)  # all of the other class
    measurement = neighbours_measurement(Neighbours(neighbours, labels, of_neighbours), *HOW)
    assert measurement.agrees is False
