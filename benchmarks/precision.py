"""Does a network learn in bf16 as it does in float32?

    python benchmarks/precision.py [seeds=5] [epochs=6]

Trains a small network (conf/experiment/ablations/quick: an eighth of the kernels, 64 pixels) on the
embedded photographs, in both precisions with the same seeds: initial values, order, crops and
dropout are the same. Prints for each epoch the mean difference of training loss and error, bf16
minus float32, with its 95% interval over the seeds, and the standard deviation of float32 over the
seeds; writes results/precision.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import given, keep, show

from alexnet2012.ledger.statistics import SeedMean
from alexnet2012.tracking.tracker import read_records

PRECISIONS = ("fp32", "bf16")


def epochs_of(run: Path) -> list[dict[str, Any]]:
    return [r for r in read_records(run / "metrics.jsonl") if r["kind"] == "epoch"]


def main() -> None:
    words, load_before = given(seeds=5, epochs=6), os.getloadavg()[0]
    seeds = range(words.seeds)
    with tempfile.TemporaryDirectory() as folder:
        sweep = (
            "experiment=ablations/quick",
            "ablation=none",
            f"schedule.epochs={words.epochs}",
            f"precision={','.join(PRECISIONS)}",
            f"seed={','.join(map(str, seeds))}",
            f"hydra.sweep.dir={folder}",
            "hydra.sweep.subdir=${precision}/${seed}",
        )
        command = [sys.executable, "-m", "alexnet2012.train", "-m", *sweep]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        fp32, bf16 = (
            [epochs_of(Path(folder, precision, str(seed))) for seed in seeds]
            for precision in PRECISIONS
        )
    rows = []
    for epoch in range(words.epochs):
        row: dict[str, Any] = {"epoch": epoch + 1}
        for key in ("loss", "train_error_pct"):
            ours, theirs = ([run[epoch][key] for run in runs] for runs in (bf16, fp32))
            found = SeedMean.of([a - b for a, b in zip(ours, theirs, strict=True)])
            low, high = found.interval or (float("nan"), float("nan"))
            row |= {f"{key}_fp32": statistics.mean(theirs), f"{key}_difference": found.mean}
            row |= {f"{key}_interval": [low, high], f"{key}_spread": statistics.stdev(theirs)}
        rows.append(row)
    columns = {
        "epoch": "{epoch}",
        "loss, float32": "{loss_fp32:.3f}",
        "bf16 - float32": "{loss_difference:+.3f}",
        "95% interval": "{loss_interval[0]:+.3f} to {loss_interval[1]:+.3f}",
        "SD over seeds": "{loss_spread:.3f}",
        "error, float32, %": "{train_error_pct_fp32:.1f}",
        "bf16 - float32, points": "{train_error_pct_difference:+.2f}",
        "95% interval, points": (
            "{train_error_pct_interval[0]:+.2f} to {train_error_pct_interval[1]:+.2f}"
        ),
        "SD over seeds, points": "{train_error_pct_spread:.2f}",
    }
    show(f"Training in bf16 compared with float32, {words.seeds} paired seeds", columns, rows)
    keep("learning curves in bf16 and float32", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
