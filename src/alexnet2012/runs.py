"""List runs, or compare two: ``python -m alexnet2012.runs [DIR …] [--sort KEY] [--json]``

``python -m alexnet2012.runs compare A B``. Damaged runs and folders without a run are listed, too.
"""

from __future__ import annotations

import json
import os
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


def runs_table(runs: Sequence[RunInfo]) -> tuple[str, Table]:
    """What all runs have in common, and a table with a line per run: what differs, and errors.

    Paths are relative to the common folder. A setting that every run has in its path, as a sweep of
    ablations has, is not repeated.
    """
    parents = [run.path.absolute().parent for run in runs]
    root = Path(os.path.commonpath(parents))
    settings = {run.path: _settings(run) for run in runs if run.problem is None}
    keys = list(dict.fromkeys(key for values in settings.values() for key in values))
    shared = {} if len(runs) == 1 else _shared(keys, list(settings.values()))
    paths = {run.path: run.path.absolute().relative_to(root) for run in runs}
    in_paths = {
        key
        for key in keys
        if all(values.get(key) in paths[path].parts for path, values in settings.items())
    }
    hidden = {*shared, *in_paths}
    details = {
        run.path: run.problem
        or " ".join(f"{k}={v}" for k, v in settings[run.path].items() if k not in hidden)
        for run in runs
    }
    table = Table(box=None, padding=(0, 1, 0, 0))
    named = [key for key in keys if key in in_paths and key not in shared]
    table.add_column(f"run ({', '.join(named)})" if named else "run", overflow="fold")
    table.add_column("what differs" if any(details.values()) else "", overflow="fold")
    for heading in ("started", "state"):
        table.add_column(heading, no_wrap=True)
    for heading in ("top-1 %", "top-5 %", "images/s"):
        table.add_column(heading, no_wrap=True, justify="right")
    for run in runs:
        name_and_details = (str(paths[run.path]), details[run.path])
        table.add_row(*(Text(printable(text)) for text in name_and_details), *_cells(run))
    common = " ".join(f"{key}={value}" for key, value in shared.items())
    return printable(f"in {_shown(root)}{': ' if common else ''}{common}"), table


def _settings(run: RunInfo) -> dict[str, str]:
    """The recipe of a run and its changes, by key."""
    changes = (change.partition("=") for change in run.changed)
    return {"recipe": run.recipe, **{key: value for key, _, value in changes}}


def _shared(keys: Iterable[str], settings: Sequence[dict[str, str]]) -> dict[str, str]:
    """The settings that have the same value in all runs."""
    values = ((key, {run.get(key) for run in settings}) for key in keys)
    return {key: str(found.pop()) for key, found in values if len(found) == 1}


def _shown(folder: Path) -> Path:
    """Relative to the working directory, if it is below it."""
    return folder.relative_to(Path.cwd()) if folder.is_relative_to(Path.cwd()) else folder


def _cells(run: RunInfo) -> Iterator[Text]:
    yield Text("" if run.started is None else f"{run.started:%m-%d %H:%M}")
    state = run.state.value
    if run.state in (RunState.running, RunState.interrupted) and run.total_steps:
        state += f" {100 * run.step // run.total_steps}%"
    yield Text(state)
    errors = run.errors
    yield Text("" if errors is None else f"{errors.top1_pct:.2f}")
    yield Text("" if errors is None or errors.top5_pct is None else f"{errors.top5_pct:.2f}")
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
        common, table = runs_table(runs)
        console.print(Text(common))
        console.print(table)
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
