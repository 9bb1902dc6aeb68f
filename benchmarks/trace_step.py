"""Which of our files does a training step pass through?

    python benchmarks/trace_step.py [recipe=paper] [precision=fp32]

Traces one step of a reduced network (one process, CPU, without the loader), from the call of
TrainStep to its return, including backward. Prints each file with its number of calls, and how
often consecutive calls are in different files: a reader who follows the step opens that many files
and switches between them that often.
"""

from __future__ import annotations

import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path
from types import FrameType
from typing import Any, NamedTuple

import numpy as np
import torch
from record import given, show

import alexnet2012
from alexnet2012 import AlexNet
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ModelConfig
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training.train_step import TrainStep
from alexnet2012.utils.shard import Shard

PACKAGE = Path(alexnet2012.__file__).parent
IMAGES = 4


class Call(NamedTuple):
    """A called function of the package, its file, and the package file that called it, if any."""

    file: str
    function: str
    caller: str | None


def traced_step(recipe: str = "paper", precision: str = "fp32") -> list[Call]:
    """The calls of one step, in order, after a warm-up step."""
    size = ModelConfig(width=0.25, input_size=112)
    model = AlexNet(recipe, 10, model=size, mesh=single_process(Device.cpu), precision=precision)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    optimizer.set_rates(LearningRates(0.001, 0.001))
    step = TrainStep(model, optimizer)
    images = 50 * torch.randn(IMAGES, 3, 112, 112, generator=torch.Generator().manual_seed(0))
    rows = Shard(0, IMAGES, IMAGES)
    batch = Batch(images, torch.zeros(IMAGES, dtype=torch.long), np.arange(IMAGES), rows)
    step(batch)
    calls: list[Call] = []

    def note(frame: FrameType, event: str, argument: Any) -> None:
        file = _own(frame)
        if event == "call" and file is not None:
            calls.append(Call(file, frame.f_code.co_qualname, _caller(frame)))

    sys.setprofile(note)
    try:
        step(batch)
    finally:
        sys.setprofile(None)
    return calls


def switches(calls: list[Call]) -> int:
    """How often two consecutive calls are in different files."""
    return sum(a.file != b.file for a, b in pairwise(calls))


def _own(frame: FrameType) -> str | None:
    file = Path(frame.f_code.co_filename)
    return str(file.relative_to(PACKAGE)) if file.is_relative_to(PACKAGE) else None


def _caller(frame: FrameType) -> str | None:
    above = frame.f_back
    while above is not None:
        if (file := _own(above)) is not None:
            return file
        above = above.f_back
    return None


def main() -> None:
    words = given(recipe="paper", precision="fp32")
    calls = traced_step(words.recipe, words.precision)
    counts = Counter(call.file for call in calls)
    rows = [{"file": file, "calls": count} for file, count in counts.items()]
    title = f"{len(counts)} files, {switches(calls)} switches between them"
    show(title, {"file": "{file}", "calls": "{calls}"}, rows)


if __name__ == "__main__":
    main()
