"""Which feed of the two towers is faster, and how long does training wait for input?

    python benchmarks/feeds.py [steps=12] [batch=64] [rounds=3]

Trains the full-size network on two processes with each feed in turn, on the embedded photos. From
the records of the run it reads images/s, the percentage of time that steps wait for input, and the
seconds to the first batch (not part of the percentage: pipelines start once per run). Prints a
table and writes results/feeds.json.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import given, keep, show

from alexnet2012.config.enums import Feed
from alexnet2012.config.schema import PrepareConfig
from alexnet2012.data.preparation.prepare import prepare

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
        "checkpoint={every_epochs: null, every_minutes: null}",
        "tracking.wandb=disabled",
        f"hydra.run.dir={run_dir}",
    )
    command = [sys.executable, "-m", "alexnet2012.train", *words]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    records = (run_dir / "timings.jsonl").read_text(encoding="utf-8").splitlines()
    found: dict[str, Any] = json.loads(records[-1])
    return found


def main() -> None:
    words, load_before = given(steps=12, batch=64, rounds=3), os.getloadavg()[0]
    records: dict[str, list[dict[str, Any]]] = {feed: [] for feed in FEEDS}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        prepare(PrepareConfig("photos", str(folder / "store")), progress=False)
        for number in range(words.rounds):
            for feed in FEEDS:
                records[feed].append(train(folder, feed, number, words.steps, words.batch))
    rows = []
    for feed in FEEDS:
        rates = [record["images_per_s"] for record in records[feed]]
        others = [record["images_per_s"] for record in records["duplicate"]]
        ratios = [mine / other for mine, other in zip(rates, others, strict=True)]
        rows.append(
            {
                "feed": feed,
                "images_per_s": statistics.median(rates),
                "ratio_to_duplicate": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "input_wait_pct": statistics.median(r["input_wait_pct"] for r in records[feed]),
                "first_batch_s": statistics.median(r["first_batch_s"] for r in records[feed]),
            }
        )
    columns = {
        "feed": "{feed}",
        "images/s": "{images_per_s:.1f}",
        "ratio": "{ratio_to_duplicate:.3f}",
        "range": "{ratio_range[0]:.3f} - {ratio_range[1]:.3f}",
        "waiting for input": "{input_wait_pct:.2f}%",
        "first batch": "{first_batch_s:.2f} s",
    }
    title = f"Full-size training on two processes, batch {words.batch}, median of {words.rounds}"
    show(title, columns, rows)
    packages = ["torch", "nvidia-dali-cuda130"]
    question = "the two feeds in full-size training"
    keep(question, packages, load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
