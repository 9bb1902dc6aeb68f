"""Claims measured with the trained networks of several seeds: views and ensembles.

Reads the checkpoints of ablation ``none`` in a sweep of ``conf/experiment/ablations``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.ledger.ablations import BASELINE
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.nearest_neighbours import figure4, neighbours_measurements
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.statistics import SeedMean, finished_runs
from alexnet2012.utils.intervals import jackknife_interval


@dataclass(frozen=True)
class Errors:
    top1: float  # per cent
    top5: float

    def __str__(self) -> str:
        return f"{self.top1:.2f} / {self.top5:.2f}"


def evaluate_ensemble(runs: Sequence[Path], views: int) -> Errors:
    """Validation errors of the runs' averaged probabilities."""
    checkpoints = [str(run) for run in runs]
    counts = evaluate_checkpoints(EvaluateConfig(checkpoint=checkpoints, views=views))
    return Errors(counts.top1_error_pct, counts.top5_error_pct)


def baseline_runs(directory: Path, only: Sequence[int] | None = None) -> dict[int, Path]:
    """Finished runs of a sweep's baseline by seed; ConfigError if there are none."""
    runs = finished_runs(directory, BASELINE, only)
    if not runs:
        remedy = f"contains no finished run of ablation={BASELINE}; see conf/experiment/ablations"
        raise ConfigError("runs", directory, remedy)
    return runs


def views_measurement(
    one_view: Sequence[Errors], ten_views: Sequence[Errors], *how: *How
) -> Measurement:
    """Compare one view with ten views of the same networks."""
    gain = SeedMean.of([a.top1 - b.top1 for a, b in zip(one_view, ten_views, strict=True)])
    return Measurement(
        "lsvrc2010-1crop",
        f"one view costs {gain} points top-1: {_mean(one_view)} with 1 view, "
        f"{_mean(ten_views)} with 10",
        *how,
        numbers={"top1_gain_points": gain.mean},
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="tests whether the error with one view is higher; the paper reports +1.5 "
        "points",
    )


def ensemble_measurement(
    single: Sequence[Errors], ensemble: Errors, leave_one_out: Sequence[Errors], *how: *How
) -> Measurement:
    """Compare single networks with the average of their probabilities, and all but one of them."""
    n = len(single)
    mean = fmean(errors.top1 for errors in single)
    means_of_others = [(n * mean - errors.top1) / (n - 1) for errors in single]
    points = mean - ensemble.top1
    gains = [a - b.top1 for a, b in zip(means_of_others, leave_one_out, strict=True)]
    # All seeds share one ensemble, so its gain has a jackknife interval.
    gain = SeedMean(points, jackknife_interval(points, gains), n)
    return Measurement(
        "table2",
        f"a single network's error is {gain} points above that of an average of {n}: "
        f"{_mean(single)} against {ensemble}",
        *how,
        numbers={"top1_gain_points": gain.mean, "nets": n},
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="tests whether an ensemble has a lower error than its members; the paper "
        "reports 2.6 points for five networks",
    )


@measures("lsvrc2010-1crop", "table2", part="ablations", evaluates=True)
def seed_measurements(
    directory: Path, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """Views and ensemble from a sweep's checkpoints; ``only`` selects seeds.

    An ensemble needs two seeds.
    """
    runs = baseline_runs(directory, only)
    run_dirs = list(runs.values())
    one_view, ten_views = (
        [evaluate_ensemble([run], views) for run in run_dirs] for views in (1, 10)
    )
    measurements = [views_measurement(one_view, ten_views, *how)]
    if len(runs) > 1:
        ensemble = evaluate_ensemble(run_dirs, 10)
        leave_one_out = [
            evaluate_ensemble([run for run in run_dirs if run is not omitted], 10)
            for omitted in run_dirs
        ]
        measurements.append(ensemble_measurement(ten_views, ensemble, leave_one_out, *how))
    return measurements


@measures("fig4", "fig4-pixels", part="ablations", evaluates=True)
def figure4_of_sweep(
    directory: Path, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """Nearest images of the baseline's first seed."""
    first, *_ = baseline_runs(directory, only).values()
    return neighbours_measurements(figure4(first).neighbours, *how)


def _mean(errors: Sequence[Errors]) -> Errors:
    return Errors(fmean(e.top1 for e in errors), fmean(e.top5 for e in errors))
