"""The likeliest causes why a run does not learn as healthy runs do, from what the run measured.

Each cause has a quantity that it alone changes: the mean and the standard deviation of the first
batch, the spread of the initial weights, the batch size and the learning rate for it. Wrong labels
change none of them, so they are the likeliest where the loss is at chance and nothing else is odd.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

SPREAD = "init_std."  # keys of an observation: the initial weights of a layer
TOLD = 3  # causes that are named
# Standard deviation of natural images minus their mean, in grey levels: 50 to 75.
PIXEL_STD, PIXEL_STD_TOLERANCE = 60.0, 3.0
# A batch's mean in standard deviations: of images minus their mean near 0, of others about 2.
PIXEL_MEAN_TOLERANCE = 0.5
RATE_TOLERANCE = 3.0  # rates of half and twice the usual are healthy
SPREAD_TOLERANCE = 2.5
BATCH_TOLERANCE = 3.0  # of the batch size, at the right learning rate for it


@dataclass
class Evidence:
    """What a run measured at its first step; None for what it did not."""

    pixel_mean: float | None = None  # of the first batch, as the network reads it
    pixel_std: float | None = None
    # By layer: standard deviation of the initial weights, divided by that of healthy runs
    spread: Mapping[str, float] = field(default_factory=dict)
    rate_ratio: float | None = None  # learning rate per image of a batch, likewise
    batch_ratio: float | None = None  # batch size, likewise


def evidence_of(
    observed: Mapping[str, float],
    rate_per_image: float | None,
    init_std: Mapping[str, float],
    usual_batch: int | None,
) -> Evidence:
    """The observation of a run beside what healthy runs begin with."""
    rate, batch_size = observed.get("rate"), observed.get("batch_size")
    ratio = None
    if rate is not None and batch_size is not None and rate_per_image is not None:
        ratio = rate / batch_size / rate_per_image
    names = [name for name in init_std if f"{SPREAD}{name}" in observed and init_std[name] > 0]
    spread = {name: observed[f"{SPREAD}{name}"] / init_std[name] for name in names}
    batch_ratio = None if batch_size is None or usual_batch is None else batch_size / usual_batch
    return Evidence(
        observed.get("pixel_mean"), observed.get("pixel_std"), spread, ratio, batch_ratio
    )


class Cause(NamedTuple):
    """A cause and its strength: above 0, the logarithm of how far it exceeds what is usual."""

    strength: float
    text: str


def likely_causes(evidence: Evidence, *, at_chance: bool) -> list[Cause]:
    """The three likeliest causes, the likeliest first."""
    causes = [
        _labels(at_chance),
        _rate(evidence.rate_ratio),
        _batch(evidence.batch_ratio),
        _spread(evidence.spread),
        _scale(evidence.pixel_std),
        _mean(evidence.pixel_mean, evidence.pixel_std),
    ]
    causes.sort(key=lambda cause: -cause.strength)  # stable: ties in the order above
    return causes[:TOLD]


def _labels(at_chance: bool) -> Cause:
    if at_chance:
        return Cause(0.1, "labels do not belong to their images: the loss is at chance")
    return Cause(-0.5, "labels do not belong to their images")


def _rate(ratio: float | None) -> Cause:
    text = "the learning rate does not fit the batch size"
    if ratio is None or not ratio > 0:
        return Cause(0.0, text)
    strength = abs(math.log(ratio)) - math.log(RATE_TOLERANCE)
    if strength > 0:
        text += f": for each image of a batch it is {ratio:.3g} times that of healthy runs"
    return Cause(strength, text)


def _batch(ratio: float | None) -> Cause:
    text = "the batch size differs, and with it the number of updates"
    if ratio is None or not ratio > 0:
        return Cause(-0.4, text)
    strength = abs(math.log(ratio)) - math.log(BATCH_TOLERANCE)
    if strength > 0:
        text += f": it is {ratio:.3g} times that of healthy runs"
    return Cause(strength, text)


def _spread(ratios: Mapping[str, float]) -> Cause:
    text = "the spread of the initial weights is wrong"
    finite = {name: ratio for name, ratio in ratios.items() if ratio > 0}
    if not finite:
        return Cause(-0.1, text)
    worst = max(finite, key=lambda name: abs(math.log(finite[name])))
    strength = abs(math.log(finite[worst])) - math.log(SPREAD_TOLERANCE)
    if strength > 0:
        text += f": in {worst} it is {finite[worst]:.3g} times that of healthy runs"
    return Cause(strength, text)


def _scale(std: float | None) -> Cause:
    text = "pixels are not on the scale of 0 to 255"
    if std is None or not std > 0:
        return Cause(-0.2, text)
    strength = abs(math.log(std / PIXEL_STD)) - math.log(PIXEL_STD_TOLERANCE)
    if strength > 0:
        text += f": the standard deviation of a batch is {std:.3g}, and {PIXEL_STD:.0f} is usual"
    return Cause(strength, text)


def _mean(mean: float | None, std: float | None) -> Cause:
    text = "the mean image is not subtracted"
    if mean is None or std is None or not std > 0:
        return Cause(-0.3, text)
    deviations = abs(mean) / std
    strength = math.log(max(deviations, 1e-3) / PIXEL_MEAN_TOLERANCE)
    if strength > 0:
        text += f": the mean of a batch is {mean:.3g}, {deviations:.1f} of its standard deviations"
    return Cause(strength, text)
