"""What each choice of the paper is worth: runs without it, seed by seed against runs with it.

Reads a sweep of ``conf/experiment/effects``: one folder an ablation, one in it for each seed. The
differences are paired, for seeds share initial values, order and crops; what is said of a claim
follows from their 95% interval alone. ``python -m alexnet2012.effects DIR`` prints the table.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from alexnet2012.checkpoint.run_dir import flatten
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger.claims import (
    Claim,
    Measurement,
    Scale,
    direction,
    load_claims,
    support_word,
)
from alexnet2012.ledger.results import Ablation, Arm, Effect
from alexnet2012.ledger.statistics import PairedDifference
from alexnet2012.tracking.tracker import read_records

BASE = "none"
METRICS = ("top1_error_pct", "top5_error_pct", "train_error_pct")
# Settings that an ablation, its seed or the machine may change; all others must match in a sweep.
_MAY_DIFFER = (Role.variant, Role.placement, Role.world_size, Role.logging)


@dataclass(frozen=True)
class Result:
    """How one run ended."""

    settings: dict[str, Any]
    errors: dict[str, float]  # by metric, per cent
    commit: str = ""  # of the code that ran; a sweep may be taken up by later code
    train_errors: Sequence[float] = ()  # per cent, of each epoch


Sweep = dict[str, dict[int, Result]]  # by ablation and seed


def read_sweep(directory: Path, seeds: Sequence[int] | None = None) -> Sweep:
    """The finished runs of a sweep, of all seeds or of some, by ablation and seed.

    Raises:
        ConfigError: none is there, or they differ in more than an ablation.
    """
    runs: Sweep = {}
    for summary in sorted(directory.glob("*/*/summary.json")):
        result = _read(summary.parent)
        if seeds is not None and result.settings["seed"] not in seeds:
            continue
        runs.setdefault(summary.parent.parent.name, {})[result.settings["seed"]] = result
    if BASE not in runs:
        remedy = f"holds no finished run of ablation={BASE}; see conf/experiment/effects"
        raise ConfigError("runs", directory, remedy)
    first = next(iter(runs[BASE].values()))
    for arm, results in runs.items():
        for seed, result in results.items():
            settings, base = flatten(result.settings), flatten(first.settings)
            for key in sorted(settings.keys() | base.keys()):
                may_differ = role_of(TrainConfig, key) in _MAY_DIFFER
                if not may_differ and settings.get(key) != base.get(key):
                    remedy = f"run {arm}/{seed} has other settings of `{key}` than {BASE}; "
                    raise ConfigError("runs", directory, f"{remedy}compare like with like")
    return runs


def effects(runs: Sweep) -> list[Effect]:
    """For each ablation and metric the mean of (without - with) over the seeds of both."""
    found = []
    for arm in sorted(runs.keys() - {BASE}):
        seeds = sorted(runs[arm].keys() & runs[BASE].keys())
        for metric in METRICS if seeds else ():
            pairs = [(runs[arm][s].errors[metric], runs[BASE][s].errors[metric]) for s in seeds]
            difference = PairedDifference.of([without - base for without, base in pairs])
            found.append(
                Effect(
                    arm=arm,
                    metric=metric,
                    seeds=seeds,
                    mean_points=difference.mean,
                    interval_points=difference.interval,
                    base_mean_pct=sum(base for _, base in pairs) / len(pairs),
                )
            )
    return found


def learning_curves(runs: Sweep) -> dict[str, list[float]]:
    """Training error of each epoch, per cent, mean over the seeds, by ablation."""
    return {
        arm: [
            fmean(errors)
            for errors in zip(*(r.train_errors for r in results.values()), strict=True)
        ]
        for arm, results in runs.items()
    }


def ablation(runs: Sweep, name: str, title: str, command: str) -> Ablation:
    """A whole sweep as one comparison: learning curves, and errors at the end, means over seeds."""
    curves = learning_curves({BASE: runs[BASE], **runs})
    return Ablation(
        name=name,
        title=title,
        arms=[
            Arm(
                label=arm,
                epochs=[float(i + 1) for i in range(len(curve))],
                train_error_pct=curve,
                top1_error_pct=fmean(r.errors["top1_error_pct"] for r in runs[arm].values()),
            )
            for arm, curve in curves.items()
        ],
        n_seeds=min(len(results) for results in runs.values()),
        note=f"{described(runs)}.",
        command=command,
    )


def supports(effect: Effect) -> bool | None:
    """Whether leaving the thing out costs: True, False where it helps, None: cannot tell."""
    return direction(effect["interval_points"], len(effect["seeds"]))


def effect_measurements(
    found: Sequence[Effect], scale: Scale, caveat: str | None, command: str
) -> list[Measurement]:
    """A measurement for each claim whose ablations have run."""
    measurements = []
    for claim in load_claims():
        if claim.effect is None:
            continue
        chosen = [
            effect
            for arm in claim.effect.arms
            for effect in found
            if effect["arm"] == arm and effect["metric"] == claim.effect.metric
        ]
        if len(chosen) == len(claim.effect.arms):
            measurements.append(_measurement(claim, chosen, scale, caveat, command))
    return measurements


def described(runs: Sweep) -> str:
    """The net and its training, in one line."""
    settings = next(iter(runs[BASE].values())).settings
    model, schedule = settings["model"], settings["schedule"]
    return (
        f"recipe {settings['recipe']['name']}, width {model['width']:g}, "
        f"{model['input_size']} pixels, {schedule['epochs']} epochs"
    )


def effect_table(found: Sequence[Effect]) -> Table:
    """Mean differences with their intervals, a line an ablation."""
    table = Table(title="without it, minus with it: points of error (95% interval over seeds)")
    for heading in ("ablation", "seeds", "top-1", "top-5", "training"):
        table.add_column(heading, justify="right")
    for arm in dict.fromkeys(effect["arm"] for effect in found):
        of_arm = {effect["metric"]: effect for effect in found if effect["arm"] == arm}
        cells = [_with_interval(of_arm[metric]) for metric in METRICS]
        table.add_row(arm, str(len(of_arm[METRICS[0]]["seeds"])), *cells)
    return table


def _measurement(
    claim: Claim, chosen: list[Effect], scale: Scale, caveat: str | None, command: str
) -> Measurement:
    assert claim.effect is not None
    metric = claim.effect.metric
    words = {"top1_error_pct": "top-1", "train_error_pct": "training error"}[metric]
    says = [supports(effect) for effect in chosen]
    agrees = says[0] if len(set(says)) == 1 else (False if False in says else None)
    first = chosen[0]
    n_seeds = min(len(effect["seeds"]) for effect in chosen)
    claimed = claim.effect.claimed_points
    value = "; ".join(f"{e['arm']}: {_with_interval(e)} points {words}" for e in chosen)
    if len(chosen) == 1:
        base = first["base_mean_pct"]
        value += f": {base + first['mean_points']:.2f} against {base:.2f}"
    note = f"{claim.effect.source} has {claimed:+.2f} points" if claimed is not None else ""
    return Measurement(
        claim=claim.id,
        value=value,
        scale=scale,
        command=command,
        numbers={f"{e['arm']}_{metric}_points": e["mean_points"] for e in chosen},
        caveat=caveat,
        n_seeds=n_seeds,
        interval=first["interval_points"] if len(chosen) == 1 else None,
        agrees=agrees,
        agreement_note=f"{support_word(agrees)} by {n_seeds} paired seeds"
        + (f"; {note}" if note else ""),
    )


def _with_interval(effect: Effect) -> str:
    return str(
        PairedDifference(effect["mean_points"], effect["interval_points"], len(effect["seeds"]))
    )


def _read(run_dir: Path) -> Result:
    settings = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    assert isinstance(settings, dict)
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    epochs = [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "epoch"]
    return Result(
        settings={str(key): value for key, value in settings.items()},
        errors={
            "top1_error_pct": summary["top1_error_pct"],
            "top5_error_pct": summary["top5_error_pct"],
            "train_error_pct": epochs[-1]["train_error_pct"],
        },
        commit=summary.get("commit", "unknown"),
        train_errors=[record["train_error_pct"] for record in epochs],
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet2012.effects",
        description="Print what each ablation of a sweep costs, seed by seed against none.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="of ABLATION/SEED/summary.json")
    arguments = parser.parse_args()
    try:
        runs = read_sweep(arguments.directory)
    except ConfigError as error:
        parser.error(str(error))
    Console().print(effect_table(effects(runs)))
    Console().print(described(runs), style="dim")


if __name__ == "__main__":
    main()
