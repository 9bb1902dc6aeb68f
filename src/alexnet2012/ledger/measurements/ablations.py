"""Ablations: runs without one component, compared with the baseline.

Reads the sweeps of ``conf/experiment/ablations`` and ``conf/experiment/lrn_cifar10``, whose run
directories are ``ABLATION/SEED``. All seeds of an ablation are compared with all of the baseline,
which may have more.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean

from rich.table import Table

from alexnet2012.checkpoint.run_dir import with_defaults
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger.claims import (
    Claim,
    How,
    Measurement,
    ablations_of,
    effect_claims,
    load_claims,
)
from alexnet2012.ledger.evidence import Result, Sweep, image_matrices, read_run
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Ablation, Arm, Effect
from alexnet2012.ledger.statistics import MIN_SEEDS, Estimate, between_arms

BASELINE = "none"
MAX_NAMED = 5  # ablations in a warning
METRICS = {  # and their names in tables
    "top1_error_pct": "top-1",
    "top5_error_pct": "top-5",
    "train_error_pct": "training error",
    "train_eval_error_pct": "training error, evaluated",
    "gap_points": "validation minus training error",
}
# Settings that an ablation, its seed or the machine may change; all others must match in a sweep.
_MAY_DIFFER = (Role.variant, Role.placement, Role.world_size, Role.logging)


def read_sweep(directory: Path, seeds: Sequence[int] | None = None) -> Sweep:
    """The finished runs of a sweep by ablation and seed; ``seeds`` selects some."""
    runs: Sweep = {}
    for summary in sorted(directory.glob("*/*/summary.json")):
        result = read_run(summary.parent)
        seed = result.settings["seed"]
        if seeds is None or seed in seeds:
            runs.setdefault(summary.parent.parent.name, {})[seed] = result
    if BASELINE not in runs:
        remedy = f"contains no finished run of ablation={BASELINE}; see conf/experiment/ablations"
        raise ConfigError("runs", directory, remedy)
    baseline = next(iter(runs[BASELINE].values()))
    for ablation, results in runs.items():
        for seed, result in results.items():
            _check_comparable(result, baseline, f"{ablation}/{seed}", directory)
    return runs


def read_claimed(evidence: Path | Sweep, sweep: str, seeds: Sequence[int] | None = None) -> Sweep:
    """The runs of a sweep that its claims need: the baseline and their ablations.

    ``evidence`` is the directory of the sweep, or its runs, already read.
    """
    runs = read_sweep(evidence, seeds) if isinstance(evidence, Path) else evidence
    return {name: runs[name] for name in (BASELINE, *ablations_of(sweep)) if name in runs}


def estimate(
    runs: Sweep, arm: str, metric: str, control: str = BASELINE, claim: Claim | None = None
) -> Estimate:
    """Error of an arm's runs minus that of the control's, over all seeds of both."""
    both = [[by_seed[seed] for seed in sorted(by_seed)] for by_seed in (runs[arm], runs[control])]
    of_arm, of_control = ([run.errors[metric] for run in results] for results in both)
    of_images = [image_matrices(results, metric, arm) for results in both]
    if all(of_images):
        image_matrices([*both[0], *both[1]], metric, f"{arm} and {control}")  # on the same images
    mean, design = between_arms(of_arm, of_control, list(zip(*of_images, strict=False)))
    images = len(of_images[0][0][0]) if all(of_images) else 0
    found = Estimate(arm, metric, mean, design, images)
    if claim is None or claim.effect is None:
        return found
    effect = claim.effect
    return replace(found, claimed=effect.claimed_points, smallest=effect.smallest_points)


def effects(runs: Sweep) -> list[Effect]:
    """For each ablation and metric, the mean of its runs minus that of the baseline's."""
    rows = []
    for ablation in sorted(runs.keys() - {BASELINE}):
        everything = [*runs[ablation].values(), *runs[BASELINE].values()]
        for metric in METRICS:
            if not all(metric in run.errors for run in everything):
                continue
            found = estimate(runs, ablation, metric)
            rows.append(
                Effect(
                    arm=ablation,
                    metric=metric,
                    seeds=sorted(runs[ablation]),
                    control_seeds=sorted(runs[BASELINE]),
                    mean_points=found.mean,
                    interval_points=found.interval,
                    base_mean_pct=_mean(runs[BASELINE].values(), metric),
                )
            )
    return rows


