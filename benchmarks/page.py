"""Write docs/benchmarks.md from the stored results.

    python benchmarks/page.py

Each table is as its benchmark printed it, with the command, machine, versions and commit of the
run.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from labels import heading, label

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
QUIET_LOAD = 1.0  # a higher load average is reported

INTRODUCTION = """# Benchmarks

`python benchmarks/page.py` writes this page from `benchmarks/results/`, where each benchmark stores
its results; `make bench` runs them all. Absolute numbers drift on a shared machine. Rely on the
ratios to a baseline that took turns in the same run, and on their range over the rounds. Each
section names the GPU it ran on, or says that there was none. A training step is compared first
with the same network as a careful user writes it in PyTorch (channels last, normalisation by
slices, `torch.compile`, autocast: `benchmarks/peers.py`), then with plain PyTorch.
`python benchmarks/compare.py BEFORE.json AFTER.json` reports whether a benchmark has become slower.

Rows of *hidden exchanges* are of a variant that was removed since ([decisions](decisions.md)).
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
    load = result.get("load_before", 0.0)  # not in older results
    beside = f"; load {load:.1f} before" if load > QUIET_LOAD else ""
    question = label(result["question"])
    keys = {key for row in result.get("rows", []) for key in row}
    lines = [f"## {question[0].upper()}{question[1:]}", ""]
    lines += [f"`{result['command']}` at {result['commit']}; {where}{beside}; {versions}.", ""]
    if "ratio_to_plain" in keys and "ratio_to_compiled" not in keys:
        lines += [
            "From before there was a compiled peer; ratios to plain are to the first row.",
            "",
        ]
    for table in result.get("tables", []):
        lines += [f"{label(table['title'])}:", "", _row(map(heading, table["headings"]))]
        lines += [_row(["---", *["--:"] * (len(table["headings"]) - 1)])]
        lines += [_row([label(name), *cells]) for name, *cells in table["cells"]]
        lines.append("")
    return "\n".join(lines)


def _row(cells: Iterable[str]) -> str:
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
