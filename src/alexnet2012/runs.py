"""List runs, or compare two: ``python -m alexnet2012.runs [DIR …] [--sort KEY] [--json]``

``python -m alexnet2012.runs compare A B``. Damaged runs and folders without a run are listed, too,
and a single run is shown with its learning curve. ``python -m alexnet2012.runs bands DIR`` makes
reference bands (:mod:`alexnet2012.tracking.bands`).
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
from alexnet2012.tracking.bands import (
    MIN_RUNS,
    RunCurve,
    groups_of_seeds,
    load_bands,
    make_band,
    read_curve,
    save_bands,
)
from alexnet2012.tracking.curve_chart import draw_loss
from alexnet2012.tracking.run_compare import as_json, load_side, pair_tables
from alexnet2012.tracking.run_index import DamagedRunError, RunInfo, RunState, find_runs, read_run
from alexnet2012.utils.text import printable

MAX_OTHERS = 5  # folders without a run that are printed
_NO_FOLDER = "no such folder; give the folder of your runs, such as `.`"
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
    has_bands = any(run.band is not None for run in runs)
    for heading in ("started", "state", *(("band",) if has_bands else ())):
        table.add_column(heading, no_wrap=True)
    for heading in ("top-1 %", "top-5 %", "images/s"):
        table.add_column(heading, no_wrap=True, justify="right")
    for run in runs:
        name_and_details = (str(paths[run.path]), details[run.path])
        table.add_row(
            *(Text(printable(text)) for text in name_and_details), *_cells(run, has_bands)
        )
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


def _cells(run: RunInfo, has_bands: bool) -> Iterator[Text]:
    yield Text("" if run.started is None else f"{run.started:%m-%d %H:%M}")
    state = run.state.value
    if run.state in (RunState.running, RunState.interrupted) and run.total_steps:
        state += f" {100 * run.step // run.total_steps}%"
    yield Text(state)
    if has_bands:
        yield _band(run)
    errors = run.errors
    yield Text("" if errors is None else f"{errors.top1_pct:.2f}")
    yield Text("" if errors is None or errors.top5_pct is None else f"{errors.top5_pct:.2f}")
    yield Text("" if run.images_per_s is None else f"{run.images_per_s:,.0f}")


def _band(run: RunInfo) -> Text:
    """Whether the run is within its reference band."""
    if (left := run.left_band) is not None:
        why = "at chance" if left.get("at_chance") else "left"
        return Text(f"{why} at {left['progress_pct']:.0f}%", style="bold")
    return Text("within" if run.band is not None and "name" in run.band else "")


def main() -> None:
    subcommand = {"compare": _compare, "bands": _bands}.get("".join(sys.argv[1:2]))
    if subcommand is not None:
        exit_on_error(lambda: subcommand(sys.argv[2:]))
    else:
        exit_on_error(lambda: _list(sys.argv[1:]))


def _list(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 runs",
        description="List the runs in folders and their subfolders.",
        epilog="alexnet2012 runs compare A B compares two runs; alexnet2012 runs bands DIR makes "
        "reference bands of finished runs.",
    )
    parser.add_argument(
        "folders", nargs="*", type=Path, metavar="DIR", default=[Path("runs")], help="default: runs"
    )
    parser.add_argument("--sort", choices=SORTS, default="begun", help="sort key; default: begun")
    parser.add_argument("--json", action="store_true", help="print the runs as JSON")
    given = parser.parse_args(words)
    if missing := [folder for folder in given.folders if not folder.is_dir()]:
        raise ConfigError("DIR", missing[0], _NO_FOLDER)
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
    if len(runs) == 1 and runs[0].problem is None:
        _print_curve(runs[0].path, console)
    for line in _last_lines(runs, others):
        console.print(Text(line), soft_wrap=True)


def _print_curve(folder: Path, console: Console) -> None:
    """The learning curve of a run, in front of its reference band."""
    try:
        curve = read_curve(folder)
    except DamagedRunError as error:
        console.print(Text(printable(f"no curve: {error}")), soft_wrap=True)
        return
    if curve is not None:
        for line in draw_loss(curve.curve, curve.band(load_bands())):
            console.print(Text(line), soft_wrap=True)


def _bands(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 runs bands",
        description="Make reference bands of finished runs that differ in their seeds only.",
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="DIR", help="folders of runs")
    parser.add_argument("--out", type=Path, metavar="FILE", help="write the bands to this file")
    parser.add_argument(
        "--hold-out",
        type=int,
        default=0,
        metavar="N",
        help="leave out N runs of each band, the last by seed, and count how many leave it",
    )
    given = parser.parse_args(words)
    if missing := [folder for folder in given.folders if not folder.is_dir()]:
        raise ConfigError("DIR", missing[0], _NO_FOLDER)
    if given.hold_out < 0:
        raise ConfigError("--hold-out", given.hold_out, "must be at least 0")
    folders = dict.fromkeys(f for folder in given.folders for f in find_runs(folder)[0])
    curves: list[RunCurve] = []
    for folder in folders:
        try:
            curve = read_curve(folder)
        except DamagedRunError as error:
            print(printable(f"{folder}: {error}"), file=sys.stderr)
            continue
        if curve is not None and curve.is_finished:
            curves.append(curve)
    groups = groups_of_seeds(curves)
    bands = [make_band(runs[: len(runs) - given.hold_out]) for runs in groups]
    made = [(band, runs) for band, runs in zip(bands, groups, strict=True) if band is not None]
    if not made:
        needed = f"at least {MIN_RUNS + given.hold_out} finished runs that differ in their seed"
        raise ConfigError("DIR", given.folders[0], f"has no band: it takes {needed}")
    for band, runs in made:
        print(f"{band.name}: {band.runs} runs")
        held_out = runs[band.runs :]
        left = [(run, found) for run in held_out if (found := run.departure(band)) is not None]
        for run, found in left:
            print(printable(f"  {run.folder}: {found}"))
        if held_out:
            print(f"  {len(left)} of {len(held_out)} other runs leave it")
    if given.out is not None:
        save_bands((band for band, _ in made), given.out)


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
