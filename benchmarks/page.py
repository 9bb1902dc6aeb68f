"""Write docs/benchmarks.md from the results that are kept.

    python benchmarks/page.py

Every table as its benchmark printed it, with the command, machine, versions and commit of the run.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
QUIET_LOAD = 1.0  # more ran on the machine before

INTRODUCTION = """# Benchmarks

Written by `python benchmarks/page.py` from `benchmarks/results/`, where each run of a benchmark
leaves its figures; `make bench` runs them all. Figures of a shared machine drift: what counts are
the ratios to a peer that took turns in the same run, and their range over the rounds. Each section
names the GPU that it ran on, or says that there was none.
`python benchmarks/compare.py BEFORE.json AFTER.json` tells whether one has become slower.
"""


def page() -> str:
    results = [
        json.loads(p.read_text(encoding="utf-8")) for p in sorted(HERE.glob("results/*.json"))
    ]
    return "\n".join([INTRODUCTION, *map(section, results)])


def section(result: dict[str, Any]) -> str:
    machine = result["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, {machine.get('gpu', 'no GPU')}"
    versions = ", ".join(f"{name} {version}" for name, version in result["versions"].items())
    load = result.get("load_before", 0.0)  # older results have none
    beside = f"; load {load:.1f} before" if load > QUIET_LOAD else ""
    question = result["question"]
    lines = [f"## {question[0].upper()}{question[1:]}", ""]
    lines += [f"`{result['command']}` at {result['commit']}; {where}{beside}; {versions}.", ""]
    for table in result.get("tables", []):
        lines += [f"{table['title']}:", "", _row(table["headings"])]
        lines += [_row(["---", *["--:"] * (len(table["headings"]) - 1)])]
        lines += [*map(_row, table["cells"]), ""]
    return "\n".join(lines)


def _row(cells: list[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
