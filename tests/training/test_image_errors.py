"""A finished run keeps the error of every image that it was evaluated on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from programs import TINY
from ranks import run_ranks

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import init_mesh, single_process
from alexnet2012.ledger.evidence import read_run
from alexnet2012.training.image_errors import FILE, UNITS, label_digest
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.metrics import image_errors, topk_errors


def config_of(root: str, *words: str) -> TrainConfig:
    where = (f"data.store={root}", "recipe=code145", "schedule=constant", "schedule.epochs=1")
    return compose_config("train", TrainConfig, [*TINY, *where, "eval_views=10", *words])[0]


def train_of_rank(root: str, run_dir: str) -> None:
    config = config_of(root, "mesh.towers=1", "recipe.towers=1", "eval_train_images=20")
    Trainer(config, init_mesh(1, device="cpu"), Path(run_dir)).run()


def test_the_errors_of_images_are_those_of_the_summary(photos_store: Store, tmp_path: Path) -> None:
    config = config_of(str(photos_store.root), "mesh=one_process", "eval_train_images=20")
    Trainer(config, single_process(Device.cpu), tmp_path).run()
    summary = json.loads((tmp_path / "summary.json").read_text())
    with np.load(tmp_path / FILE) as arrays:
        top1, top5, train = (arrays[name] for name in ("top1", "top5", "train_top1"))
        labels, train_labels = str(arrays["labels"]), str(arrays["train_labels"])
    assert 100 * top1.mean() / UNITS == pytest.approx(summary["top1_error_pct"])
    assert 100 * top5.mean() / UNITS == pytest.approx(summary["top5_error_pct"])
    assert 100 * train.mean() / UNITS == pytest.approx(summary["train_eval_error_pct"])
    val, of_train = (photos_store.split(name).labels for name in ("val", "train"))
    assert (len(top1), labels) == (len(val), label_digest(val))
    spaced = np.linspace(0, len(of_train) - 1, 20).astype(int)  # every class is among them
    assert train_labels == label_digest(of_train[spaced])
    assert len(set(of_train[spaced])) == 16
    run = read_run(tmp_path)
    gap = summary["top1_error_pct"] - summary["train_eval_error_pct"]
    assert run.errors["gap_points"] == pytest.approx(gap)
    assert run.dirty == summary["dirty"]


def test_replicas_put_their_images_together(photos_store: Store, tmp_path: Path) -> None:
    """Of two replicas each evaluates half; ranks and one process differ by rounding at most."""
    run_ranks(2, train_of_rank, str(photos_store.root), str(tmp_path / "two"))
    summary = json.loads((tmp_path / "two" / "summary.json").read_text())
    with np.load(tmp_path / "two" / FILE) as arrays:
        top1, train = arrays["top1"], arrays["train_top1"]
    assert 100 * top1.mean() / UNITS == pytest.approx(summary["top1_error_pct"])
    assert 100 * train.mean() / UNITS == pytest.approx(summary["train_eval_error_pct"])
    assert len(train) == 20


def test_without_the_setting_no_training_images_are_evaluated(
    photos_store: Store, tmp_path: Path
) -> None:
    config = config_of(str(photos_store.root), "mesh=one_process", "eval_views=1")
    Trainer(config, single_process(Device.cpu), tmp_path).run()
    with np.load(tmp_path / FILE) as arrays:
        assert "train_top1" not in arrays
    assert "gap_points" not in read_run(tmp_path).errors


def test_classes_that_tie_share_the_credit_of_an_image() -> None:
    scores = torch.tensor([[1.0, 1.0, 0.0], [0.0, 2.0, 1.0], [1.0, 1.0, 1.0], [0.0, 0.0, 5.0]])
    labels = torch.tensor([0, 0, 1, 2])
    errors = image_errors(scores, labels, (1,))[1]
    assert errors.tolist() == pytest.approx([1 / 2, 1, 2 / 3, 0])
    assert (UNITS * errors).round().tolist() == pytest.approx((UNITS * errors).tolist())
    assert float(errors.sum()) == pytest.approx(topk_errors(scores, labels, (1,))[1])
