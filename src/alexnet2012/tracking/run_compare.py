"""Two runs side by side: what they were made of, and how far they came."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from alexnet2012.checkpoint.run_dir import with_defaults
from alexnet2012.tracking.run_index import (
    METRICS,
    TIMINGS,
    last_of,
    load_settings,
    load_summary,
    read,
)
from alexnet2012.utils.metrics import error_interval_pct
from alexnet2012.utils.text import printable

# Of the summary; what the settings do not say.
_MADE_WITH = {"commit": "commit", "device": "device", "world_size": "processes"}
_BESIDE = ("resume", "tracking.", "checkpoint.", "mesh.processes")  # no matter for the numbers


@dataclass(frozen=True)
class MeasuredValue:
    """What a run came to, as it is and as it is shown; errors with their interval."""

    number: float
    told: str
    interval: Interval = None


@dataclass(frozen=True)
class RunSide:
    """One run: its settings by full key, what it was made with, what was measured."""

    settings: dict[str, Any]
    made_with: dict[str, Any]
    measured: dict[str, MeasuredValue]


def load_side(folder: Path) -> RunSide:
    """Raises DamagedRunError: not a run, or its files cannot be read."""
    summary = load_summary(folder)
    settings = with_defaults(load_settings(folder))
    return RunSide(
        {key: value for key, value in settings.items() if not key.startswith(_BESIDE)},
        {label: summary[key] for key, label in _MADE_WITH.items() if key in summary},
        _measured(folder, summary),
    )


def differences(first: RunSide, second: RunSide) -> list[tuple[str, str, str]]:
    """What the two were not made alike in: its key, and what either has."""
    here, there = first.made_with | first.settings, second.made_with | second.settings
    keys = [*here, *(key for key in there if key not in here)]
    return [
        (key, _told(here, key), _told(there, key))
        for key in keys
        if here.get(key) != there.get(key)
    ]


def outcomes(
    first: RunSide, second: RunSide
) -> list[tuple[str, MeasuredValue | None, MeasuredValue | None, Comparison]]:
    """Every number that either has."""
    names = [*first.measured, *(n for n in second.measured if n not in first.measured)]
    pairs = ((name, first.measured.get(name), second.measured.get(name)) for name in names)
    return [(name, a, b, _outcome(a, b)) for name, a, b in pairs]


def pair_tables(names: tuple[str, str], first: RunSide, second: RunSide) -> list[Table]:
    """What was not alike, and what was measured, as tables."""
    made, measured = two_tables((escape(printable(names[0])), escape(printable(names[1]))))
    for row in differences(first, second):
        made.add_row(*(escape(printable(cell)) for cell in row))
    for name, a, b, outcome in outcomes(first, second):
        told = ("not measured" if value is None else value.told for value in (a, b))
        measured.add_row(name, *told, outcome.value)
    return [made, measured] if made.row_count else [measured]


def as_json(first: RunSide, second: RunSide) -> dict[str, Any]:
    made = [{"key": k, "first": a, "second": b} for k, a, b in differences(first, second)]
    measured = [
        {
            "name": name,
            "first": None if a is None else a.told,
            "second": None if b is None else b.told,
            "outcome": outcome.value,
        }
        for name, a, b, outcome in outcomes(first, second)
    ]
    return {"made_differently": made, "measured": measured}


def _measured(folder: Path, summary: dict[str, Any]) -> dict[str, MeasuredValue]:
    records = last_of(folder / METRICS, ("train", "epoch", "validation"))
    timings = last_of(folder / TIMINGS, ("throughput",)).get("throughput", {}) | summary
    run = read(folder)
    of = "" if run.total_steps in (None, run.step) else f" of {run.total_steps}"
    found = {"steps": MeasuredValue(run.step, f"{run.step}{of}, {run.state.value}")}
    for kind, key, name, digits in (
        ("train", "loss", "training loss, last", 4),
        ("epoch", "train_error_pct", "training error, last epoch, %", 2),
        ("validation", "loss", "validation loss, last", 4),
    ):
        if (value := records.get(kind, {}).get(key)) is not None:
            found[name] = MeasuredValue(value, f"{value:.{digits}f}")
    validation = records.get("validation", {})
    for rank in (1, 5):
        share = validation.get(f"top{rank}_error_pct")
        if share is not None:
            found[f"top-{rank} error, %"] = _error(share, validation.get("pictures"))
    for key, name in (
        ("images_per_s", "images/s"),
        ("input_wait_pct", "waiting for input, %"),
        ("exchange_pct", "exchanging, %"),
    ):
        if (value := timings.get(key)) is not None:
            found[name] = MeasuredValue(value, f"{value:,.1f}")
    return found


def _error(share: float, pictures: int | None) -> MeasuredValue:
    if not pictures:
        return MeasuredValue(share, f"{share:.2f}")
    low, high = error_interval_pct(share * pictures / 100, pictures)
    return MeasuredValue(share, f"{share:.2f} ({low:.2f} – {high:.2f})", (low, high))


def _outcome(first: MeasuredValue | None, second: MeasuredValue | None) -> Comparison:
    if first is None or second is None:
        return Comparison.one
    same = (first.number, first.interval) == (second.number, second.interval)
    return Comparison.same if same else of_intervals(first.interval, second.interval)


def _told(settings: dict[str, Any], key: str) -> str:
    value = settings.get(key)
    return "none" if value is None else str(value)


Interval = Sequence[float] | None


class Comparison(Enum):
    """How two measurements of a claim stand to each other."""

    same = "the same"
    overlap = "intervals overlap"
    apart = "intervals apart"
    other = "another value"
    one = "one only"
    neither = "neither"


def two_tables(names: tuple[str, str]) -> tuple[Table, Table]:
    """What two of anything were made of, and what was measured of them; still without rows."""
    conditions = Table(title="made differently", title_justify="left")
    measured = Table(title="what was measured", title_justify="left", show_lines=True)
    for table, more in ((conditions, ()), (measured, ("",))):
        for heading in ("", *names, *more):
            table.add_column(heading, overflow="fold")
    return conditions, measured


def of_intervals(first: Interval, second: Interval) -> Comparison:
    """Of two values that are not the same."""
    if first is None or second is None:
        return Comparison.other
    (low, high), (other_low, other_high) = first, second
    return Comparison.overlap if low <= other_high and other_low <= high else Comparison.apart
