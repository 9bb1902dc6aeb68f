"""Claims measured with the trained networks of several seeds: views, ensembles and conv1 colours.

Reads the checkpoints of a sweep of ``conf/experiment/ablations``: ``none`` has two towers,
``one_gpu`` a single one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger.ablations import BASELINE
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.statistics import SeedMean, finished_runs
from alexnet2012.utils.intervals import jackknife_interval

WITHOUT_TOWERS = "one_gpu"


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


def colour_measurement(
    with_towers: Sequence[Tensor], without_towers: Sequence[Tensor], *how: *How
) -> Measurement:
    """Compare the colours of both towers' conv1 [K, 3, h, w] with those of halves of one tower."""
    apart, control = (list(map(_colour_gap, nets)) for nets in (with_towers, without_towers))
    gain = SeedMean.of([a - b for a, b in zip(apart, control, strict=True)])
    return Measurement(
        "fig3",
        f"colour shares of the two towers differ by {fmean(apart):.1f} points, those of two "
        f"halves of a single tower by {fmean(control):.1f}: {gain} points more",
        *how,
        numbers={
            "apart_with_towers_points": fmean(apart),
            "apart_without_points": fmean(control),
            "difference_points": gain.mean,
        },
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="tests whether towers differ more in colour than halves of one tower; the "
        "share of colour is a kernel's energy off the grey axis, mean over a tower",
    )


@measures("lsvrc2010-1crop", "table2", "fig3", part="ablations", evaluates=True)
def seed_measurements(
    directory: Path, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """Views, ensemble and colours from a sweep's checkpoints; ``only`` selects seeds.

    An ensemble needs two seeds, the comparison of colours a seed of ``one_gpu`` as well.
    """
    runs = finished_runs(directory, BASELINE, only)
    if not runs:
        remedy = f"contains no finished run of ablation={BASELINE}; see conf/experiment/ablations"
        raise ConfigError("runs", directory, remedy)
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
    control = finished_runs(directory, WITHOUT_TOWERS, only)
    if seeds := sorted(runs.keys() & control.keys()):
        with_towers, without_towers = (
            [_conv1_weight(by_seed[seed]) for seed in seeds] for by_seed in (runs, control)
        )
        measurements.append(colour_measurement(with_towers, without_towers, *how))
    return measurements


def colour_share(kernels: Tensor) -> float:
    """[K, 3, h, w] → mean over kernels of the energy off the grey axis, 0 (grey) to 1."""
    grey = kernels.mean(1, keepdim=True)
    off_axis = (kernels - grey).square().sum((1, 2, 3))
    return float((off_axis / kernels.square().sum((1, 2, 3))).mean())


def _conv1_weight(run: Path) -> Tensor:
    return load_trained(run).model.layers()["conv1"].weight.detach()


def _colour_gap(kernels: Tensor) -> float:
    """Difference in colour share between the two halves of the kernels, in points."""
    first, second = (100 * colour_share(half) for half in kernels.chunk(2))
    return abs(first - second)


def _mean(errors: Sequence[Errors]) -> Errors:
    return Errors(fmean(e.top1 for e in errors), fmean(e.top5 for e in errors))
