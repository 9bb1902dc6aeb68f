"""Top-k errors with shared ties."""

# Shapes: N images, C classes, R right labels of an image

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # listing runs does not import torch
    from torch import Tensor

TOP_K = 5


def topk_errors(scores: Tensor, labels: Tensor, ks: Sequence[int] = (1, 5)) -> dict[int, float]:
    """Top-k errors by k: images none of whose labels [N] or [N, R] is among the k highest scores.

    If several classes tie for the last of the k places, each gets an equal share of those left, as
    in the 2012 code; so a count may be fractional. There are no errors for k ≥ C. A row with NaN is
    an error for any k. Scores are [N, C]; an image with fewer than R labels repeats one of them.

    Raises:
        ValueError: k is below 1, shapes do not match, or a label is out of range.
    """
    if min(ks) < 1:
        raise ValueError(f"ks={tuple(ks)}: must be 1 or more")
    if scores.ndim != 2 or labels.ndim not in (1, 2) or len(labels) != len(scores):
        shapes = f"scores {tuple(scores.shape)}, labels {tuple(labels.shape)}"
        raise ValueError(f"{shapes}: must be [N, C], and [N] or [N, R]")
    if labels.numel() == 0:
        return dict.fromkeys(ks, 0.0)
    classes = scores.shape[1]
    if int(labels.min()) < 0 or int(labels.max()) >= classes:
        raise ValueError(f"labels: must be in 0 … {classes - 1}, the columns of scores")
    return {k: float(count) for k, count in misses(scores, labels, ks).items()}


def misses(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """As :func:`topk_errors`, without checks; the counts stay on the device, without a sync."""
    return {k: errors.sum() for k, errors in image_errors(scores, labels, ks).items()}


def image_errors(scores: Tensor, labels: Tensor, ks: Sequence[int]) -> dict[int, Tensor]:
    """The same of each image: float64 [N], 0 or 1, or a fraction where classes tie."""
    of_label = label_scores(scores, labels)[:, None]  # [N, 1]
    higher = (scores > of_label).sum(1)
    tied = scores == of_label
    valid = ~scores.isnan().any(1)
    errors = {}
    for k in ks:
        credit = ((k - higher) / tied.sum(1).clamp(min=1)).clamp(0, 1)
        errors[k] = 1 - credit.double().where(valid, 0.0)
    return errors


def label_scores(scores: Tensor, labels: Tensor) -> Tensor:
    """The score of each image's label [N], or the highest of its labels [N, R]: [N]."""
    return scores.gather(1, labels if labels.ndim == 2 else labels[:, None]).amax(1)


@dataclass(frozen=True)
class ErrorCounts:
    """Error counts over a split, equal on every rank; ties may make them fractional."""

    pictures: int  # images evaluated
    top1_errors: float
    top5_errors: float
    loss: float  # mean cross-entropy of the averaged probabilities, nats
    classes: int

    @property
    def top1_error_pct(self) -> float:
        return 100 * self.top1_errors / self.pictures

    @property
    def top5_error_pct(self) -> float:
        return 100 * self.top5_errors / self.pictures

    @property
    def has_top5(self) -> bool:
        """Whether a top-5 error means anything: of fewer than six classes it is always 0."""
        return self.classes > TOP_K

    def summary(self) -> dict[str, float]:
        rates = {"top1_error_pct": self.top1_error_pct, "top5_error_pct": self.top5_error_pct}
        return {**asdict(self), **rates}
