"""Differences over paired seeds: the runs of a sweep by seed, and what their differences say.

A sweep that can be taken up again has a folder an ablation and in it one for each seed.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale, direction
from alexnet2012.utils.metrics import mean_interval


@dataclass(frozen=True)
class PairedDifference:
    """The mean of differences, a seed each, with its 95% Student interval."""

    mean: float
    interval: tuple[float, float] | None  # None: a single seed
    n_seeds: int

    @classmethod
    def of(cls, differences: Sequence[float]) -> PairedDifference:
        """Raises ValueError without any."""
        mean, low, high = mean_interval(differences)
        interval = None if low is None or high is None else (low, high)
        return cls(mean, interval, len(differences))

    @property
    def above_zero(self) -> bool | None:
        """As :func:`alexnet2012.ledger.claims.direction`."""
        return direction(self.interval, self.n_seeds)

    def __str__(self) -> str:
        around = (
            ""
            if self.interval is None
            else f" ({self.interval[0]:+.1f} to {self.interval[1]:+.1f})"
        )
        return f"{self.mean:+.2f}{around}"


def finished_runs(directory: Path, arm: str, only: Sequence[int] | None = None) -> dict[int, Path]:
    """The directories of an ablation's finished runs, of all seeds or ``only`` of some, by seed."""
    found = {
        int(summary.parent.name): summary.parent
        for summary in sorted((directory / arm).glob("*/summary.json"))
        if summary.parent.name.isdigit()
    }
    return {seed: run for seed, run in found.items() if only is None or seed in only}


def print_measurements(
    module: str,
    description: str,
    measure: Callable[[Path, Scale, str, str], Sequence[Measurement]],
) -> None:
    """The command line of a module that measures claims from a sweep's folder."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    parser.add_argument("directory", type=Path, metavar="DIR", help="of ABLATION/SEED/summary.json")
    arguments = parser.parse_args()
    try:
        found = measure(arguments.directory, Scale.reduced, "as the runs say", "…")
    except ConfigError as error:
        parser.error(str(error))
    for measurement in found:
        Console().print(f"[bold]{measurement.claim}[/]: {measurement.value}")
