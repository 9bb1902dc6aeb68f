"""Comparison of two runs: the settings that differ, and the measurements of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from alexnet2012.checkpoint.run_dir import with_defaults
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import TrainConfig
from alexnet2012.tracking.run_index import (
    METRICS,
    TIMINGS,
    last_records,
    load_settings,
    load_summary,
    read_run,
)
from alexnet2012.utils.intervals import error_interval_pct
from alexnet2012.utils.text import printable

_CONDITIONS = {"commit": "commit", "device": "device", "world_size": "processes"}  # of a summary
_NOT_COMPARED = (Role.logging, Role.checkpointing, Role.world_size)

Interval = Sequence[float] | None


class Comparison(Enum):
    """How two measurements of a quantity compare."""

    same = "the same"
    overlap = "intervals overlap"
    apart = "intervals apart"
    other = "different value"
    one = "in one only"
    neither = "neither"


@dataclass(frozen=True)
class MeasuredValue:
    """A measurement, with the text that displays it and its interval if it is an error."""

    number: float
    text: str
    interval: Interval = None


@dataclass(frozen=True)
class RunSide:
    """One of the two runs: settings by full key, conditions and measurements by label."""

    settings: dict[str, Any]
    conditions: dict[str, Any]
    measurements: dict[str, MeasuredValue]


def load_side(folder: Path) -> RunSide:
    """Read a run directory; DamagedRunError if it is not a run, or cannot be read."""
    summary = load_summary(folder)
    settings = with_defaults(load_settings(folder))
    return RunSide(
        {k: v for k, v in settings.items() if role_of(TrainConfig, k) not in _NOT_COMPARED},
        {label: summary[key] for key, label in _CONDITIONS.items() if key in summary},
        _measurements(folder, summary),
    )


def differences(first: RunSide, second: RunSide) -> list[tuple[str, str, str]]:
    """Settings and conditions that differ: key, and both values."""
    a, b = first.conditions | first.settings, second.conditions | second.settings
    keys = [*a, *(key for key in b if key not in a)]
    return [(key, _text(a.get(key)), _text(b.get(key))) for key in keys if a.get(key) != b.get(key)]


def outcomes(
    first: RunSide, second: RunSide
) -> list[tuple[str, MeasuredValue | None, MeasuredValue | None, Comparison]]:
    """The measurements of either run: label, both values, and how they compare."""
    labels = [*first.measurements, *(n for n in second.measurements if n not in first.measurements)]
    pairs = ((n, first.measurements.get(n), second.measurements.get(n)) for n in labels)
    return [(label, a, b, _compare(a, b)) for label, a, b in pairs]


def pair_tables(names: tuple[str, str], first: RunSide, second: RunSide) -> list[Table]:
    """Tables of the differences, if any, and of the measurements."""
    conditions, measured = two_tables((escape(printable(names[0])), escape(printable(names[1]))))
    for row in differences(first, second):
        conditions.add_row(*(escape(printable(cell)) for cell in row))
    for label, a, b, outcome in outcomes(first, second):
        cells = ("not measured" if value is None else value.text for value in (a, b))
        measured.add_row(label, *cells, outcome.value)
    return [conditions, measured] if conditions.row_count else [measured]


def as_json(first: RunSide, second: RunSide) -> dict[str, Any]:
    differing = [{"key": k, "first": a, "second": b} for k, a, b in differences(first, second)]
    measured = [
        {
            "name": label,
            "first": None if a is None else a.text,
            "second": None if b is None else b.text,
            "outcome": outcome.value,
        }
        for label, a, b, outcome in outcomes(first, second)
    ]
    return {"made_differently": differing, "measured": measured}


def two_tables(names: tuple[str, str]) -> tuple[Table, Table]:
    """Empty tables for the conditions of two runs or reproductions, and for measurements."""
    conditions = Table(title="conditions that differ", title_justify="left")
    measured = Table(title="measurements", title_justify="left", show_lines=True)
    for table, more in ((conditions, ()), (measured, ("",))):
        for heading in ("", *names, *more):
            table.add_column(heading, overflow="fold")
    return conditions, measured


def of_intervals(first: Interval, second: Interval) -> Comparison:
    if first is None or second is None:
        return Comparison.other
    (low, high), (other_low, other_high) = first, second
    return Comparison.overlap if low <= other_high and other_low <= high else Comparison.apart


def _compare(first: MeasuredValue | None, second: MeasuredValue | None) -> Comparison:
    if first is None or second is None:
        return Comparison.one
    same = (first.number, first.interval) == (second.number, second.interval)
    return Comparison.same if same else of_intervals(first.interval, second.interval)


def _measurements(folder: Path, summary: dict[str, Any]) -> dict[str, MeasuredValue]:
    records = last_records(folder / METRICS, ("train", "epoch", "validation"))
    timings = last_records(folder / TIMINGS, ("throughput",)).get("throughput", {}) | summary
    run = read_run(folder)
    of = "" if run.total_steps in (None, run.step) else f" of {run.total_steps}"
    values = {"steps": MeasuredValue(run.step, f"{run.step}{of}, {run.state.value}")}
    for kind, key, label, digits in (
        ("train", "loss", "training loss, last", 4),
        ("epoch", "train_error_pct", "training error, last epoch, %", 2),
        ("validation", "loss", "validation loss, last", 4),
    ):
        if (value := records.get(kind, {}).get(key)) is not None:
            values[label] = MeasuredValue(value, f"{value:.{digits}f}")
    validation = records.get("validation", {})
    for k in (1, 5):
        error_pct = validation.get(f"top{k}_error_pct")
        if error_pct is not None:
            values[f"top-{k} error, %"] = _error(error_pct, validation.get("pictures"))
    for key, label in (
        ("images_per_s", "images/s"),
        ("input_wait_pct", "waiting for input, %"),
        ("exchange_pct", "exchanging, %"),
    ):
        if (value := timings.get(key)) is not None:
            values[label] = MeasuredValue(value, f"{value:,.1f}")
    return values


def _error(error_pct: float, images: int | None) -> MeasuredValue:
    if not images:
        return MeasuredValue(error_pct, f"{error_pct:.2f}")
    low, high = error_interval_pct(error_pct * images / 100, images)
    return MeasuredValue(error_pct, f"{error_pct:.2f} ({low:.2f} – {high:.2f})", (low, high))


def _text(value: Any) -> str:
    return "none" if value is None else str(value)
