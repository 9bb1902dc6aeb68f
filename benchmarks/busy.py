"""How much of its speed on a CPU does training keep while another program keeps a core busy?

    python benchmarks/busy.py [batch=128] [widths=0.25,1] [steps=4] [rounds=3] [precision=fp32]
                              [base=DIR]

Times our step on one process and on two, at each width, on a quiet machine and beside an endless
loop that is pinned to one core. Variants take turns. ``base`` is a checkout of another commit that
takes turns with this one, by its own benchmarks/arms.py; ``src/alexnet2012/conf`` must link to its
``conf``, and its C kernels be built, if it has any. Prints images/s and the percentage kept, and
writes results/busy.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from record import given, keep, show

HERE = Path(__file__).parents[1]
STEP = """
import json, sys
from arms import OURS, Arm, time_together
width, processes, batch, steps, precision = json.loads(sys.argv[1])
(found,) = time_together([Arm(OURS, processes, precision, width)], batch, steps)
print(json.dumps(batch / found.median_s))
"""
LOOP = """
import os, sys
os.sched_setaffinity(0, {int(sys.argv[1])})
parent = os.getppid()
while os.getppid() == parent:
    for _ in range(10**6):
        pass
"""


class Case(NamedTuple):
    checkout: Path
    width: float
    processes: int


def images_per_s(case: Case, batch: int, steps: int, precision: str) -> float:
    """Measured in a process of its own, with the package and benchmarks of the checkout."""
    path = os.pathsep.join(str(case.checkout / name) for name in ("src", "benchmarks"))
    words = json.dumps([case.width, case.processes, batch, steps, precision])
    found = subprocess.run(
        [sys.executable, "-c", STEP, words],
        env={**os.environ, "PYTHONPATH": path, "CUDA_VISIBLE_DEVICES": ""},
        cwd=case.checkout,
        stdout=subprocess.PIPE,
        check=True,
    )
    rate: float = json.loads(found.stdout.splitlines()[-1])
    return rate


@contextmanager
def busy_core() -> Iterator[subprocess.Popen[bytes]]:
    """Keep the last core of this machine busy."""
    core = max(os.sched_getaffinity(0))
    loop = subprocess.Popen([sys.executable, "-c", LOOP, str(core)])
    try:
        yield loop
    finally:
        loop.kill()
        loop.wait()


def commit_of(checkout: Path) -> str:
    command = ["git", "-C", str(checkout), "describe", "--always", "--dirty", "--abbrev=12"]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.strip()


def main() -> None:
    words = given(batch=128, widths="0.25,1", steps=4, rounds=3, precision="fp32", base="")
    load_before = os.getloadavg()[0]
    checkouts = [HERE, *([Path(words.base).resolve()] if words.base else [])]
    commits = {checkout: commit_of(checkout) for checkout in checkouts}
    cases = [
        Case(checkout, float(width), processes)
        for width in words.widths.split(",")
        for processes in (1, 2)
        for checkout in checkouts
    ]
    settings = words.batch, words.steps, words.precision
    quiet: dict[Case, list[float]] = defaultdict(list)
    beside: dict[Case, list[float]] = defaultdict(list)
    for _ in range(words.rounds):
        for case in cases:
            quiet[case].append(images_per_s(case, *settings))
            with busy_core():
                beside[case].append(images_per_s(case, *settings))
    rows = []
    for case in cases:
        kept = [100 * b / q for b, q in zip(beside[case], quiet[case], strict=True)]
        rows.append(
            {
                "commit": commits[case.checkout],
                "width": case.width,
                "processes": case.processes,
                "quiet_images_per_s": statistics.median(quiet[case]),
                "busy_images_per_s": statistics.median(beside[case]),
                "kept_pct": statistics.median(kept),
                "kept_range_pct": [min(kept), max(kept)],
            }
        )
    columns = {
        "commit": "{commit}",
        "width": "{width:g}",
        "processes": "{processes}",
        "images/s, quiet": "{quiet_images_per_s:.1f}",
        "images/s, one core busy": "{busy_images_per_s:.1f}",
        "kept": "{kept_pct:.0f}%",
        "range": "{kept_range_pct[0]:.0f} - {kept_range_pct[1]:.0f}%",
    }
    title = f"Our step, batch {words.batch}, {words.precision}, median of {words.rounds} rounds"
    show(title, columns, rows)
    keep("training beside a busy core", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
