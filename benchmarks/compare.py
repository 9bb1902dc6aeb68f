"""Has something become slower? Two result files, before and after.

    python benchmarks/compare.py BEFORE.json AFTER.json [tolerance=0.1]

Seconds and images/s differ between machines and days. What is compared are the ratios to a peer
that was measured in the same run: those that fell by more than the tolerance, and out of the range
of their rounds, are regressions. Exits with 1 if there is one.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console
from rich.table import Table

TOLERANCE = 0.1


class Change(NamedTuple):
    """Of one ratio of one arm."""

    arm: str
    before: float
    after: float
    regression: bool


def changes(before: Any, after: Any, tolerance: float) -> list[Change]:
    """Every ratio that both files have, by the words that name a row.

    Raises:
        ValueError: the files answer other questions, or have no ratio in common.
    """
    if before["question"] != after["question"]:
        raise ValueError(f"{after['question']!r} is another question than {before['question']!r}")
    old, new = _ratios(before), _ratios(after)
    found = []
    for arm in (arm for arm in new if arm in old):
        (was, _, _), (now, _, high) = old[arm], new[arm]
        lowest_before = old[arm][1]
        slower = now < was * (1 - tolerance) and high < lowest_before
        found.append(Change(arm, was, now, slower))
    if not found:
        raise ValueError("no ratio to a peer is in both")
    return found


def _ratios(result: Any) -> dict[str, tuple[float, float, float]]:
    """Median, lowest and highest over rounds."""
    found = {}
    for row in result.get("rows", []):
        name = " ".join(str(value) for value in row.values() if isinstance(value, str))
        for key, value in row.items():
            if key.startswith(("ratio_to", "times_")):
                found[f"{name}, {key}"] = (value, *row["ratio_range"])
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
    table = Table(title=after["question"])
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
