"""Has anything become slower? Compares two result files.

    python benchmarks/compare.py BEFORE.json AFTER.json [tolerance=0.1]

Seconds and images/s differ between machines and days, so this compares ratios to a baseline of the
same run. A ratio that fell by more than the tolerance, and below the range of its earlier rounds,
is a regression. Exits with 1 if there is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from labels import label
from rich.console import Console
from rich.table import Table

TOLERANCE = 0.1


class Change(NamedTuple):
    """Change of one ratio of one variant."""

    arm: str
    before: float
    after: float
    regression: bool


def changes(before: Any, after: Any, tolerance: float) -> list[Change]:
    """Changes of all ratios that both files have; rows are matched by their texts.

    Raises:
        ValueError: the files are of different benchmarks, or have no ratio in common.
    """
    questions = [label(result["question"]) for result in (before, after)]
    if questions[0] != questions[1]:
        raise ValueError(f"results of different benchmarks: {questions[0]!r} and {questions[1]!r}")
    old, new = _ratios(before), _ratios(after)
    found = []
    for arm in (arm for arm in new if arm in old):
        (was, _, _), (now, _, high) = old[arm], new[arm]
        lowest_before = old[arm][1]
        slower = now < was * (1 - tolerance) and high < lowest_before
        found.append(Change(arm, was, now, slower))
    if not found:
        raise ValueError("the two results have no ratio in common")
    return found


def _ratios(result: Any) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest of each ratio over the rounds."""
    found = {}
    for row in result.get("rows", []):
        name = " ".join(label(value) for value in row.values() if isinstance(value, str))
        for key, value in row.items():
            if key.startswith(("ratio_to", "times_")):
                found[f"{name}, {key}"] = (
                    value,
                    *row.get(f"range_of_{key}", row.get("ratio_range")),
                )
    return found


def main() -> None:
    words = [word for word in sys.argv[1:] if "=" not in word]
    given = dict(word.split("=", 1) for word in sys.argv[1:] if "=" in word)
    if len(words) != 2 or set(given) - {"tolerance"}:
        sys.exit(__doc__)
    try:
        before, after = (json.loads(Path(word).read_text(encoding="utf-8")) for word in words)
        found = changes(before, after, float(given.get("tolerance", TOLERANCE)))
    except (OSError, ValueError, KeyError) as error:
        sys.exit(f"compare.py: {error}")
    table = Table(title=label(after["question"]))
    for heading in ("", "before", "after", ""):
        table.add_column(heading, justify="right")
    for change in found:
        verdict = "slower" if change.regression else ""
        table.add_row(change.arm, f"{change.before:.2f}", f"{change.after:.2f}", verdict)
    Console().print(table)
    if any(change.regression for change in found):
        sys.exit(1)


if __name__ == "__main__":
    main()
