"""Do planted faults leave the reference band within 10% of a training, with the cause named?

    python benchmarks/band_faults.py [experiment=reduced/quick] [store=STORE] [seed=77]

Trains 10% of the schedule in a healthy way and with each of five faults, on the photographs or on a
store. A minute on a core for reduced/quick, 15 for ablations/reduced.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from record import given, keep, show

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import PrepareConfig, RecipeConfig, RunError, TrainConfig
from alexnet2012.data.augmentation import random_stream
from alexnet2012.data.loaders import TrainLoader
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Split, Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.training.trainer import Trainer

PIXEL_STD = 60.0  # grey levels
PART = 0.1  # of a training


class _EnoughError(Exception):
    pass


class PartialTrainer(Trainer):
    """Stops after a tenth of the schedule, and the first record of the bin after it."""

    def _log_training(self, *arguments: Any) -> None:
        super()._log_training(*arguments)
        if self.progress.step > PART * self.total_steps:
            raise _EnoughError


def train_part(config: TrainConfig, run_dir: Path) -> dict[str, Any]:
    """Train a tenth of the schedule; the summary of the band."""
    trainer = PartialTrainer(config, single_process(Device.auto), run_dir)
    found: dict[str, Any] = {}
    try:
        trainer.run()
    except (_EnoughError, RunError) as error:  # RunError: the loss became infinite
        found = trainer._reporter.band()
        found["error"] = str(error)
    return found


@contextmanager
def unit_variance() -> Iterator[None]:
    subtract = TrainLoader._subtract_mean

    def divided(self: TrainLoader, *arguments: Any) -> torch.Tensor:
        return subtract(self, *arguments) / PIXEL_STD

    with patch.object(TrainLoader, "_subtract_mean", divided):
        yield


@contextmanager
def shuffled_labels() -> Iterator[None]:
    split_of = Store.split

    def shuffled(self: Store, name: str, limit: int | None = None) -> Split:
        split = split_of(self, name, limit)
        order = random_stream(0, "shuffled labels").permutation(len(split.labels))
        return replace(split, labels=split.labels[order])

    with patch.object(Store, "split", shuffled):
        yield


@contextmanager
def no_mean() -> Iterator[None]:
    opened = Store.open

    def without_mean(root: Path) -> Store:
        store = opened(root)
        assert store.mean_image is not None
        return replace(store, mean_image=np.zeros_like(store.mean_image))

    with patch.object(Store, "open", without_mean):
        yield


@contextmanager
def nothing() -> Iterator[None]:
    yield


def small_spread(recipe: RecipeConfig) -> list[str]:
    return [f"recipe.{n}.init_std={getattr(recipe, n).init_std / 10}" for n in recipe.layers]


def high_rate(config: TrainConfig) -> list[str]:
    return [f"schedule.rate_factor={16 * config.schedule.rate_factor}"]


# How a fault is planted, and a part of the cause that has to be among the likeliest.
FAULTS: dict[str, tuple[Callable[[], Any], Callable[[TrainConfig], list[str]], str]] = {
    "unit-variance pixels": (unit_variance, lambda _: [], "scale of 0 to 255"),
    "rate x 16": (nothing, high_rate, "learning rate"),
    "labels shuffled": (shuffled_labels, lambda _: [], "labels"),
    "initial spread / 10": (nothing, lambda c: small_spread(c.recipe), "initial weights"),
    "mean not subtracted": (no_mean, lambda _: [], "mean image"),
}


def main() -> None:
    asked, load_before = given(experiment="reduced/quick", store="", seed=77), os.getloadavg()[0]
    data = ("data=store", f"data.store={asked.store}") if asked.store else ("data=photos",)
    words = [f"experiment={asked.experiment}", *data, f"seed={asked.seed}", "mesh=one_process"]
    words += ["tracking.wandb=disabled", "checkpoint.every_epochs=null"]
    words += ["checkpoint.every_minutes=null"]
    config, _ = compose_config("train", TrainConfig, words)
    if config.data.source is not None:
        assert config.data.store is not None
        settings = (config.data.source, config.data.store, config.data.store_size)
        prepare(PrepareConfig(*settings))
    rows = []
    healthy = (nothing, lambda _: [], "")
    for fault, (plant, more, cause) in {"healthy": healthy, **FAULTS}.items():
        faulty, _ = compose_config("train", TrainConfig, [*words, *more(config)])
        with plant(), tempfile.TemporaryDirectory() as folder:
            found = train_part(faulty, Path(folder))
        left = found["left"] or {"likeliest_causes": []}
        causes = left["likeliest_causes"]
        rank = next((i for i, text in enumerate(causes, start=1) if cause in text), None)
        at = f"{left['progress_pct']:.1f}" if causes else "-"
        row = {"fault": fault, "at": at, "rank": rank if causes else "-"}
        rows.append({**row, "first": causes[0].partition(":")[0] if causes else "-"})
    columns = {
        "fault": "{fault}",
        "leaves its band at, %": "{at}",
        "rank of its cause": "{rank}",
        "likeliest cause": "{first}",
    }
    show(f"{asked.experiment}, 10% of the schedule", columns, rows)
    question = "do planted faults leave the reference band within 10% of a training"
    keep(question, ["torch"], load_before, rows=rows)


if __name__ == "__main__":
    main()
