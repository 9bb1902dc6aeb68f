"""Sweeps of invented runs: errors by seed and by image, with known effects."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from alexnet2012.ledger.evidence import Result, Sweep, result_of
from alexnet2012.ledger.measurements.ablations import BASELINE
from alexnet2012.training.image_errors import UNITS


def made_sweep(
    effects: Mapping[str, float],
    *,
    seeds: int = 8,
    control: int = 16,
    seed_sd: float = 0.5,
    images: int = 1000,
    number: int = 0,
) -> Sweep:
    """Runs of ``none`` and of arms with the given effects in points of validation error.

    Images differ in difficulty, more so than networks, and arms in the images they find difficult.
    """
    draw = np.random.default_rng(number)
    difficulty = draw.normal(0, 20, images)  # points
    sweep: Sweep = {}
    for arm, effect in {BASELINE: 0.0, **effects}.items():
        by_image = 40 + effect + difficulty + (arm != BASELINE) * draw.normal(0, 3, images)
        count = control if arm == BASELINE else seeds
        offsets = draw.normal(0, seed_sd, count)
        sweep[arm] = {seed: made_run(draw, by_image + offsets[seed]) for seed in range(count)}
    return sweep


def made_run(draw: np.random.Generator, chance_pct: np.ndarray) -> Result:
    """A run whose error on each image has this chance."""
    draws = draw.random((3, len(chance_pct)))
    chances = chance_pct, chance_pct / 2, chance_pct - 10
    names = ("top1", "top5", "train_top1")
    images = {
        name: (UNITS * (u < chance / 100)).astype(np.uint8)
        for name, u, chance in zip(names, draws, chances, strict=True)
    }
    training = float(100 * images["train_top1"].mean() / UNITS)
    return result_of(
        {"train_error_pct": training},
        images,
        commit="abc",
        dirty=False,
        labels=dict.fromkeys(names, "labels"),
    )
