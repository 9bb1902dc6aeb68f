"""Data replicas: uneven last batches are weighted correctly; ranks that differ are refused."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from ranks import run_ranks

from alexnet2012.config.enums import Device, Precision, ScheduleKind, WandbMode
from alexnet2012.config.schema import (
    CheckpointConfig,
    DataConfig,
    MeshConfig,
    ModelConfig,
    RunError,
    ScheduleConfig,
    TrackingConfig,
    TrainConfig,
)
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import init_mesh
from alexnet2012.training.divergence import DivergedError
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.shard import Shard

# 32 images in batches of 31: the last step has one image, and the second replica has none.
IMAGES_PER_CLASS, BATCH = 2, 31


def group_timeouts(timeout_s: int) -> list[float]:
    mesh = init_mesh(2, device="cpu", timeout_s=timeout_s)
    cpu = torch.device("cpu")
    groups = (mesh.tower_group, mesh.data_group, mesh.new_tower_group(timeout_s))
    assert len({id(group) for group in groups}) == len(groups)
    return [g._get_backend(cpu).options._timeout.total_seconds() for g in groups if g is not None]


def test_every_process_group_has_the_requested_timeout() -> None:
    assert run_ranks(4, group_timeouts, 77) == 4 * [[77, 77, 77]]


def config(store: str) -> TrainConfig:
    schedule = ScheduleConfig(kind=ScheduleKind.fixed, epochs=1, rate=0.01, bias_rate=0.01)
    return TrainConfig(
        precision=Precision.fp64,
        recipe=load_recipe("paper"),
        model=ModelConfig(width=0.04, input_size=64),
        schedule=schedule,
        data=DataConfig(
            source=None,
            store=store,
            store_size=72,
            batch_size=BATCH,
            limit=IMAGES_PER_CLASS,
        ),
        mesh=MeshConfig(device=Device.cpu),
        tracking=TrackingConfig(wandb=WandbMode.disabled),
        checkpoint=CheckpointConfig(every_epochs=None, every_minutes=None),
    )


def train(store: str, run_dir: str) -> dict[str, np.ndarray]:
    trainer = Trainer(config(store), init_mesh(2, device="cpu"), Path(run_dir))
    trainer.run()
    return {name: w.numpy() for name, w in trainer.model.full_state_dict().items()}


def test_a_replica_without_images_in_the_last_step_trains_like_one_process(
    photos_store: Store, tmp_path: Path
) -> None:
    store = str(photos_store.root)
    (want,) = run_ranks(1, train, store, str(tmp_path / "one"))
    for got in run_ranks(4, train, store, str(tmp_path / "four")):
        # Sums over images and channels in a different order change the last bits of float64.
        worst = max(float(np.abs(got[n] - want[n]).max() / np.abs(want[n]).max()) for n in want)
        assert worst < 1e-10


def check_batch(store: str, run_dir: str, differing_rank: int | None) -> str:
    """This rank's error message if ``differing_rank`` has a different image than its peers."""
    mesh = init_mesh(2, device="cpu")
    trainer = Trainer(config(store), mesh, Path(run_dir))
    images = torch.full((1, 3, 64, 64), 1.0 if mesh.rank == differing_rank else 0.0)
    batch = Batch(images, torch.zeros(1, dtype=torch.int64), np.zeros(1, np.int64), Shard(0, 1, 1))
    try:
        trainer._before_step(batch)
    except RunError as error:
        return str(error)
    return "no error"


@pytest.mark.parametrize("differing_rank", [None, 1, 3])
def test_every_rank_raises_if_a_tower_has_a_different_batch(
    photos_store: Store, tmp_path: Path, differing_rank: int | None
) -> None:
    messages = run_ranks(4, check_batch, str(photos_store.root), str(tmp_path), differing_rank)
    if differing_rank is None:
        assert messages == ["no error"] * 4
    else:
        assert len(set(messages)) == 1
        assert messages[0].startswith("batch of step 1 differs between ranks: digest is")
        assert re.search(
            rf"on rank {differing_rank} and \d+ on rank {differing_rank - 1};", messages[0]
        )


def configure_differently(store: str, run_dir: str) -> str:
    mesh = init_mesh(2, device="cpu")
    differing = replace(config(store), seed=mesh.rank)
    try:
        Trainer(differing, mesh, Path(run_dir)).run()
    except RunError as error:
        return str(error)
    return "no error"


def test_every_rank_raises_if_ranks_have_different_settings(
    photos_store: Store, tmp_path: Path
) -> None:
    messages = run_ranks(2, configure_differently, str(photos_store.root), str(tmp_path))
    assert len(set(messages)) == 1
    assert "seed is 1 on rank 1 and 0 on rank 0" in messages[0]


def diverge(store: str, run_dir: str) -> str:
    """Rank 3, a tower of the second replica, has a NaN kernel."""
    mesh = init_mesh(2, device="cpu")
    trainer = Trainer(config(store), mesh, Path(run_dir))
    if mesh.rank == 3:
        with torch.no_grad():
            trainer.model.get_parameter("conv4.weight")[0] = float("nan")
    try:
        trainer.run()
    except DivergedError as error:
        return str(error)
    return "trained"


def test_a_nan_loss_on_one_replica_ends_every_rank_with_the_same_message(
    photos_store: Store, tmp_path: Path
) -> None:
    messages = run_ranks(4, diverge, str(photos_store.root), str(tmp_path))
    assert len(set(messages)) == 1
    assert "step 1: loss is nan; first non-finite: parameters of conv4 on rank 3;" in messages[0]