def errors_of_baseline(runs: Sweep) -> str:
    """Validation and training error of the baseline, and the gap between them, in one line."""
    base = runs[BASELINE].values()
    if not all("gap_points" in run.errors for run in base):
        return "training error without augmentation and dropout: not evaluated"
    top1, train, gap = (
        _mean(base, metric) for metric in ("top1_error_pct", "train_eval_error_pct", "gap_points")
    )
    return (
        f"{BASELINE}: {top1:.2f}% validation and {train:.2f}% training error, evaluated alike: "
        f"a gap of {gap:.2f} points"
    )


def learning_curves(runs: Sweep) -> dict[str, list[float]]:
    """Training error by epoch, per cent, mean over seeds, by ablation."""
    return {
        ablation: [
            fmean(errors)
            for errors in zip(*(r.train_errors for r in results.values()), strict=True)
        ]
        for ablation, results in runs.items()
    }


def ablation_chart(runs: Sweep, name: str, title: str, command: str) -> Ablation:
    """A sweep as one chart: learning curves and final errors, means over seeds."""
    curves = learning_curves({BASELINE: runs[BASELINE], **runs})
    return Ablation(
        name=name,
        title=title,
        arms=[
            Arm(
                label=ablation,
                epochs=[float(i + 1) for i in range(len(curve))],
                train_error_pct=curve,
                top1_error_pct=fmean(r.errors["top1_error_pct"] for r in runs[ablation].values()),
            )
            for ablation, curve in curves.items()
        ],
        n_seeds=min(len(results) for results in runs.values()),
        note=f"{describe(runs)}.",
        command=command,
    )


for _sweep in ("ablations", "lrn_cifar10"):

    @measures(*(claim.id for claim in effect_claims(_sweep)), part=_sweep, sweep=_sweep)
    def sweep_measurements(
        evidence: Path | Sweep,
        *how: *How,
        only: Sequence[int] | None = None,
        sweep: str = _sweep,
    ) -> list[Measurement]:
        """A measurement for each claim of a sweep whose ablations are in it."""
        return effect_measurements(read_claimed(evidence, sweep, only), *how)


def effect_measurements(runs: Sweep, *how: *How) -> list[Measurement]:
    """A measurement for each claim whose ablations are in the sweep."""
    measurements = []
    for claim in load_claims():
        effect = claim.effect
        if effect is None or not runs.keys() >= {BASELINE, *effect.arms}:
            continue
        needed = [*effect.arms, BASELINE]
        if all(effect.metric in run.errors for arm in needed for run in runs[arm].values()):
            measurements.append(_measurement(claim, runs, *how))
    return measurements


def describe(runs: Sweep) -> str:
    """The network and its training in one line."""
    settings = next(iter(runs[BASELINE].values())).settings
    model = settings["model"]
    network = f"recipe {settings['recipe']['name']}, width {model['width']:g}"
    return f"{network}, {model['input_size']} pixels, {_length(runs)}"


def _length(runs: Sweep) -> str:
    """How long the baseline trained: its epochs, or where it was stopped before their end."""
    baseline = list(runs[BASELINE].values())
    schedule = baseline[0].settings["schedule"]
    planned = schedule["epochs"] * schedule.get("epochs_factor", 1)
    early = [run for run in baseline if run.epochs is not None and run.epochs < planned]
    if not early:
        return f"{planned} epochs"
    first, last = (f(run.steps or 0 for run in early) for f in (min, max))
    steps = f"{first}" if first == last else f"{first} to {last}"
    done = max(run.epochs or 0 for run in early)
    return f"stopped after {steps} steps, with {done} of {planned} epochs finished"


