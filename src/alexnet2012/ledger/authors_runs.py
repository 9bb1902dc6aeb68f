"""The authors' own runs: how much their results vary, and what their comparisons mean beside that.

``authors_runs.yaml`` holds the errors from the notes of the 2012 code. A difference of two single
runs varies √2 times as much as one run does.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

from omegaconf import OmegaConf


@dataclass(frozen=True)
class AuthorsRun:
    """One run; errors in per cent, ten views averaged."""

    run: str
    file: str  # of the folder layers
    images: int  # the edition: 2009 (Fall release), 2010 or 2012 (ILSVRC)
    change: str
    top1: float
    top5: float
    one_view: float | None = None  # top-1
    repeat: bool = False  # of definition 145: these runs give the spread
    against: str | None = None  # the run that it is compared with


@dataclass(frozen=True)
class Spread:
    """Mean and standard deviation of n runs, in per cent and points."""

    mean: float
    sd: float
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(fmean(values), stdev(values), len(values))

    @property
    def sd_of_difference(self) -> float:
        """Standard deviation of the difference of two independent runs."""
        return math.sqrt(2) * self.sd


@cache
def load_authors_runs() -> tuple[AuthorsRun, ...]:
    """The runs of authors_runs.yaml, in file order."""
    file = Path(__file__).with_name("authors_runs.yaml")
    content: Any = OmegaConf.to_container(OmegaConf.load(file))
    return tuple(AuthorsRun(**entry) for entry in content["runs"])


def top1_spread(runs: Sequence[AuthorsRun]) -> Spread:
    """Of the top-1 errors of the repeats."""
    return Spread.of([run.top1 for run in runs if run.repeat])


def ten_view_gain(runs: Sequence[AuthorsRun]) -> Spread:
    """Top-1 points that ten views gain over the centre view, among the repeats that note both."""
    return Spread.of([r.one_view - r.top1 for r in runs if r.repeat and r.one_view is not None])


def difference(run: AuthorsRun, runs: Sequence[AuthorsRun]) -> float | None:
    """Top-1 points above the run that it is compared with; None if there is none."""
    return next((run.top1 - other.top1 for other in runs if other.run == run.against), None)


def authors_rows() -> list[dict[str, str]]:
    """The runs as the cells of a table, by column."""
    runs = load_authors_runs()
    sd = top1_spread(runs).sd_of_difference
    rows = []
    for run in runs:
        points = difference(run, runs)
        rows.append(
            {
                "run": f"#{run.run}",
                "what differs": run.change,
                "images": str(run.images),
                "top-1 / top-5": f"{run.top1:.2f} / {run.top5:.2f}",
                "points top-1": "" if points is None else f"{points:+z.2f} to #{run.against}",
                "in SDs": "" if points is None else f"{points / sd:+z.1f}",
                "file": run.file,
            }
        )
    return rows


def authors_summary() -> str:
    """The spread of the repeats, in two sentences."""
    runs = load_authors_runs()
    errors, gain = top1_spread(runs), ten_view_gain(runs)
    return (
        f"{errors.n} runs of definition 145, of which #145 is the paper's, have a mean top-1 error "
        f"of {errors.mean:.2f} and a standard deviation of {errors.sd:.2f}; a difference of two "
        f"single runs has one of {errors.sd_of_difference:.2f}, the unit of the table. Ten views "
        f"gain {gain.mean:.2f} points over the centre view (standard deviation {gain.sd:.2f}, "
        f"{gain.n} runs)."
    )


def authors_table() -> str:
    """The runs as a Markdown table, after the summary."""
    rows = authors_rows()
    lines = [f"| {' | '.join(rows[0])} |", "|---|---|---|---|--:|--:|---|"]
    lines += [f"| {' | '.join(row.values())} |" for row in rows]
    return "\n".join([authors_summary(), "", *lines])
