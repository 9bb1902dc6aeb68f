"""List runs, or compare two: ``python -m alexnet2012.runs [DIR …] [--sort KEY] [--json]``

``python -m alexnet2012.runs compare A B``. Damaged runs and folders without a run are listed, too.
"""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError
from alexnet2012.tracking.run_compare import as_json, load_side, pair_tables
from alexnet2012.tracking.run_index import DamagedRunError, RunInfo, RunState, find_runs, read_run
from alexnet2012.utils.text import printable

MAX_OTHERS = 5  # folders without a run that are printed
SORTS: dict[str, Callable[[RunInfo], Any]] = {
    "begun": lambda run: run.started or datetime.max.replace(tzinfo=UTC),
    "run": lambda run: str(run.path),
    "recipe": lambda run: (not run.recipe, run.recipe, run.changed),
    "state": lambda run: list(RunState).index(run.state),
    "error": lambda run: float("inf") if run.errors is None else run.errors.top1_pct,
    "speed": lambda run: -(run.images_per_s or 0.0),
}


def runs_table(runs: Iterable[RunInfo]) -> Table:
    """A row per run: directory, recipe and changed settings; start; state; errors; speed."""
    table = Table(show_lines=True)
    table.add_column("run, recipe, changes", overflow="fold", ratio=1)
    table.add_column("started", no_wrap=True)
    table.add_column("state", no_wrap=True)
    table.add_column("error, %\ntop-1\ntop-5", justify="right", no_wrap=True)
    table.add_column("images/s", justify="right", no_wrap=True)
    for run in runs:
        table.add_row(*_cells(run))
    return table


def _cells(run: RunInfo) -> Iterator[Text]:
    details = " ".join([run.recipe, *run.changed]) if run.problem is None else run.problem
    yield Text(printable(str(run.path))).append(f"\n{printable(details)}", style="dim")
    yield Text("" if run.started is None else f"{run.started:%Y-%m-%d\n%H:%M}")
    state = run.state.value
    if run.state in (RunState.running, RunState.interrupted):
        state += f"\n{run.step} of {'?' if run.total_steps is None else run.total_steps}"
    yield Text(state)
    errors = run.errors
    yield Text("" if errors is None else f"{errors.top1_pct:.2f}\n{errors.top5_pct:.2f}")
    yield Text("" if run.images_per_s is None else f"{run.images_per_s:,.0f}")


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        exit_on_error(lambda: _compare(sys.argv[2:]))
    else:
        exit_on_error(lambda: _list(sys.argv[1:]))


def _list(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 runs",
        description="List the runs in folders and their subfolders.",
        epilog="alexnet2012 runs compare A B compares two runs.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", default=[Path("runs")], help="default: runs"
    )
    parser.add_argument("--sort", choices=SORTS, default="begun", help="sort key; default: begun")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
    given = parser.parse_args(words)
    if missing := [folder for folder in given.folders if not folder.is_dir()]:
        raise ConfigError("DIR", missing[0], "no such folder")
    results = [find_runs(folder) for folder in given.folders]
    folders = dict.fromkeys(folder for runs, _ in results for folder in runs)  # each once
    runs = sorted(map(read_run, folders), key=SORTS[given.sort])
    others = [other for _, others_of_folder in results for other in others_of_folder]
    if given.json:
        rows = [{"path": str(path), "reason": reason} for path, reason in others]
        print(json.dumps({"runs": [run.as_json() for run in runs], "others": rows}, indent=1))
        return
    console = Console()
    if runs:
        console.print(runs_table(runs))
    for line in _last_lines(runs, others):
        console.print(Text(line), soft_wrap=True)


def _last_lines(runs: Sequence[RunInfo], others: Sequence[tuple[Path, str]]) -> Iterator[str]:
    states = Counter(run.state for run in runs)
    counts = ", ".join(f"{states[state]} {state.value}" for state in RunState if states[state])
    yield f"{len(runs)} run{'s' if len(runs) != 1 else ''}{': ' if runs else ''}{counts}"
    for path, reason in others[:MAX_OTHERS]:
        yield f"{printable(str(path))}: {reason}"
    if len(others) > MAX_OTHERS:
        yield f"and {len(others) - MAX_OTHERS} more folders without a run; --json lists them"


def _compare(words: Sequence[str]) -> None:
    parser = ArgumentParser(prog="alexnet2012 runs compare", description="Compare two runs.")
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a run directory")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    given = parser.parse_args(words)
    sides = []
    for name in ("A", "B"):
        folder = getattr(given, name)
        try:
            sides.append(load_side(folder))
        except DamagedRunError as error:
            raise ConfigError(name, folder, str(error)) from error
    if given.json:
        print(json.dumps(as_json(*sides), indent=1))
        return
    console = Console()
    for table in pair_tables((str(given.A), str(given.B)), *sides):
        console.print(table)
    note = "The 95% intervals cover the sampling of validation images, not the choice of seed."
    console.print(note, style="dim")


if __name__ == "__main__":
    main()
