"""Intervals and power against simulation, with fixed seeds."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from alexnet2012.ledger.statistics import (
    LEVEL,
    Design,
    Estimate,
    benjamini_hochberg,
    between_arms,
    expected_level,
    seeds_needed,
    within_runs,
)

DRAWS = 400
# Of 400 intervals that hold the truth with a chance of 95%, 380 do, give or take 4.4.
NOMINAL = range(367, 394)


def crossed(draw: np.random.Generator, seeds: int, by_image: np.ndarray) -> np.ndarray:
    """Errors [seeds, images]: seeds and images differ, and each run errs by itself on an image."""
    noise = draw.normal(0, 30, (seeds, len(by_image)))
    return draw.normal(0, 0.7, (seeds, 1)) + by_image + noise


def covered(images_count: bool) -> int:
    """How many of the intervals of two arms hold their true difference, which is 2 points."""
    held = 0
    for number in range(DRAWS):
        draw = np.random.default_rng(number)
        shared, own = draw.normal(0, 40, 250), draw.normal(0, 20, 250)
        arm = crossed(draw, 6, 2 + shared + own)
        control = crossed(draw, 15, shared)
        mean, design = between_arms(arm.mean(1), control.mean(1), [(arm, control)])
        if not images_count:
            design = replace(design, image_se=0.0)
        low, high = Estimate("arm", "top1", mean, design).interval or (0, 0)
        held += low <= 2 <= high
    return held


def test_an_interval_over_seeds_and_images_has_its_nominal_coverage() -> None:
    assert covered(images_count=True) in NOMINAL


def test_an_interval_over_seeds_alone_is_too_narrow() -> None:
    assert covered(images_count=False) < NOMINAL.start - 20


def test_an_interval_of_differences_within_runs_has_its_nominal_coverage() -> None:
    held = 0
    for number in range(DRAWS):
        draw = np.random.default_rng(number)
        gains = crossed(draw, 6, 2 + draw.normal(0, 12, 250))
        mean, design = within_runs(gains.mean(1), gains)
        low, high = Estimate("1 view", "top1", mean, design).interval or (0, 0)
        held += low <= 2 <= high
    assert held in NOMINAL


def test_fewer_than_three_seeds_have_no_interval_and_no_p_value() -> None:
    for arm, control in ((2, 9), (9, 2)):
        mean, design = between_arms(np.arange(arm) + 50.0, np.arange(control) * 1.0)
        found = Estimate("arm", "top1", mean, design)
        assert (found.interval, found.p_value(), found.size_inside) == (None, None, None)
    mean, design = between_arms([50.0, 51.0, 52.0], [1.0, 2.0, 3.0])
    assert Estimate("arm", "top1", mean, design).interval is not None


@pytest.mark.parametrize(("size", "level"), [(1.0, 0.05), (2.0, 0.05), (2.0, 0.01)])
def test_the_power_is_the_share_of_simulated_sweeps_that_find_the_effect(
    size: float, level: float
) -> None:
    planned = Design(6, 1.2, 12, 1.2)
    draw = np.random.default_rng(0)
    arms = size + draw.normal(0, 1.2, (2000, 6))
    controls = draw.normal(0, 1.2, (2000, 12))
    found = 0
    for arm, control in zip(arms, controls, strict=True):
        mean, design = between_arms(arm, control)
        p = Estimate("arm", "top1", mean, design).p_value()
        found += mean > 0 and p is not None and p <= level
    # Five standard errors of a share of 2000. Welch's df are estimated, which costs a little.
    assert found / 2000 == pytest.approx(planned.power(size, level), abs=0.055)
    assert planned.power(size, level) - planned.power(size / 2, level) > 0.15


def test_the_power_of_no_effect_is_half_the_level_and_of_a_large_one_is_one() -> None:
    design = Design(6, 1.2, 12, 1.2)
    assert design.power(0.0, 0.05) == pytest.approx(0.025, abs=1e-6)
    assert design.power(500.0, 0.05) == 1.0


def test_the_seeds_needed_are_the_fewest_that_give_enough_power() -> None:
    design = Design(5, 1.5, 15, 1.5)
    needed = seeds_needed([design], 1.0, LEVEL)
    assert needed is not None
    assert design.with_seeds(needed).power(1.0) >= 0.8 > design.with_seeds(needed - 1).power(1.0)
    assert design.with_seeds(needed).control_seeds == 3 * needed
    by_images = replace(design, image_se=1.0)  # no number of networks makes up for few images
    assert seeds_needed([by_images], 1.0, LEVEL) is None


def test_p_values_are_adjusted_as_by_benjamini_and_hochberg() -> None:
    # Worked by hand: p · m / rank, from the largest, never increasing.
    assert benjamini_hochberg([0.04, 0.01, 0.03, 0.5]) == pytest.approx(
        [0.16 / 3, 0.04, 0.16 / 3, 0.5]
    )
    assert benjamini_hochberg([0.9, 0.02]) == pytest.approx([0.9, 0.04])
    assert benjamini_hochberg([]) == []


def test_the_expected_level_is_that_of_simulated_procedures() -> None:
    """Eight claims, half of them with little power: the average of 0.05 · found / 8."""
    designs = [Design(6, 1.0, 18, 1.0) if n % 2 else Design(6, 6.0, 18, 6.0) for n in range(8)]
    level = expected_level([([design], 2.0) for design in designs])
    draw = np.random.default_rng(0)
    counts = []
    for _ in range(300):
        p_values = []
        for design in designs:
            arm = 2 + draw.normal(0, design.seed_sd, 6)
            mean, measured = between_arms(arm, draw.normal(0, design.control_sd, 18))
            p_values.append(Estimate("arm", "top1", mean, measured).p_value() or 0.0)
        counts.append(sum(p <= LEVEL for p in benjamini_hochberg(p_values)))
    assert level == pytest.approx(LEVEL * np.mean(counts) / 8, rel=0.06)
    assert LEVEL / 8 < level < LEVEL
