"""Errors and their uncertainty: top-k with shared ties, Student and Wilson intervals."""

# Shapes: N pictures, C classes

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
    """How many of the N pictures miss their label among the k highest scores, for each k.

    Where several classes tie across the edge of the k guesses, each gets an equal part of the
    places left, as the 2012 code counts; so a count may be fractional. Without sharing, the lower
    class index goes first. A k of C or more misses nothing. A row with NaN is missed, whatever k.

    Args:
        scores: [N, C], logits or probabilities.
        labels: [N], class indices.

    Raises:
        ValueError: a k below 1, shapes that do not match, a label outside the classes.
    """
    if min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: must be 1 or more")
    if scores.ndim != 2 or labels.shape != scores.shape[:1]:
        raise ValueError(
            f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)}: must be [N, C] and [N]"
        )
    if labels.numel() == 0:
        return dict.fromkeys(ks, 0.0)
    classes = scores.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels: must be in 0 … {classes - 1}, the columns of scores")
    return {k: float(count) for k, count in misses(scores, labels, ks, share_ties).items()}


def misses(
    scores: Tensor, labels: Tensor, ks: Sequence[int], share_ties: bool = True
) -> dict[int, Tensor]:
    """The same, unchecked and left on the device: nothing waits for it."""
    own = scores.gather(1, labels[:, None])  # [N, 1]
    higher = (scores > own).sum(1)
    tied = scores == own
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
    """Mean over seeds and its Student interval; no interval for a single value.

    Raises:
        ValueError: no values, or a confidence outside (0, 1).
    """
    if not values:
        raise ValueError("values: must hold at least one")
    mean = fmean(values)
    if len(values) == 1:
        _check_confidence(confidence)
        return mean, None, None
    half = student_quantile(len(values) - 1, confidence) * stdev(values) / math.sqrt(len(values))
    return mean, mean - half, mean + half


def jackknife_interval(
    whole: float, left_out: Sequence[float], confidence: float = 0.95
) -> tuple[float, float] | None:
    """Around a number that n seeds make together, from what it is without each; None: one seed.

    Source: Tukey's jackknife; Student's quantile on the n pseudo-values.
    """
    n = len(left_out)
    _, low, high = mean_interval([n * whole - (n - 1) * one for one in left_out], confidence)
    if low is None or high is None:
        return None
    return whole - (high - low) / 2, whole + (high - low) / 2


def error_interval_pct(
    errors: float, pictures: int, confidence: float = 0.95
) -> tuple[float, float]:
    """Wilson's interval of an error rate from one run's counts, in per cent.

    It covers the draw of the pictures, not of the seed, and takes the pictures as independent.

    Raises:
        ValueError: no pictures, errors outside 0 … pictures, or a confidence outside (0, 1).
    """
    if pictures < 1 or not 0 <= errors <= pictures:
        raise ValueError(f"errors={errors} of {pictures}: must be 0 … pictures, and pictures ≥ 1")
    _check_confidence(confidence)
    z2 = NormalDist().inv_cdf((1 + confidence) / 2) ** 2
    rate = errors / pictures
    centre = rate + z2 / (2 * pictures)
    half = math.sqrt(z2 * (rate * (1 - rate) + z2 / (4 * pictures)) / pictures)
    scale = 100 / (1 + z2 / pictures)
    return max(0.0, (centre - half) * scale), min(100.0, (centre + half) * scale)


def student_quantile(degrees: int, confidence: float = 0.95) -> float:
    """t with P(|T| ≤ t) = confidence; T is Student's with whole degrees of freedom.

    Raises:
        ValueError: degrees below 1, or a confidence outside (0, 1).
    """
    if degrees < 1:
        raise ValueError(f"degrees={degrees}: must be 1 or more")
    _check_confidence(confidence)
    # t = √degrees · tan θ turns the half line into an angle, so bisection needs no upper guess
    low, high = 0.0, math.pi / 2
    for _ in range(100):
        middle = (low + high) / 2
        if _student_mass(middle, degrees) < confidence:
            low = middle
        else:
            high = middle
    return math.sqrt(degrees) * math.tan(low)


def _student_mass(angle: float, degrees: int) -> float:
    """P(|T| ≤ √degrees · tan(angle)): the finite series for whole degrees of freedom.

    Source: Abramowitz and Stegun, 26.7.3 and 26.7.4.
    """
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(odd + 1, degrees, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    if odd:
        return 2 / math.pi * (angle + sine * total)
    return sine * total


def _check_confidence(confidence: float) -> None:
    if not 0 < confidence < 1:
        raise ValueError(f"confidence={confidence}: must be between 0 and 1")


@dataclass(frozen=True)
class ErrorCounts:
    """Counts over a split, equal on every rank; ties share the credit, so they may be halves."""

    pictures: int
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
        """All of it, by name."""
        shares = {"top1_error_pct": self.top1_error_pct, "top5_error_pct": self.top5_error_pct}
        return {**asdict(self), **shares}
