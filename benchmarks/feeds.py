"""How should two towers come by the same pictures, and how long does training wait for them?

    python benchmarks/feeds.py [steps=12] [batch=64] [rounds=3]

Trains the full-size net on two processes with each feed in turn, on the embedded photos, and takes
images/s, the share of the time in which a step waits for input, and the seconds to the first batch
(not in the share: pipelines start once a run) from the run's own record. Prints a table and writes
results/feeds.json.
"""

from __future__ import annotations

import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alexnet2012.choices import Feed
from alexnet2012.config import PrepareConfig
from alexnet2012.data.preparing import prepare

FEEDS = [feed.value for feed in Feed]


def train(folder: Path, feed: str, number: int, steps: int, batch: int) -> dict[str, Any]:
    """The throughput record of a short run."""
    run_dir = folder / f"{feed}-{number}"
    words = (
        "recipe=code145",
        "schedule=constant",
        "data=store",
        f"data.store={folder / 'store'}",
        f"data.feed={feed}",
        f"data.batch_size={batch}",
        f"max_steps={steps}",
        "checkpoint_every_epochs=null",
        "tracking.wandb=disabled",
        f"hydra.run.dir={run_dir}",
    )
    command = [sys.executable, "-m", "alexnet2012.train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = (run_dir / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(records[-1])
    return found


def main() -> None:
    given = dict(word.split("=") for word in sys.argv[1:])
    steps, batch, rounds = (
        int(given.get(key, default))
        for key, default in (("steps", 12), ("batch", 64), ("rounds", 3))
    )
    records: dict[str, list[dict[str, Any]]] = {feed: [] for feed in FEEDS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(PrepareConfig("photos", str(folder / "store")), progress=False)
        for number in range(rounds):
            for feed in FEEDS:
                records[feed].append(train(folder, feed, number, steps, batch))
    table = Table(title=f"Full-size training on two processes, batch {batch}, median of {rounds}")
    for heading in ("feed", "images/s", "ratio", "its range", "waits for input", "first batch"):
        table.add_column(heading, justify="right")
    rows = []
    for feed in FEEDS:
        rates = [record["images_per_s"] for record in records[feed]]
        others = [record["images_per_s"] for record in records["duplicate"]]
        ratios = [mine / other for mine, other in zip(rates, others, strict=True)]
        row = {
            "feed": feed,
            "images_per_s": statistics.median(rates),
            "ratio_to_duplicate": statistics.median(ratios),
            "ratio_range": [min(ratios), max(ratios)],
            "input_wait_pct": statistics.median(r["input_wait_pct"] for r in records[feed]),
            "first_batch_s": statistics.median(r["first_batch_s"] for r in records[feed]),
        }
        rows.append(row)
        numbers = [f"{row['images_per_s']:.1f}", f"{row['ratio_to_duplicate']:.3f}"]
        numbers += ["{:.3f} - {:.3f}".format(*row["ratio_range"]), f"{row['input_wait_pct']:.2f}%"]
        numbers.append(f"{row['first_batch_s']:.2f} s")
        table.add_row(feed, *numbers)
    Console().print(table)
    result = {
        "question": "the two feeds, in full-size training",
        "command": "python benchmarks/feeds.py " + " ".join(sys.argv[1:]),
        "steps": steps,
        "batch": batch,
        "rounds": rounds,
        "machine": {"processor": platform.machine(), "cores": len(os.sched_getaffinity(0))},
        "versions": {name: version(name) for name in ("torch", "nvidia-dali-cuda130")},
        "rows": rows,
    }
    out = Path(__file__).parent / "results" / "feeds.json"
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
