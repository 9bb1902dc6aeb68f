"""How fast is a full-size training step: on two processes, on one, and in plain PyTorch?

    python benchmarks/full_step.py [batch=32] [steps=3] [rounds=3]

Arms take turns (A B C A B C …) and are compared within a round, since a shared machine drifts.
Prints images/s and ratios to the plain net, and writes results/full_step.json.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from record import given, keep, show
from torch import Tensor, nn

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.checks import load_recipe
from alexnet2012.launcher import launch, reuse_memory, set_threads
from alexnet2012.optimizer import PaperSGD
from alexnet2012.schedule import Rates

CLASSES = 1000
PLAIN = "plain PyTorch, 1 process"
ARMS = {"ours, 2 processes": 2, "ours, 1 process": 1, PLAIN: 1}


def plain_net() -> nn.Module:
    """The paper's net as one would write it with torch.nn."""

    def block(conv: nn.Conv2d, *more: nn.Module) -> list[nn.Module]:
        return [conv, nn.ReLU(), *more]

    def lrn() -> nn.Module:
        return nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout()]

    return nn.Sequential(
        *block(nn.Conv2d(3, 96, 11, 4, 2), lrn(), nn.MaxPool2d(3, 2)),
        *block(nn.Conv2d(96, 256, 5, 1, 2, groups=2), lrn(), nn.MaxPool2d(3, 2)),
        *block(nn.Conv2d(256, 384, 3, 1, 1)),
        *block(nn.Conv2d(384, 384, 3, 1, 1, groups=2)),
        *block(nn.Conv2d(384, 256, 3, 1, 1, groups=2), nn.MaxPool2d(3, 2)),
        nn.Flatten(),
        *hidden(9216),
        *hidden(4096),
        nn.Linear(4096, CLASSES),
    )


def run_apart(processes: int, *args: Any) -> None:
    """An arm in processes of its own: what one does to its memory must not help the next."""
    if processes > 1:
        launch(time_arm, processes, *args)
    else:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            pool.submit(time_arm, *args).result()


def time_arm(arm: str, batch: int, steps: int, answer: Path) -> None:
    """On each process of an arm: images/s over ``steps`` steps after one that is not counted."""
    set_threads(ARMS[arm])
    mesh = init_mesh(2, device="cpu")  # of the plain net's process: itself alone
    if arm == PLAIN:
        net: nn.Module = plain_net()
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            net.parameters(), 0.01, momentum=0.9, weight_decay=0.0005
        )
    else:
        reuse_memory()
        ours = AlexNet("paper", CLASSES, mesh=mesh)
        paper_sgd = PaperSGD(ours, load_recipe("paper").optimizer)
        paper_sgd.set_rates(Rates(0.01, 0.01))
        net, optimizer = ours, paper_sgd
    draw = torch.Generator().manual_seed(0)
    images = 50 * torch.randn(batch, 3, 224, 224, generator=draw)
    labels = torch.randint(CLASSES, (batch,), generator=draw)
    seconds = timed(lambda: step(net, optimizer, images, labels), steps)
    if mesh.rank == 0:
        answer.write_text(json.dumps(batch * steps / seconds), encoding="utf-8")
    mesh.close()


def step(net: nn.Module, optimizer: torch.optim.Optimizer, x: Tensor, labels: Tensor) -> None:
    optimizer.zero_grad()
    F.cross_entropy(net(x), labels).backward()
    optimizer.step()


def timed(work: Callable[[], None], times: int) -> float:
    work()
    began = time.perf_counter()
    for _ in range(times):
        work()
    return time.perf_counter() - began


def main() -> None:
    words, load_before = given(batch=32, steps=3, rounds=3), os.getloadavg()[0]
    rates: dict[str, list[float]] = {arm: [] for arm in ARMS}
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "rate.json")
        for _ in range(words.rounds):
            for arm, processes in ARMS.items():
                run_apart(processes, arm, words.batch, words.steps, answer)
                rates[arm].append(json.loads(answer.read_text(encoding="utf-8")))
    rows = []
    for arm in ARMS:
        ratios = [mine / plain for mine, plain in zip(rates[arm], rates[PLAIN], strict=True)]
        rows.append(
            {
                "arm": arm,
                "images_per_s": statistics.median(rates[arm]),
                "ratio_to_plain": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
    columns = {
        "": "{arm}",
        "images/s": "{images_per_s:.1f}",
        "ratio to plain": "{ratio_to_plain:.2f}",
        "its range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
    }
    title = f"Full-size training step, float32, batch {words.batch}, median of {words.rounds}"
    show(title, columns, rows)
    keep("full-size training step", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
