"""Means over the paired seeds of a sweep, whose run directories are ``ABLATION/SEED``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet2012.ledger.claims import direction
from alexnet2012.utils.intervals import mean_interval


@dataclass(frozen=True)
class SeedMean:
    """Mean of one value per seed, with its 95% interval; None for a single seed."""

    mean: float
    interval: tuple[float, float] | None
    n_seeds: int

    @classmethod
    def of(cls, values: Sequence[float]) -> SeedMean:
        """The mean with Student's interval."""
        mean, low, high = mean_interval(values)
        return cls(mean, None if low is None or high is None else (low, high), len(values))

    @property
    def above_zero(self) -> bool | None:
        """See :func:`alexnet2012.ledger.claims.direction`."""
        return direction(self.interval, self.n_seeds)

    def __str__(self) -> str:
        interval = self.interval
        bounds = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
        return f"{self.mean:+.2f}{bounds}"


def finished_runs(
    directory: Path, ablation: str, only: Sequence[int] | None = None
) -> dict[int, Path]:
    """Directories of an ablation's finished runs by seed; ``only`` selects seeds."""
    return {
        int(summary.parent.name): summary.parent
        for summary in sorted((directory / ablation).glob("*/summary.json"))
        if summary.parent.name.isdigit() and (only is None or int(summary.parent.name) in only)
    }