def few_seeds_warning(runs: Sweep) -> str:
    """A warning if an ablation has too few seeds for an interval; empty otherwise."""
    few = sorted(name for name, by_seed in runs.items() if len(by_seed) < MIN_SEEDS)
    if not few:
        return ""
    shown = ", ".join(few[:MAX_NAMED]) + (", …" if len(few) > MAX_NAMED else "")
    return (
        f"warning: fewer than {MIN_SEEDS} seeds of {shown}: no interval can be given, and a "
        "difference may be the chance of a seed"
    )


def effect_table(rows: Sequence[Effect]) -> Table:
    """Mean differences with their intervals, one row per ablation."""
    table = Table(
        title=f"ablation minus {BASELINE}, points (95% interval over seeds and images)",
    )
    table.add_column("ablation", no_wrap=True)
    for heading in ("seeds", *METRICS.values()):
        table.add_column(heading, justify="right")
    for ablation in dict.fromkeys(effect["arm"] for effect in rows):
        by_metric = {effect["metric"]: effect for effect in rows if effect["arm"] == ablation}
        first = next(iter(by_metric.values()))
        cells = [_with_interval(by_metric.get(metric)) for metric in METRICS]
        table.add_row(ablation, seeds_text(len(first["seeds"]), _control_seeds(first)), *cells)
    return table


def seeds_text(seeds: int, control_seeds: int) -> str:
    """``5``, or ``5 and 15`` where the baseline has another number of seeds."""
    return str(seeds) if control_seeds in (0, seeds) else f"{seeds} and {control_seeds}"


def _check_comparable(result: Result, baseline: Result, name: str, directory: Path) -> None:
    settings, expected = with_defaults(result.settings), with_defaults(baseline.settings)
    for key in sorted(settings.keys() | expected.keys()):
        differs = settings.get(key) != expected.get(key)
        if differs and role_of(TrainConfig, key) not in _MAY_DIFFER:
            remedy = (
                f"run {name} differs from the baseline (ablation={BASELINE}) in `{key}`; retrain it"
            )
            raise ConfigError("runs", directory, remedy)


def _measurement(claim: Claim, runs: Sweep, *how: *How) -> Measurement:
    assert claim.effect is not None
    metric = claim.effect.metric
    estimates = tuple(estimate(runs, arm, metric, claim=claim) for arm in claim.effect.arms)
    value = "; ".join(f"{e.arm}: {e} points {METRICS[metric]}" for e in estimates)
    first = estimates[0]
    if len(estimates) == 1:
        base = _mean(runs[BASELINE].values(), metric)
        value += f": {base + first.mean:.2f} against {base:.2f}"
    claimed = claim.effect.claimed_points
    note = "no size" if claimed is None else f"{claimed:+.2f} points"
    return Measurement(
        claim.id,
        value,
        *how,
        numbers={f"{e.arm}_{metric}_points": e.mean for e in estimates},
        n_seeds=min(e.design.seeds for e in estimates),
        interval=first.interval if len(estimates) == 1 else None,
        agreement_note=f"{claim.effect.source} reports {note}",
        estimates=estimates,
    )


def _mean(runs: Iterable[Result], metric: str) -> float:
    return fmean(run.errors[metric] for run in runs)


def _control_seeds(effect: Effect) -> int:
    return len(effect.get("control_seeds", effect["seeds"]))


def _with_interval(effect: Effect | None) -> str:
    if effect is None:
        return "–"
    interval = effect["interval_points"]
    bounds = "" if interval is None else f" ({interval[0]:+.1f} to {interval[1]:+.1f})"
    return f"{effect['mean_points']:+.2f}{bounds}"
