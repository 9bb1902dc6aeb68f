"""What a directory of runs measures, as tables and verdicts; and the table of all claims."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Kind, Scale, load_claims
from alexnet2012.ledger.measurements import ablations, pretraining
from alexnet2012.ledger.measurements.relu_vs_tanh import Rates, read_runs, relu_table
from alexnet2012.ledger.registry import all_measures, measure
from alexnet2012.ledger.reproduction import PARTS
from alexnet2012.ledger.verdicts import columns, ledger


class SweepRuns(NamedTuple):
    """A sweep on disk: the part of the reproduction that it belongs to, and its tables."""

    part: str
    evidence: Path | Mapping[str, Rates]
    tables: Callable[[], list[Table | str]]
    checkpoints: bool = False  # all baseline runs have one


def find_sweep(directory: Path) -> SweepRuns:
    """Recognise the sweep in a directory by its run directories."""
    names = {file.parent.parent.name for file in directory.glob("*/*/summary.json")}
    if names & ({*pretraining.ABLATIONS} - {ablations.BASELINE}):
        return SweepRuns("pretrain", directory, list)
    if ablations.BASELINE in names:
        part = "lrn_cifar10" if "no_lrn_cifar10" in names else "ablations"
        baseline = (directory / ablations.BASELINE).glob("*/summary.json")
        checkpoints = all((run.parent / "checkpoints").is_dir() for run in baseline)
        return SweepRuns(part, directory, lambda: _ablation_tables(directory), checkpoints)
    run_dirs = [file.parent for file in sorted(directory.rglob("summary.json"))]
    if not run_dirs:
        raise ConfigError("DIR", directory, "contains no finished runs; give a sweep's directory")
    activations = read_runs(run_dirs)
    return SweepRuns("relu", activations, lambda: [relu_table(activations)])


def claims_table() -> str:
    """Every claim with the experiment and the module that measure it, as a Markdown table."""
    rows: dict[tuple[str, str], list[str]] = {}
    for entry in all_measures():
        names = list(dict.fromkeys(chain(*PARTS[entry.part].experiments.values())))
        sweep = names[0].partition("/")[0] if names else ""
        if names == [f"{sweep}/{budget}" for budget in Budget]:
            names = [f"{sweep}/…"]
        experiment = " ".join(f"`{name}`" for name in names) or "none: counted from the network"
        module = entry.function.__module__.removeprefix("alexnet2012.").replace(".", "/")
        rows.setdefault((experiment, f"`{module}.py`"), []).extend(entry.claims)
    lines = ["| claims | experiment | measured in |", "|---|---|---|"]
    for (experiment, module), claims in rows.items():
        lines.append(f"| {' '.join(f'`{claim}`' for claim in claims)} | {experiment} | {module} |")
    quoted = [f"`{claim.id}`" for claim in load_claims() if claim.kind is Kind.published]
    unmeasured = [f"`{claim.id}`" for claim in load_claims() if claim.unmeasured]
    lines.append(f"| {' '.join(quoted)} | none: quoted from the paper | |")
    return "\n".join([*lines, f"| {' '.join(unmeasured)} | none: not measured here | |"])


def print_sweep(directory: Path, *, as_json: bool, evaluate: bool) -> None:
    """Print the tables and verdicts of a sweep, or its measurements as JSON.

    With ``evaluate``, checkpoints are evaluated for the claims that need it.
    """
    sweep = find_sweep(directory)
    console = Console()
    for table in [] if as_json else sweep.tables():
        console.print(table, style="dim" if isinstance(table, str) else None)
    measurements = measure(
        sweep.part,
        sweep.evidence,
        Scale.reduced,
        f"python -m alexnet2012.ledger {directory}",
        "read from a directory of runs; config.yaml of each run has its settings",
        evaluate=evaluate and sweep.checkpoints,
    )
    if as_json:
        print(json.dumps([m.to_json() for m in measurements], indent=2, ensure_ascii=False))
        return
    for row in ledger(measurements, {})["rows"]:
        if row["measured"]:
            shown = "; ".join(f"{name}: {text}" for name, text in columns(row).items())
            console.print(f"{row['id']}: {row['measured']['value']}", markup=False, soft_wrap=True)
            console.print(f"  {row['verdict']} ({shown})", markup=False, soft_wrap=True)


def _ablation_tables(directory: Path) -> list[Table | str]:
    runs = ablations.read_sweep(directory)
    table = ablations.effect_table(ablations.effects(runs))
    lines = (
        ablations.few_seeds_warning(runs),
        ablations.errors_of_baseline(runs),
        ablations.describe(runs),
    )
    return [table, *filter(None, lines)]
