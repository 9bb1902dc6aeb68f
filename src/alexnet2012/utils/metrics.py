"""Top-k errors with shared ties, and confidence intervals (Student, Wilson, jackknife)."""

# Shapes: N images, C classes

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist, fmean, stdev

import torch
from torch import Tensor


def topk_errors(
    scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5), share_ties: bool = True
) -> dict[int, float]:
    """Top-k errors by k: images whose label [N] is not among the k highest scores [N, C].

    If several classes tie for the last of the k places, each gets an equal share of those left, as
    in the 2012 code; so a count may be fractional. With ``share_ties=False`` the lower class index
    wins. There are no errors for k ≥ C. A row with NaN is an error for any k.

    Raises:
        ValueError: k is below 1, shapes do not match, or a label is out of range.
    """
    if min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: must be 1 or more")
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        shapes = f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: must be [N, C] and [N]")
    if labels.numel() == 0:
        return dict.fromkeys(ks, 0.0)
    classes = scores.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels: must be in 0 … {classes - 1}, the columns of scores")
    return {k: float(count) for k, count in misses(scores, labels, ks, share_ties).items()}


def misses(
    scores: Tensor, labels: Tensor, ks: Sequence[int], share_ties: bool = True
) -> dict[int, Tensor]:
    """As :func:`topk_errors`, without checks; the counts stay on the device, without a sync."""
    of_label = scores.gather(1, labels[:, None])  # [N, 1]
    higher = (scores > of_label).sum(1)
    tied = scores == of_label
    valid = ~scores.isnan().any(1)
    errors = {}
    for k in ks:
        if share_ties:
            credit = ((k - higher) / tied.sum(1).clamp(min=1)).clamp(0, 1)
        else:
            earlier = torch.arange(scores.shape[1], device=labels.device) < labels[:, None]
            credit = (higher + (tied & earlier).sum(1) < k).to(scores.dtype)
        errors[k] = (1 - credit.double().where(valid, 0.0)).sum()
    return errors


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


def jackknife_interval(
    whole: float, left_out: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Jackknife interval of a statistic of n seeds, from its values without each; None for one.

    Source: Tukey's jackknife; Student's quantile on the n pseudo-values.
    """
    n = len(left_out)
    _, low, high = mean_interval([n * whole - (n - 1) * value for value in left_out], confidence)
    if low is None or high is None:
        return None
    return whole - (high - low) / 2, whole + (high - low) / 2


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


@dataclass(frozen=True)
class ErrorCounts:
    """Error counts over a split, equal on every rank; ties may make them fractional."""

    pictures: int  # images evaluated
    top1_errors: float
    top5_errors: float
    loss: float  # mean cross-entropy of the averaged probabilities, nats

    @property
    def top1_error_pct(self) -> float:
        return 100 * self.top1_errors / self.pictures

    @property
    def top5_error_pct(self) -> float:
        return 100 * self.top5_errors / self.pictures

    def summary(self) -> dict[str, float]:
        rates = {"top1_error_pct": self.top1_error_pct, "top5_error_pct": self.top5_error_pct}
        return {**asdict(self), **rates}
