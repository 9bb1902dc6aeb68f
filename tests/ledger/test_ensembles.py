"""Verdicts on views and ensembles follow from the numbers."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.evidence import Result, result_of
from alexnet2012.ledger.measurements.ensembles import (
    FILE,
    ensemble_measurement,
    groups,
    seed_measurements,
    views_measurement,
)
from alexnet2012.ledger.verdicts import Verdict, verdicts
from alexnet2012.utils.intervals import mean_interval

HOW = (Scale.reduced, "…", "tiny")


def nets(*top1: float) -> dict[int, Result]:
    errors = ({"top1_error_pct": e, "top5_error_pct": e / 2} for e in top1)
    return {seed: result_of(error, {}) for seed, error in enumerate(errors)}


def verdict_on(measurement: Measurement) -> Verdict:
    return verdicts([measurement])[measurement.claim][0]


@pytest.mark.parametrize(
    ("one", "ten", "verdict"),
    [
        ((41, 42, 43), (39.6, 40.4, 41.6), Verdict.supported),
        ((41, 42, 43), (31, 31.9, 33.1), Verdict.in_direction),
        ((40, 40.9, 42.1), (41, 42, 43), Verdict.contradicted),
        ((40, 44, 42), (41, 42, 43), Verdict.inconclusive),
        ((41, 42), (40, 41), Verdict.inconclusive),  # two seeds say nothing
    ],
)
def test_views_are_compared_model_by_model(
    one: tuple[float, ...], ten: tuple[float, ...], verdict: Verdict
) -> None:
    found = views_measurement(nets(*one), nets(*ten), *HOW)
    assert verdict_on(found) is verdict
    assert found.numbers["top1_gain_points"] == pytest.approx(np.mean(one) - np.mean(ten))
    assert found.n_seeds == len(one)


def test_averages_of_five_are_compared_with_their_own_networks() -> None:
    """Twenty networks are four independent averages; fewer than three give no interval."""
    errors = [40 + (seed * 7) % 5 for seed in range(20)]  # each five have the mean 42

    def found(*together: float) -> Measurement:
        averages = {5 * group: nets(error)[0] for group, error in enumerate(together)}
        return ensemble_measurement(nets(*errors[: 5 * len(together)]), averages, *HOW)

    gain = found(39.5, 39.3, 39.6, 39.2)
    assert verdict_on(gain) is Verdict.supported
    assert gain.numbers == {"top1_gain_points": pytest.approx(2.6), "nets": 5}
    assert gain.interval == pytest.approx(mean_interval([2.5, 2.7, 2.4, 2.8])[1:])
    assert gain.n_seeds == 20
    assert verdict_on(found(35.5, 35.3, 35.6, 35.2)) is Verdict.in_direction
    assert verdict_on(found(42.2, 41.9, 42.1, 41.8)) is Verdict.contradicted
    assert verdict_on(found(39, 45, 39, 45)) is Verdict.inconclusive
    few = found(39.5, 39.3)
    assert (verdict_on(few), few.interval) == (Verdict.inconclusive, None)


def test_the_networks_that_power_takes_are_counted_not_the_averages() -> None:
    averages = {5 * group: nets(error)[0] for group, error in enumerate((39, 45, 38))}
    found = ensemble_measurement(nets(*[42.0] * 15), averages, *HOW)
    needed = verdicts([found])["table2"][1].seeds_needed
    assert needed is not None
    assert needed > 15
    assert needed % 5 == 0


@pytest.mark.parametrize(
    ("seeds", "expected"),
    [
        ([3], []),
        ([3, 1], [[1, 3]]),
        ([*range(9)], [[0, 1, 2, 3, 4]]),
        ([*range(1, 11)], [[1, 2, 3, 4, 5], [6, 7, 8, 9, 10]]),
    ],
)
def test_groups_of_networks_are_disjoint(seeds: list[int], expected: list[list[int]]) -> None:
    assert groups(seeds) == expected


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
    assert (together.claim, together.interval) == ("table2", None)
    assert together.numbers["top1_gain_points"] == pytest.approx(0)  # a net and itself
    assert together.estimates[0].images == views.estimates[0].images == 48


def test_networks_are_evaluated_again_only_if_their_runs_changed(
    saved_run: Path, tmp_path: Path
) -> None:
    net = shutil.copytree(saved_run, tmp_path / "none" / "0")
    (net / "summary.json").write_text("{}")
    first = seed_measurements(tmp_path, *HOW)
    written = (tmp_path / FILE).stat().st_mtime_ns
    assert seed_measurements(tmp_path, *HOW) == first
    assert (tmp_path / FILE).stat().st_mtime_ns == written
    (net / "summary.json").write_text('{"steps": 8}')
    assert seed_measurements(tmp_path, *HOW) == first
    assert (tmp_path / FILE).stat().st_mtime_ns > written
