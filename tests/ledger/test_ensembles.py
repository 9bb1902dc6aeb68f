"""Verdicts on views and ensembles follow from the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.ensembles import (
    Errors,
    ensemble_measurement,
    seed_measurements,
    views_measurement,
)
from alexnet2012.utils.intervals import jackknife_interval, mean_interval

HOW = (Scale.reduced, "…", "tiny")


def pairs(*top1: float) -> list[Errors]:
    return [Errors(error, error / 2) for error in top1]


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
