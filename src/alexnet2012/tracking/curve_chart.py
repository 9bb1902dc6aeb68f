"""A learning curve in text, with the reference band behind it."""

from __future__ import annotations

from collections.abc import Iterator

from alexnet2012.tracking.bands import BINS, Band, Curve

HEIGHT = 12  # lines
RUN, INSIDE = "●", "░"


def draw_loss(curve: Curve, band: Band | None) -> Iterator[str]:
    """Lines of a chart of the training loss by progress: a column for each bin."""
    limits = [None] * BINS if band is None else band.limits["loss"]
    values = [None if (m := curve.means(index)) is None else m["loss"] for index in range(BINS)]
    shown = [value for value in values if value is not None]
    shown += [value for limit in limits if limit is not None for value in (limit[0], limit[2])]
    if not shown:
        return
    low, high = max(0.0, min(shown)), max(shown)
    height = max(high - low, 1e-9) / HEIGHT
    for line in range(HEIGHT):
        top = high - line * height
        cells = []
        for value, limit in zip(values, limits, strict=True):
            if value is not None and _line_of(value, high, height) == line:
                cells.append(RUN)
            else:
                in_band = limit is not None and limit[0] < top and limit[2] > top - height
                cells.append(INSIDE if in_band else " ")
        label = f"{top:6.2f}" if line == 0 else f"{low:6.2f}" if line == HEIGHT - 1 else " " * 6
        yield f"{label} {''.join(cells)}".rstrip()
    of_band = "" if band is None else f"; {INSIDE} {band.runs} healthy runs ({band.name})"
    yield f"       0%{'100% of training':>{BINS - 2}}"
    yield f"       {RUN} training loss{of_band}"


def _line_of(value: float, high: float, height: float) -> int:
    return min(HEIGHT - 1, max(0, int((high - value) / height)))
