"""``alexnet2012 ledger design EXPERIMENT …``: the power of a sweep, before anything runs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.table import Table

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale, effect_claims
from alexnet2012.ledger.evidence import Sweep, read_run
from alexnet2012.ledger.measurements.ablations import BASELINE
from alexnet2012.ledger.registry import measure
from alexnet2012.ledger.statistics import (
    ENOUGH_POWER,
    MIN_SEEDS,
    Design,
    expected_level,
    joint_power,
    seeds_needed,
)
from alexnet2012.ledger.sweeps import PRETRAINING_ARMS, arms_of

SETTINGS = {
    "seeds": "seeds of each arm",
    "control": "seeds of the baseline; default: those of an arm times √arms",
    "pilot": "directory of finished runs, which give the standard deviation of a seed",
    "sd": "standard deviation of a seed in points, without a pilot",
    "image_se": "standard error in points from the choice of images, without a pilot; default 0",
    "minutes": "minutes per run; default: those of the pilot's runs",
}


@dataclass(frozen=True)
class Pilot:
    """What finished runs say about later ones."""

    seed_sd: Mapping[str, float] = field(default_factory=dict)  # by metric, pooled over arms
    measurements: Sequence[Measurement] = ()  # of claims that the runs measure
    minutes: float | None = None  # per run

    def image_se(self, claim: str, metric: str) -> float:
        """That of the claim, or else the largest of the metric."""
        estimates = [(m.claim, e) for m in self.measurements for e in m.estimates]
        same = [e.design.image_se for name, e in estimates if name == claim]
        return max(same or [e.design.image_se for _, e in estimates if e.metric == metric] or [0.0])


@dataclass(frozen=True)
class Planned:
    """One claim of a planned sweep."""

    claim: str
    arms: int
    size: float  # points
    claimed: bool  # the size is the source's; otherwise the smallest effect of interest
    designs: list[Design]  # one per arm


def read_pilot(directory: Path, part: str) -> Pilot:
    """Standard deviations, estimates and minutes of the finished runs in a directory.

    Raises:
        ConfigError: there are fewer than two runs of any arm.
    """
    run_dirs = [file.parent for file in sorted(directory.glob("*/*/summary.json"))]
    runs: Sweep = {}
    for run_dir in run_dirs:
        result = read_run(run_dir)
        runs.setdefault(run_dir.parent.name, {})[result.settings["seed"]] = result
    pooled: dict[str, tuple[float, int]] = {}
    for by_seed in runs.values():
        for metric in next(iter(by_seed.values())).errors:
            values = [run.errors[metric] for run in by_seed.values() if metric in run.errors]
            squares, df = pooled.get(metric, (0.0, 0))
            pooled[metric] = squares + len(values) * float(np.var(values)), df + len(values) - 1
    sds = {metric: (squares / df) ** 0.5 for metric, (squares, df) in pooled.items() if df}
    if not sds:
        remedy = "contains no arm with two finished runs, ARM/SEED; train them, or set sd=…"
        raise ConfigError("pilot", directory, remedy)
    checkpoints = all((run / "checkpoints").is_dir() for run in run_dirs)
    how = (Scale.reduced, "pilot", "pilot")
    measurements: list[Measurement] = []
    if BASELINE in runs:
        measurements = measure(part, directory, *how, evaluate=checkpoints)
    took_s = (
        (run / "summary.json").stat().st_mtime - (run / "config.yaml").stat().st_mtime
        for run in run_dirs
    )
    return Pilot(sds, measurements, median(took_s) / 60)


def plan_sweep(part: str, seeds: int, control: int, pilot: Pilot) -> list[Planned]:
    """The designs of the claims of a part that the pilot has the metrics of."""
    planned = []
    for claim in effect_claims(part):
        assert claim.effect is not None
        effect = claim.effect
        sd = pilot.seed_sd.get(effect.metric)
        if sd is None:
            continue
        design = Design(seeds, sd, control, sd, pilot.image_se(claim.id, effect.metric))
        claimed = effect.claimed_points
        size = effect.smallest_points if claimed is None else claimed
        arms = len(effect.arms)
        planned.append(Planned(claim.id, arms, size, claimed is not None, [design] * arms))
    done = {claim.claim for claim in planned}
    for m in pilot.measurements:
        if m.claim not in done and m.estimates and m.estimates[0].measurable:
            first = m.estimates[0]
            # Differences within the baseline's runs have its seeds, and no control.
            within = first.design.control_seeds == 0
            own = max(1, control // first.networks) if within else seeds
            design = first.design.with_seeds(own, control)
            planned.append(
                Planned(
                    m.claim, 0 if within else 1, first.size, first.claimed is not None, [design]
                )
            )
    return planned


def design_table(planned: Sequence[Planned], minutes: float | None) -> Table:
    """Power and seeds of each claim, at the level at which the ledger is expected to test."""
    level = expected_level([(claim.designs, claim.size) for claim in planned])
    table = Table(
        box=SIMPLE_HEAD,
        title=f"power at the claimed size, at a two-sided level of {level:.4f}",
        caption="level: Benjamini–Hochberg over these claims, if all are true; SD: of a seed; SE: "
        "from the choice of images, both in points; seeds: of an arm / of the control; ↓ less than "
        "80%; * no claimed size: the smallest effect of interest",
    )
    for heading in ("claim", "size", "SD", "SE", "seeds", "power", "for 80%", "min"):
        table.add_column(heading, justify="right", no_wrap=True)
    for claim in planned:
        design = claim.designs[0]
        power = joint_power(claim.designs, claim.size, level)
        needed = seeds_needed(claim.designs, claim.size, level)
        ratio = design.control_seeds / design.seeds
        total = None
        if needed is not None and minutes is not None:
            total = needed * max(claim.arms, 1) + np.ceil(needed * ratio)
        table.add_row(
            claim.claim,
            f"{claim.size:.2f}{' ' if claim.claimed else '*'}",
            f"{design.seed_sd:.2f}",
            f"{design.image_se:.2f}",
            f"{design.seeds} / {design.control_seeds or '–'}",
            f"{100 * power:.0f}%{' ' if power >= ENOUGH_POWER else '↓'}",
            "–" if needed is None else f"{needed} seeds",
            "–" if total is None or minutes is None else f"{total * minutes:.0f}",
        )
    return table


def cost_line(part: str, seeds: int, control: int, minutes: float | None) -> str:
    """Runs and hours of the whole sweep."""
    arms = _arms(part)
    runs = arms * seeds + control
    hours = "" if minutes is None else f", {runs * minutes / 60:.1f} hours at {minutes:g} minutes"
    return f"{arms} arms of {seeds} seeds and {control} of `{BASELINE}`: {runs} runs{hours}"


def design(words: Sequence[str]) -> tuple[Table, str]:
    """The table and the cost of ``EXPERIMENT KEY=VALUE …``."""
    experiments = [word for word in words if "=" not in word]
    if len(experiments) != 1:
        raise ConfigError("EXPERIMENT", " ".join(experiments), "give one, as ablations/reduced")
    part = _part_of(experiments[0])
    given = dict(word.split("=", 1) for word in words if "=" in word)
    if unknown := sorted(given.keys() - SETTINGS.keys()):
        raise ConfigError(unknown[0], given[unknown[0]], f"must be one of {', '.join(SETTINGS)}")
    seeds = int(_number("seeds", given.get("seeds", "5"), MIN_SEEDS))
    default = round(seeds * _arms(part) ** 0.5)
    control = int(_number("control", given.get("control", str(default)), MIN_SEEDS))
    if "pilot" in given:
        pilot = read_pilot(Path(given["pilot"]), part)
    elif "sd" in given:
        sd = _number("sd", given["sd"], 0)
        metrics = {c.effect.metric for c in effect_claims(part) if c.effect}
        pilot = Pilot(dict.fromkeys(metrics, sd))
    else:
        raise ConfigError("pilot", "", "is missing; give finished runs, or sd=… in points")
    minutes = _number("minutes", given["minutes"], 0) if "minutes" in given else pilot.minutes
    planned = plan_sweep(part, seeds, control, pilot)
    if "image_se" in given:
        se = _number("image_se", given["image_se"], 0)
        planned = [
            replace(claim, designs=[replace(d, image_se=se) for d in claim.designs])
            for claim in planned
        ]
    return design_table(planned, minutes), cost_line(part, seeds, control, minutes)


def _part_of(experiment: str) -> str:
    """The part of the reproduction of an experiment, or of its file in conf/experiment."""
    path = Path(experiment)
    name = path.parent.name if path.suffix == ".yaml" else experiment.split("/")[0]
    if not effect_claims(name) and name != "pretrain":
        remedy = "has no claims about ablations; give ablations/…, lrn_cifar10/… or pretrain/…"
        raise ConfigError("EXPERIMENT", experiment, remedy)
    return name


def _arms(part: str) -> int:
    """The arms of a part, without the control."""
    return len(PRETRAINING_ARMS) - 1 if part == "pretrain" else len(arms_of(part))


def _number(name: str, text: str, low: float) -> float:
    try:
        value = float(text)
    except ValueError:
        raise ConfigError(name, text, "must be a number") from None
    if not value >= low:
        raise ConfigError(name, text, f"must be at least {low:g}")
    return value
