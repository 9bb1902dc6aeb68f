"""Comparison of two reproductions, claim by claim."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich.markup import escape
from rich.table import Table

from alexnet2012.ledger.results import Provenance, Reproduction, ledger_of
from alexnet2012.tracking.run_compare import Comparison, of_intervals, two_tables
from alexnet2012.utils.text import printable

# Two reproductions are comparable if these are equal.
_CONDITIONS = {
    "commit": "commit",
    "data_description": "data",
    "store_fingerprint": "store fingerprint",
    "seeds": "seeds",
    "cpu": "processor",
    "gpu": "GPU",
    "torch": "torch",
    "dali": "DALI",
}


@dataclass(frozen=True)
class Compared:
    """One claim in two reproductions; None if it was not measured."""

    claim: str
    first: dict[str, Any] | None
    second: dict[str, Any] | None
    outcome: Comparison


def compare(first: Reproduction, second: Reproduction) -> list[Compared]:
    """Compare all claims of the ledger, in its order."""
    pairs = zip(ledger_of(first)["rows"], ledger_of(second)["rows"], strict=True)
    return [
        Compared(a["id"], a["measured"], b["measured"], _outcome(a["measured"], b["measured"]))
        for a, b in pairs
    ]


def different_conditions(first: Provenance, second: Provenance) -> list[tuple[str, str, str]]:
    """Conditions that differ between two reproductions: name, first and second value."""
    return [
        (label, _text(first.get(key)), _text(second.get(key)))
        for key, label in _CONDITIONS.items()
        if first.get(key) != second.get(key)
    ]


def comparison_tables(
    names: tuple[str, str], first: Reproduction, second: Reproduction
) -> list[Table]:
    """Tables of the conditions that differ and of the claims that either has measured."""
    conditions, claims = two_tables(names)
    provenances = (side.get("provenance", {}) for side in (first, second))
    for condition in different_conditions(*provenances):
        conditions.add_row(*(escape(printable(text)) for text in condition))
    for row in compare(first, second):
        if row.outcome is not Comparison.neither:
            values = (escape(printable(_value(side))) for side in (row.first, row.second))
            claims.add_row(row.claim, *values, row.outcome.value)
    return [conditions, claims] if conditions.row_count else [claims]


def _outcome(first: dict[str, Any] | None, second: dict[str, Any] | None) -> Comparison:
    if first is None or second is None:
        return Comparison.neither if first is second else Comparison.one
    if (first["value"], first["numbers"]) == (second["value"], second["numbers"]):
        return Comparison.same
    return of_intervals(first["interval"], second["interval"])


def _value(measured: dict[str, Any] | None) -> str:
    if measured is None:
        return "not measured"
    seeds = measured["n_seeds"]
    return f"{measured['value']}" + (f" ({seeds} seeds)" if seeds > 1 else "")


def _text(value: object) -> str:
    if isinstance(value, Sequence) and not isinstance(value, str):
        return ", ".join(map(str, value))
    return "none" if value is None else str(value)
