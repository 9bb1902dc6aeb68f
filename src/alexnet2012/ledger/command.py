"""The ``ledger`` command: what a directory of runs measures, and the verdict on each claim.

``ledger verify DIR`` recomputes the verdicts of a reproduction, and ``ledger design EXPERIMENT``
computes the power of a sweep before it runs.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import chain
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.ledger import design
from alexnet2012.ledger.authors_runs import authors_table
from alexnet2012.ledger.claims import Kind, Scale, load_claims
from alexnet2012.ledger.measurements import ablations, pretraining
from alexnet2012.ledger.measurements.relu_vs_tanh import Rates, read_runs, relu_table
from alexnet2012.ledger.registry import all_measures, measure
from alexnet2012.ledger.reproduction import PARTS
from alexnet2012.ledger.results import damaged_directory
from alexnet2012.ledger.verdicts import columns, ledger
from alexnet2012.ledger.verify import verify
from alexnet2012.utils.text import say

EPILOG = """\
DIR is the directory of one sweep. Ablations and pretraining have run directories ABLATION/SEED; in
a sweep of ReLU against tanh, finished runs may lie at any depth. Claims about several trained
networks (views, ensembles, colours) are measured by evaluating their checkpoints.

alexnet2012 ledger verify DIR recomputes the verdicts of a reproduction from the evidence in it.
alexnet2012 ledger design EXPERIMENT pilot=DIR prints the power of a sweep before it runs."""
FLAGS = {
    "--json": "print the measurements as JSON",
    "--no-evaluation": "read only logs; do not evaluate checkpoints",
    "--claims": "list all claims and the experiments that measure them; takes no DIR",
    "--authors-runs": "list the authors' own runs and how much they vary; takes no DIR",
}


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


def main(words: Sequence[str] | None = None) -> None:
    """Run the command with ``words``, by default those of ``sys.argv``."""
    given = list(sys.argv[1:] if words is None else words)
    subcommand = {"verify": _verify, "design": _design}.get(given[0] if given else "")
    exit_on_error(lambda: subcommand(given[1:]) if subcommand else _run(given))


def _verify(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 ledger verify",
        description="Recompute every verdict and interval of DIR/ledger.json from the evidence.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="reproduction directory")
    directory = parser.parse_args(words).directory
    with damaged_directory("DIR", directory):
        found = verify(directory)
    for difference in found.differences:
        say(str(difference))
    if found.differences:
        count = len(found.differences)
        raise RunError(f"{directory}: {count} values differ from those that the evidence gives")
    dirty = f", {found.dirty} of them of code with uncommitted changes" if found.dirty else ""
    print(f"recomputed from {found.runs} runs{dirty}: {', '.join(found.claims)}")


def _design(words: Sequence[str]) -> None:
    if not words or words[0] in ("-h", "--help"):
        print("usage: alexnet2012 ledger design EXPERIMENT [KEY=VALUE …]\n")
        for name, text in design.SETTINGS.items():
            print(f"  {name:10} {text}")
        return
    table, cost = design.design(words)
    console = Console()
    console.print(table)
    console.print(cost, soft_wrap=True)


def _run(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 ledger",
        description="Print what a directory of runs measures, and the verdict on each claim.",
        epilog=EPILOG,
    )
    parser.add_argument("directory", type=Path, metavar="DIR", nargs="?", help="sweep directory")
    for flag, text in FLAGS.items():
        parser.add_argument(flag, action="store_true", help=text)
    arguments = parser.parse_args(words)
    if arguments.claims:
        print(claims_table())
        return
    if arguments.authors_runs:
        print(authors_table())
        return
    if arguments.directory is None:
        raise ConfigError("DIR", "", "is missing; give the directory of a sweep, or --claims")
    sweep = find_sweep(arguments.directory)
    console = Console()
    for table in [] if arguments.json else sweep.tables():
        console.print(table, style="dim" if isinstance(table, str) else None)
    measurements = measure(
        sweep.part,
        sweep.evidence,
        Scale.reduced,
        f"python -m alexnet2012.ledger {arguments.directory}",
        "read from a directory of runs; config.yaml of each run has its settings",
        evaluate=sweep.checkpoints and not arguments.no_evaluation,
    )
    if arguments.json:
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
    return [table, ablations.errors_of_baseline(runs), ablations.describe(runs)]
