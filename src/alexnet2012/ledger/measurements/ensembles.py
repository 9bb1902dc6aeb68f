"""Claims measured with the trained networks of several seeds: views and ensembles.

Reads the checkpoints of ablation ``none`` in a sweep of ``conf/experiment/ablations``. What their
evaluation gives is kept in a file of the sweep's directory.

Shapes: S networks, N images.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean

import numpy as np
import numpy.typing as npt

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.inference.evaluate import evaluate_images
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.evidence import Result, Sweep, image_matrices, result_of
from alexnet2012.ledger.measurements.ablations import BASELINE
from alexnet2012.ledger.measurements.nearest_neighbours import (
    FROM_SAMPLE,
    figure4,
    neighbours_measurements,
)
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.statistics import (
    Estimate,
    Matrix,
    finished_runs,
    within_runs,
)
from alexnet2012.training import image_errors

FILE = "evaluations.npz"  # in the directory of a sweep
# Arms of the evidence: single networks by seed, and averages of five by their lowest seed.
ONE_VIEW, TEN_VIEWS, ENSEMBLE = "1 view", "10 views", "ensemble"
TOGETHER = 5  # networks whose probabilities are averaged; table 2
TOP1 = "top1_error_pct"
CLAIMED_OF_VIEWS = 1.5  # points: 39.0 against 37.5; sec. 4.1
CLAIMED_OF_FIVE = 2.6  # points: 40.7 against 38.1 of five networks; table 2

Array = npt.NDArray[np.generic]


def baseline_runs(directory: Path, only: Sequence[int] | None = None) -> dict[int, Path]:
    """Finished runs of a sweep's baseline by seed; ConfigError if there are none."""
    runs = finished_runs(directory, BASELINE, only)
    if not runs:
        remedy = f"contains no finished run of ablation={BASELINE}; see conf/experiment/ablations"
        raise ConfigError("runs", directory, remedy)
    return runs


def evaluate_seeds(directory: Path, only: Sequence[int] | None = None) -> Sweep:
    """Errors of the baseline's networks with 1 and 10 views, and of averages of five networks.

    What a previous call wrote is read if the runs are the same.
    """
    runs = baseline_runs(directory, only)
    summaries = b"".join((run / "summary.json").read_bytes() for run in runs.values())
    source = hashlib.sha256(repr(sorted(runs)).encode() + summaries).hexdigest()
    file = directory / FILE
    if file.is_file():
        with np.load(file, allow_pickle=False) as saved:
            if str(saved["source"]) == source:
                return _unpacked({name: saved[name] for name in saved.files})
    arrays: dict[str, Array] = {"source": np.array(source)}

    def evaluate(arm: str, seed: int, networks: Sequence[Path], views: int = 10) -> None:
        config = EvaluateConfig(checkpoint=[str(run) for run in networks], views=views)
        for name, array in evaluate_images(config)[1].arrays().items():
            arrays[f"{arm}/{seed}/{name}"] = array

    for seed, run in runs.items():
        evaluate(ONE_VIEW, seed, [run], views=1)
        evaluate(TEN_VIEWS, seed, [run])
    for seeds in groups(list(runs)):
        evaluate(ENSEMBLE, seeds[0], [runs[seed] for seed in seeds])
    image_errors.save(file, arrays)
    return _unpacked(arrays)


def groups(seeds: Sequence[int]) -> list[list[int]]:
    """Disjoint groups of five seeds, in order; fewer than five are one group, one alone is none."""
    ordered, size = sorted(seeds), min(len(seeds), TOGETHER)
    starts = range(0, len(ordered) - size + 1, size) if size > 1 else ()
    return [ordered[start : start + size] for start in starts]


