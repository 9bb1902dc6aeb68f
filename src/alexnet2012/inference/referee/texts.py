"""How the properties of a network are printed."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import Any

NOT_IN_FILE = "not in the file"
NO_LAYER = "no such layer"


def text_of(item: str, value: Hashable) -> str:
    """``value`` of a property, by the name of the property; None is not in the file."""
    if value is None:
        return NOT_IN_FILE
    if (write := _WRITERS.get(item)) is not None:
        return write(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, tuple):
        return _area(value)
    return str(value)


def _area(value: Any) -> str:
    """[height, width]"""
    return "×".join(map(str, value))


def _both(value: Any) -> str:
    """One number where height and width have the same."""
    return str(value[0]) if len(set(value)) == 1 else _area(value)


def _border(value: Any) -> str:
    top, left, bottom, right = value
    if top == left == bottom == right:
        return f"{top} on each side" if top else "none"
    if top == left and bottom == right:
        return f"{top} at the top and left, {bottom} at the bottom and right"
    return f"{top}, {left}, {bottom}, {right} (top, left, bottom, right)"


def _reads(value: Any) -> str:
    return "everything" if value == 1 else f"its own tower (of {value})"


def _windows(value: Any) -> str:
    return "across all maps" if value == 1 else f"within each of {value} towers"


def _spread(value: Any) -> str:
    return f"σ {value:.2g}" if isinstance(value, float) else str(value)


def _pixels(value: Any) -> str:
    return "grey levels 0–255" if abs(value - 1) < 1e-6 else f"grey levels × {value:.3g}"


def _dropout(value: Sequence[tuple[str, float]]) -> str:
    rates = dict.fromkeys(rate for _, rate in value)
    parts = []
    for rate in rates:
        layers = [layer for layer, other in value if other == rate]
        shown = "" if rate is None else f"{rate:g} "
        parts.append(f"{shown}after {' and '.join(layers)}")
    return ", ".join(parts) or "none"


def _count(value: Any) -> str:
    return {0: "none", 1: "yes"}.get(value, f"{value} times")


_WRITERS: dict[str, Callable[[Any], str]] = {
    "stride": _both,
    "border": _border,
    "pool border": _border,
    "pool stride": _both,
    "reads": _reads,
    "LRN windows": _windows,
    "initial weights": _spread,
    "initial biases": lambda value: f"{value + 0.0:g}",  # no -0
    "pixels": _pixels,
    "dropout": _dropout,
    "activation": lambda value: _count(value) if isinstance(value, int) else ", ".join(value),
    "order": " → ".join,
    "width": lambda value: f"{value:.4g}",
    "maps read": lambda value: f"{value}×{value}" if isinstance(value, int) else str(value),
    **dict.fromkeys(("LRN", "spatial norm", "pool"), _count),
}
