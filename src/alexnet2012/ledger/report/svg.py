"""Figures for HTML pages: inline SVG in the colours of the page, and images as data URIs.

Colours are CSS variables (``--ink``, ``--muted``, ``--rule``, ``--paper``, ``--tower-0``,
``--tower-1``, ``--series-0`` …), so that a figure works in light and dark pages.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Literal

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

# matplotlib does not know CSS: placeholders for the variables, replaced in the finished SVG
_PLACEHOLDERS = {
    "ink": "#010101",
    "muted": "#020202",
    "rule": "#030303",
    **{f"series-{i}": f"#0a000{i + 1}" for i in range(4)},
}
_DASHES: tuple[Any, ...] = ("-", (0, (5, 1.6)), (0, (1.5, 1.5)), (0, (6, 1.5, 1.5, 1.5)))


@dataclass(frozen=True)
class Curve:
    """One line of a chart; None and NaN leave a gap."""

    label: str
    x: Sequence[float]
    y: Sequence[float | None]


@dataclass(frozen=True)
class ReferenceLine:
    """A horizontal line across a chart, such as chance level."""

    value: float
    label: str


@dataclass(frozen=True)
class ShadedBand:
    """An area behind the curves of a chart."""

    label: str
    x: Sequence[float]
    low: Sequence[float]
    high: Sequence[float]


@dataclass(frozen=True)
class IntervalRow:
    """One row of a forest plot; without an interval only the mean is drawn."""

    label: str
    mean: float
    interval: tuple[float, float] | None
    series: int = 0  # index of the colour


def line_chart(
    curves: Sequence[Curve],
    xlabel: str,
    ylabel: str,
    alt: str,
    level: ReferenceLine | None = None,
    y_range: tuple[float, float] | None = None,
    band: ShadedBand | None = None,
) -> str:
    """An SVG of up to four curves; the y label is above the axes, where it is horizontal."""

    def draw(axes: Any) -> None:
        axes.set_title(ylabel, loc="left", fontsize=9.5, color=_PLACEHOLDERS["muted"], pad=8)
        axes.set_xlabel(xlabel)
        if band is not None:
            axes.fill_between(band.x, band.low, band.high, color=_PLACEHOLDERS["rule"],
                              linewidth=0, label=band.label)  # fmt: skip
        for i, curve in enumerate(curves):
            y = [np.nan if value is None else float(value) for value in curve.y]
            color, dash = _PLACEHOLDERS[f"series-{i % 4}"], _DASHES[i % 4]
            marker = "o" if len(y) < 3 else None
            axes.plot(curve.x, y, color=color, linestyle=dash, linewidth=1.5, marker=marker,
                      markersize=3, label=curve.label)  # fmt: skip
        if y_range is not None:
            axes.set_ylim(*y_range)
        if level is not None:
            axes.axhline(level.value, color=_PLACEHOLDERS["muted"], linewidth=0.8, dashes=(2, 2))
            side = _free_side(curves, level.value)
            axes.annotate(level.label, (side, level.value), xycoords=("axes fraction", "data"),
                          xytext=(2 - 4 * side, 3), textcoords="offset points", va="bottom",
                          ha=("left", "right")[side], fontsize=8.5,
                          color=_PLACEHOLDERS["muted"])  # fmt: skip
        axes.xaxis.set_major_locator(MaxNLocator(nbins=7, integer=True))
        axes.margins(x=0.02)
        if len(curves) > 1 or band is not None:
            legend = axes.legend(frameon=False, fontsize=9, handlelength=2.2, borderaxespad=0.2)
            legend.set_in_layout(False)  # a long label must not squeeze the axes

    return _chart((4.0, 2.6), draw, "y", alt)


def forest(rows: Sequence[IntervalRow], xlabel: str, alt: str) -> str:
    """A forest plot as SVG: means with their intervals, and a vertical line at zero."""

    def draw(axes: Any) -> None:
        axes.axvline(0, color=_PLACEHOLDERS["muted"], linewidth=0.8, dashes=(2, 2))
        for line, row in enumerate(rows):
            color = _PLACEHOLDERS[f"series-{row.series}"]
            if row.interval is not None:
                axes.plot(row.interval, [line, line], color=color, linewidth=1.5)
            axes.plot([row.mean], [line], "o", color=color, markersize=5)
        axes.set_yticks(range(len(rows)), [row.label for row in rows])
        axes.set_ylim(len(rows) - 0.5, -0.5)  # first row on top
        axes.set_xlabel(xlabel)

    return _chart((4.4, 0.7 + 0.3 * len(rows)), draw, "x", alt)


def _chart(
    size: tuple[float, float], draw: Callable[[Any], None], grid: Literal["x", "y"], alt: str
) -> str:
    """Draw axes in the style of the page; the same figure gives the same bytes."""
    muted = dict.fromkeys(("xtick.color", "ytick.color", "axes.labelcolor"), _PLACEHOLDERS["muted"])
    style = {
        "svg.fonttype": "none",  # text stays text: selectable, in the font of the page
        "svg.hashsalt": alt,  # ids differ between figures
        "text.parse_math": False,  # labels are arbitrary text
        "font.size": 9.5,
        "axes.edgecolor": _PLACEHOLDERS["rule"],
        "axes.linewidth": 0.8,
        "text.color": _PLACEHOLDERS["ink"],
        **muted,
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(style):
        figure = Figure(figsize=size, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        axes.grid(axis=grid, color=_PLACEHOLDERS["rule"], linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(length=0, pad=5)
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return _inline(buffer.getvalue(), alt)


def two_towers(
    layers: Sequence[tuple[str, int]], crossing_bytes: Mapping[str, float], vertical: bool = False
) -> str:
    """The network as two rows (or columns) of boxes, with the exchanges as crossing lines.

    ``layers`` has the kernels or units of both towers; ``crossing_bytes`` are forward, per image.
    """
    length, width, gap, edge = (40, 116, 92, 26) if vertical else (80, 54, 78, 26)
    crossing_gap, box_gap = (26, 16) if vertical else (54, 16)  # between boxes
    shared = 40 if vertical else 58  # length of the boxes of image and logits
    span = 2 * width + gap  # both towers
    parts: list[str] = []

    def point(along: float, across: float) -> tuple[float, float]:
        return (across, along) if vertical else (along, across)

    def line(along: tuple[float, float], across: tuple[float, float], kind: str) -> None:
        (x1, y1), (x2, y2) = point(along[0], across[0]), point(along[1], across[1])
        parts.append(f'<line x1="{x1:g}" y1="{y1:g}" x2="{x2:g}" y2="{y2:g}" class="{kind}"/>')

    def box(along: float, across: float, size: tuple[float, float], kind: str, *text: str) -> None:
        (x, y), (w, h) = point(along, across), point(*size)
        parts.append(
            f'<rect x="{x:g}" y="{y:g}" width="{w:g}" height="{h:g}" rx="3" class="{kind}"/>'
        )
        for i, line_of_text in enumerate(text):
            style = "name" if i == 0 else "count"
            baseline = y + h / 2 + (5 if len(text) == 1 else 17 * i - 3)
            parts.append(_text(x + w / 2, baseline, line_of_text, style))

    starts = [edge, edge + width + gap]  # of each tower
    centres = [start + width / 2 for start in starts]
    end = (edge if vertical else 1.0) + shared
    box(end - shared, edge, (shared, span), "box shared", "image")
    for index, (name, count) in enumerate((*layers, ("logits", 0))):
        crosses = name in crossing_bytes
        start = end + (crossing_gap if crosses else box_gap)
        for tower in (0, 1):
            line((end, start), (centres[tower], centres[tower]), f"own tower-{tower}")
            if crosses:
                line((end, start), (centres[tower], centres[1 - tower]), "crossing")
            if name != "logits":
                unit = "kernels" if name.startswith("conv") else "units"
                box(start, starts[tower], (length, width), f"box tower-{tower}",
                    name, f"{count // 2:,} {unit}")  # fmt: skip
        if crosses:
            x, y = point((end + start) / 2, sum(centres) / 2)
            parts.append(_text(x, y + 4, f"{crossing_bytes[name] / 1000:.3g} kB", "bytes"))
        for tower in (0, 1) if index == 0 else ():
            outside = edge - 9 if tower == 0 or vertical else edge + span + 20
            x, y = (centres[tower], edge - 9) if vertical else (start, outside)
            anchor = "middle" if vertical else "start"
            parts.append(_text(x, y, f"Tower {tower}", f"tower tower-{tower}", anchor))
        end = start + (length if name != "logits" else shared)
    box(end - shared, edge, (shared, span), "box shared", "logits")
    w, h = point(end + 1, span + 2 * edge)
    crossed = ", ".join(name for name, _ in layers if name in crossing_bytes) or "no layer"
    outputs = ", and for the logits" if "logits" in crossing_bytes else ""
    alt = f"Two towers of {len(layers)} layers each, with exchanges at {crossed}{outputs}"
    orientation = "vertical" if vertical else "horizontal"
    return (
        f'<svg viewBox="0 0 {w:g} {h:g}" class="towers {orientation}" role="img" '
        f'aria-label="{escape(alt)}">{"".join(parts)}</svg>'
    )


def _free_side(curves: Sequence[Curve], level: float) -> int:
    """The side, 0 left or 1 right, where the curves are further from a level."""
    ends = [(c.y[0], c.y[-1]) for c in curves if c.y]
    distances = [
        min((abs(y - level) for y in side if y is not None), default=0.0)
        for side in zip(*ends, strict=True)
    ]
    return int(len(distances) < 2 or distances[1] >= distances[0])


def _text(x: float, y: float, text: str, kind: str, anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}" text-anchor="{anchor}">{escape(text)}</text>'


def _inline(svg: str, alt: str) -> str:
    """The text of an SVG file as part of an HTML page."""
    start, body = svg[svg.index("<svg") :].split(">", 1)
    view = re.search(r'viewBox="([^"]*)"', start)
    assert view is not None
    # A style would apply to the whole page, and ids must be unique within it.
    body = re.sub(r"<(metadata|style).*?</\1>", "", body, flags=re.DOTALL)
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: var(--sans)", body)
    for name, placeholder in _PLACEHOLDERS.items():
        body = body.replace(placeholder, f"var(--{name})")
    return (
        f'<svg viewBox="{view[1]}" class="chart" role="img" aria-label="{escape(alt)}">'
        + re.sub(r"\n\s*", "\n", body)
    )
