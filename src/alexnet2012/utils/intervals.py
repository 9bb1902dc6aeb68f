"""Confidence intervals: Student's and Wilson's."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import NormalDist, fmean, stdev


def mean_interval(
    values: Sequence[float], confidence: float = 0.95
) -> tuple[float, float | None, float | None]:
    """Mean and the bounds of its Student interval; the bounds are None for a single value."""
    if not values:
        raise ValueError("values: must not be empty")
    _check_confidence(confidence)
    mean = fmean(values)
    if len(values) == 1:
        return mean, None, None
    from scipy.special import stdtrit  # takes 0.4 s, so only if needed

    quantile = float(stdtrit(len(values) - 1, (1 + confidence) / 2))
    half = quantile * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def error_interval_pct(
    errors: float, pictures: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson interval of the error rate of one run, in %.

    It covers the sampling of images, taken as independent, but not the variation between seeds.

    Raises:
        ValueError: no images, errors outside 0 … images, or a confidence outside (0, 1).
    """
    if pictures < 1 or not 0 <= errors <= pictures:
        raise ValueError(f"errors={errors} of {pictures}: must be 0 to the number of images")
    _check_confidence(confidence)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    rate = errors / pictures
    centre = rate + z2 / (2 * pictures)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * pictures)) / pictures)
    scale = 100 / (1 + z2 / pictures)
    return max(0.0, (centre - half) * scale), min(100.0, (centre + half) * scale)


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1")
