"""Statistics over the paired seeds of a sweep.

The run directories of a sweep are ``ABLATION/SEED``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from alexnet2012.ledger.claims import direction
from alexnet2012.utils.metrics import mean_interval


@dataclass(frozen=True)
class PairedDifference:
    """Mean of one difference per seed, with its 95% Student interval."""

    mean: float
    interval: tuple[float, float] | None  # None: a single seed
    n_seeds: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> PairedDifference:
        """Raises ValueError if there are no differences."""
        mean, low, high = mean_interval(differences)
        interval = None if low is None or high is None else (low, high)
        return cls(mean, interval, len(differences))

    @property
    def above_zero(self) -> bool | None:
        """See :func:`alexnet2012.ledger.claims.direction`."""
        return direction(self.interval, self.n_seeds)

    def __str__(self) -> str:
        interval = (
            ""
            if self.interval is None
            else f" ({self.interval[0]:+.1f} to {self.interval[1]:+.1f})"
        )
        return f"{self.mean:+.2f}{interval}"


def finished_runs(
    directory: Path, ablation: str, only: Sequence[int] | None = None
) -> dict[int, Path]:
    """Directories of an ablation's finished runs by seed; ``only`` selects seeds."""
    runs = {
        int(summary.parent.name): summary.parent
        for summary in sorted((directory / ablation).glob("*/summary.json"))
        if summary.parent.name.isdigit()
    }
    return {seed: run for seed, run in runs.items() if only is None or seed in only}