@measures("lsvrc2010-1crop", "table2", part="ablations", evaluates=True, sweep="views")
def seed_measurements(
    evidence: Path | Sweep, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """Views and ensemble, from a sweep's checkpoints or what :func:`evaluate_seeds` returned.

    ``only`` selects seeds.
    """
    arms = evaluate_seeds(evidence, only) if isinstance(evidence, Path) else evidence
    measurements = [views_measurement(arms[ONE_VIEW], arms[TEN_VIEWS], *how)]
    if ENSEMBLE in arms:
        measurements.append(ensemble_measurement(arms[TEN_VIEWS], arms[ENSEMBLE], *how))
    return measurements


def views_measurement(
    one_view: Mapping[int, Result], ten_views: Mapping[int, Result], *how: *How
) -> Measurement:
    """Compare one view with ten views of the same networks."""
    one, ten = (_in_order(runs) for runs in (one_view, ten_views))
    gains = [a.errors[TOP1] - b.errors[TOP1] for a, b in zip(one, ten, strict=True)]
    matrices = [image_matrices(runs, TOP1, "views") for runs in (one, ten)]
    images = matrices[0][0] - matrices[1][0] if all(matrices) else None
    mean, design = within_runs(gains, images)
    gain = Estimate(ONE_VIEW, TOP1, mean, design, _count(images), CLAIMED_OF_VIEWS)
    return Measurement(
        "lsvrc2010-1crop",
        f"one view costs {gain} points top-1: {_mean(one)} with 1 view, {_mean(ten)} with 10",
        *how,
        numbers={"top1_gain_points": gain.mean},
        n_seeds=design.seeds,
        interval=gain.interval,
        agreement_note="the paper reports +1.5 points",
        estimates=(gain,),
    )


def ensemble_measurement(
    single: Mapping[int, Result], together: Mapping[int, Result], *how: *How
) -> Measurement:
    """Compare single networks with the average of their group's probabilities.

    No two groups share a network, so their gains are independent of each other.
    """
    members = [[single[seed] for seed in seeds] for seeds in groups(list(single))]
    averages = _in_order(together)
    gains = [
        fmean(run.errors[TOP1] for run in group) - average.errors[TOP1]
        for group, average in zip(members, averages, strict=True)
    ]
    of_groups = [image_matrices(group, TOP1, ENSEMBLE) for group in members]
    of_averages = image_matrices(averages, TOP1, ENSEMBLE)
    images = None
    if of_averages and all(of_groups):
        images = np.stack([group[0].mean(0) for group in of_groups]) - of_averages[0]
    mean, design = within_runs(gains, images)
    size = len(members[0])
    gain = Estimate(ENSEMBLE, TOP1, mean, design, _count(images), CLAIMED_OF_FIVE, networks=size)
    runs = [run for group in members for run in group]
    several = f"{len(gains)} averages of {size}" if len(gains) > 1 else f"an average of {size}"
    return Measurement(
        "table2",
        f"a single network's error is {gain} points above that of {several}: "
        f"{_mean(runs)} against {_mean(averages)}",
        *how,
        numbers={"top1_gain_points": gain.mean, "nets": size},
        n_seeds=len(runs),
        interval=gain.interval,
        agreement_note="the paper reports +2.6 points for five networks",
        estimates=(gain,),
    )


@measures("fig4", "fig4-pixels", part="ablations", evaluates=True, from_sample=FROM_SAMPLE)
def figure4_of_sweep(
    directory: Path, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """Nearest images of the baseline's first seed."""
    first, *_ = baseline_runs(directory, only).values()
    return neighbours_measurements(figure4(first).neighbours, *how)


def _in_order(runs: Mapping[int, Result]) -> list[Result]:
    return [runs[seed] for seed in sorted(runs)]


def _mean(runs: Sequence[Result]) -> str:
    top1, top5 = (fmean(r.errors[metric] for r in runs) for metric in (TOP1, "top5_error_pct"))
    return f"{top1:.2f} / {top5:.2f}"


def _count(images: Matrix | None) -> int:
    return 0 if images is None else images.shape[1]


def _unpacked(arrays: Mapping[str, Array]) -> Sweep:
    """Arms of the arrays ``ARM/SEED/NAME``."""
    by_run: dict[tuple[str, int], dict[str, Array]] = {}
    for key, array in arrays.items():
        if key != "source":
            arm, seed, name = key.split("/")
            by_run.setdefault((arm, int(seed)), {})[name] = array
    sweep: Sweep = {}
    for (arm_of_run, seed_of_run), found in by_run.items():
        digest = str(found.pop("labels"))
        run = result_of({}, found, labels=dict.fromkeys(found, digest))  # type: ignore[arg-type]
        sweep.setdefault(arm_of_run, {})[seed_of_run] = run
    return sweep
