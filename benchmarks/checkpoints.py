"""What does a checkpoint every minute cost the training?

    python benchmarks/checkpoints.py [batch=32] [steps=4] [rounds=6]

The full-size network in two processes: a few steps during which a checkpoint is written, timed
until the checkpoint is complete, and the same steps without one. The two alternate, because the
speed of a shared machine drifts. The difference is the cost of one checkpoint. Prints its
percentage of a minute and how long training paused, and writes results/checkpoints.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import given, keep, show

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.checkpoint.manager import CheckpointManager
from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.schema import CheckpointConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.consensus import ControlFlags, FlagSync
from alexnet2012.distributed.launch import launch, reuse_memory
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD

CLASSES = 1000
MEAN_IMAGE = np.zeros((256, 256, 3), np.float32)


def measure(batch: int, steps: int, rounds: int, folder: Path) -> None:
    """Runs on each rank; rank 0 writes the seconds of each block of steps to the folder."""
    reuse_memory()
    mesh = init_mesh(2, device="cpu")
    model = AlexNet("paper", CLASSES, mesh=mesh)
    optimizer = PaperSGD(model, load_recipe("paper").optimizer)
    optimizer.set_rates(LearningRates(0.01, 0.01))
    draw = torch.Generator().manual_seed(0)
    images = 50 * torch.randn(batch, 3, 224, 224, generator=draw)
    labels = torch.randint(CLASSES, (batch,), generator=draw)
    saver, exchange = (
        CheckpointManager(CheckpointConfig(), folder, mesh, 0),
        FlagSync(mesh, timeout_s=300),
    )
    found: dict[str, list[float]] = {name: [] for name in ("with", "without", "still", "wishes")}

    def block(save_as: int | None) -> float:
        mesh.barrier()
        began = time.perf_counter()
        if save_as is not None:
            progress = Progress(step=save_as, epoch=0)
            saver.save(TrainingState.of(model, optimizer, progress, MEAN_IMAGE))
            found["still"].append(time.perf_counter() - began)
        for _ in range(steps):
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
            optimizer.step()
            asked = time.perf_counter()
            exchange(ControlFlags())
            found["wishes"].append(time.perf_counter() - asked)
        saver.wait()
        return time.perf_counter() - began

    block(0)  # so that all memory has been used once
    for number in range(1, rounds + 1):
        for arm in ("with", "without") if number % 2 else ("without", "with"):
            found[arm].append(block(number if arm == "with" else None))
    exchange.finish()
    if mesh.rank == 0:
        (folder / "found.json").write_text(json.dumps(found), encoding="utf-8")
    mesh.close()


def main() -> None:
    words, load_before = given(batch=32, steps=4, rounds=6), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        launch(measure, 2, words.batch, words.steps, words.rounds, folder)
        found = json.loads((folder / "found.json").read_text(encoding="utf-8"))
        (newest, *_) = sorted((folder / "checkpoints").iterdir(), reverse=True)
        megabytes = sum(file.stat().st_size for file in newest.iterdir()) / 1e6
    extra_s = [a - b for a, b in zip(found["with"], found["without"], strict=True)]
    row: dict[str, Any] = {
        "megabytes": megabytes,
        "step_s": statistics.median(found["without"]) / words.steps,
        "still_s": statistics.median(found["still"][1:]),
        "extra_s": statistics.median(extra_s),
        "extra_s_range": [min(extra_s), max(extra_s)],
        "of_a_minute_pct": statistics.median(extra_s) / 60 * 100,
        "wishes_ms": 1e3 * statistics.median(found["wishes"]),
    }
    columns = {
        "MB, both ranks": "{megabytes:.0f}",
        "step, s": "{step_s:.2f}",
        "training paused, s": "{still_s:.2f}",
        "added time, s": "{extra_s:.2f}",
        "range": "{extra_s_range[0]:.2f} - {extra_s_range[1]:.2f}",
        "of a minute, %": "{of_a_minute_pct:.2f}",
        "flag sync per step, ms": "{wishes_ms:.2f}",
    }
    show(f"One checkpoint of the full-size network, median of {words.rounds}", columns, [row])
    keep("cost of a checkpoint every minute", ["torch"], load_before, **vars(words), row=row)


if __name__ == "__main__":
    main()
