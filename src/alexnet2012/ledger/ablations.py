"""Ablations: runs without one component, compared with the baseline seed by seed.

Reads the sweeps of ``conf/experiment/ablations`` and ``conf/experiment/lrn_cifar10``, whose run
directories are ``ABLATION/SEED``. Runs with the same seed share initial weights, data order and
crops, so differences are paired; the verdict follows from their 95% interval alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from alexnet2012.checkpoint.run_dir import with_defaults
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger.claims import (
    Claim,
    How,
    Measurement,
    ablations_of,
    direction,
    effect_claims,
    load_claims,
    support_word,
)
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Ablation, Arm, Effect
from alexnet2012.ledger.statistics import SeedMean
from alexnet2012.ledger.training_runs import read_summary
from alexnet2012.tracking.tracker import read_records

BASELINE = "none"
METRICS = ("top1_error_pct", "top5_error_pct", "train_error_pct")
# Settings that an ablation, its seed or the machine may change; all others must match in a sweep.
_MAY_DIFFER = (Role.variant, Role.placement, Role.world_size, Role.logging)


@dataclass(frozen=True)
class Result:
    settings: dict[str, Any]
    errors: dict[str, float]  # by metric, per cent
    commit: str = ""  # of the code that ran; later code may have continued the sweep
    train_errors: Sequence[float] = ()  # per cent, by epoch


Sweep = dict[str, dict[int, Result]]  # by ablation and seed


def read_sweep(directory: Path, seeds: Sequence[int] | None = None) -> Sweep:
    """The finished runs of a sweep by ablation and seed; ``seeds`` selects some."""
    runs: Sweep = {}
    for summary in sorted(directory.glob("*/*/summary.json")):
        result = _read(summary.parent)
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


def read_claimed(directory: Path, sweep: str, seeds: Sequence[int] | None = None) -> Sweep:
    """The runs of a sweep that its claims need: the baseline and their ablations."""
    runs = read_sweep(directory, seeds)
    return {name: runs[name] for name in (BASELINE, *ablations_of(sweep)) if name in runs}


def effects(runs: Sweep) -> list[Effect]:
    """For each ablation and metric, the mean of (ablation - baseline) over their common seeds."""
    rows = []
    for ablation in sorted(runs.keys() - {BASELINE}):
        seeds = sorted(runs[ablation].keys() & runs[BASELINE].keys())
        for metric in METRICS if seeds else ():
            without, base = (
                [runs[name][seed].errors[metric] for seed in seeds] for name in (ablation, BASELINE)
            )
            difference = SeedMean.of([a - b for a, b in zip(without, base, strict=True)])
            rows.append(
                Effect(
                    arm=ablation,
                    metric=metric,
                    seeds=seeds,
                    mean_points=difference.mean,
                    interval_points=difference.interval,
                    base_mean_pct=sum(base) / len(base),
                )
            )
    return rows


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


def supports(effect: Effect) -> bool | None:
    """Whether the ablation raises the error: True, False if it lowers it, None: inconclusive."""
    return direction(effect["interval_points"], len(effect["seeds"]))


for _sweep in ("ablations", "lrn_cifar10"):

    @measures(*(claim.id for claim in effect_claims(_sweep)), part=_sweep)
    def sweep_measurements(
        directory: Path, *how: *How, only: Sequence[int] | None = None, sweep: str = _sweep
    ) -> list[Measurement]:
        """A measurement for each claim of a sweep whose ablations are in it."""
        return effect_measurements(effects(read_claimed(directory, sweep, only)), *how)


def effect_measurements(rows: Sequence[Effect], *how: *How) -> list[Measurement]:
    """A measurement for each claim whose ablations are among the effects."""
    measurements = []
    for claim in load_claims():
        if claim.effect is None:
            continue
        of_claim = [
            effect
            for ablation in claim.effect.arms
            for effect in rows
            if effect["arm"] == ablation and effect["metric"] == claim.effect.metric
        ]
        if len(of_claim) == len(claim.effect.arms):
            measurements.append(_measurement(claim, of_claim, *how))
    return measurements


def describe(runs: Sweep) -> str:
    """The network and its training in one line."""
    settings = next(iter(runs[BASELINE].values())).settings
    model, epochs = settings["model"], settings["schedule"]["epochs"]
    network = f"recipe {settings['recipe']['name']}, width {model['width']:g}"
    return f"{network}, {model['input_size']} pixels, {epochs} epochs"


def effect_table(rows: Sequence[Effect]) -> Table:
    """Mean differences with their intervals, one row per ablation."""
    table = Table(title="ablation minus baseline, points of error (95% interval over seeds)")
    for heading in ("ablation", "seeds", "top-1", "top-5", "training"):
        table.add_column(heading, justify="right")
    for ablation in dict.fromkeys(effect["arm"] for effect in rows):
        by_metric = {effect["metric"]: effect for effect in rows if effect["arm"] == ablation}
        cells = [_with_interval(by_metric[metric]) for metric in METRICS]
        table.add_row(ablation, str(len(by_metric[METRICS[0]]["seeds"])), *cells)
    return table


def _check_comparable(result: Result, baseline: Result, name: str, directory: Path) -> None:
    settings, expected = with_defaults(result.settings), with_defaults(baseline.settings)
    for key in sorted(settings.keys() | expected.keys()):
        differs = settings.get(key) != expected.get(key)
        if differs and role_of(TrainConfig, key) not in _MAY_DIFFER:
            remedy = f"run {name} differs from {BASELINE} in `{key}`; retrain it"
            raise ConfigError("runs", directory, remedy)


def _measurement(claim: Claim, of_claim: list[Effect], *how: *How) -> Measurement:
    assert claim.effect is not None
    metric = claim.effect.metric
    metric_name = {"top1_error_pct": "top-1", "train_error_pct": "training error"}[metric]
    verdicts = [supports(effect) for effect in of_claim]
    # Several ablations of one claim agree only together; one that lowers the error contradicts it.
    agrees = verdicts[0] if len(set(verdicts)) == 1 else (False if False in verdicts else None)
    first = of_claim[0]
    n_seeds = min(len(effect["seeds"]) for effect in of_claim)
    claimed = claim.effect.claimed_points
    value = "; ".join(f"{e['arm']}: {_with_interval(e)} points {metric_name}" for e in of_claim)
    if len(of_claim) == 1:
        base = first["base_mean_pct"]
        value += f": {base + first['mean_points']:.2f} against {base:.2f}"
    note = f"; {claim.effect.source} reports {claimed:+.2f} points" if claimed is not None else ""
    return Measurement(
        claim.id,
        value,
        *how,
        numbers={f"{e['arm']}_{metric}_points": e["mean_points"] for e in of_claim},
        n_seeds=n_seeds,
        interval=first["interval_points"] if len(of_claim) == 1 else None,
        agrees=agrees,
        agreement_note=f"{support_word(agrees)} by {n_seeds} paired seeds{note}",
    )


def _with_interval(effect: Effect) -> str:
    return str(SeedMean(effect["mean_points"], effect["interval_points"], len(effect["seeds"])))


def _read(run_dir: Path) -> Result:
    settings: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    summary = read_summary(run_dir)
    epochs = [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "epoch"]
    return Result(
        settings=settings,
        errors={
            "top1_error_pct": summary["top1_error_pct"],
            "top5_error_pct": summary["top5_error_pct"],
            "train_error_pct": epochs[-1]["train_error_pct"],
        },
        commit=summary.get("commit", "unknown"),
        train_errors=[record["train_error_pct"] for record in epochs],
    )
