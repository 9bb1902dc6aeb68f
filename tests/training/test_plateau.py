"""Rates that follow the training error, in a run and in a run that resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.tracking.tracker import read_records
from alexnet2012.training.trainer import Trainer


def settings(store: Store, *more: str) -> TrainConfig:
    """A rate so small that the training error stays where it is."""
    words = [
        *("experiment=relu/quick", "data=store", f"data.store={store.root}", "mesh.device=cpu"),
        *("model.width=0.04", "data.limit=2", "data.batch_size=32", "tracking.log_every_steps=1"),
        *("schedule.kind=train_plateau", "schedule.factor=2", "schedule.patience_epochs=1"),
        *("schedule.rate=1e-12", "schedule.epochs=4", "schedule.max_drops=2"),
        "checkpoint.every_epochs=1",
    ]
    return compose_config("train", TrainConfig, [*words, *more])[0]


def rates(run_dir: Path, config: TrainConfig) -> list[float]:
    Trainer(config, single_process(Device.cpu), run_dir).run()
    records = read_records(run_dir / "metrics.jsonl")
    by_epoch = {r["epoch"]: r["rate"] for r in records if r["kind"] == "train"}
    return [by_epoch[epoch] / config.schedule.rate for epoch in sorted(by_epoch)]


def test_rates_are_halved_while_the_training_error_does_not_fall(
    photos_store: Store, tmp_path: Path
) -> None:
    config = settings(photos_store)
    assert config.eval_every_epochs > 1  # no validation is needed
    assert rates(tmp_path / "whole", config) == [1, 1, 0.5, 0.25]


def test_a_run_that_resumes_remembers_its_training_errors(
    photos_store: Store, tmp_path: Path
) -> None:
    config = settings(photos_store)
    short = replace(config, schedule=replace(config.schedule, epochs=2))
    assert rates(tmp_path / "run", short) == [1, 1]
    assert rates(tmp_path / "run", config) == [1, 1, 0.5, 0.25]
