"""Micro-batches train like the whole batch, on every mesh, in less memory."""

from __future__ import annotations

import math
import weakref
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from ranks import run_ranks
from torch import Tensor

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ModelConfig
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.mesh import init_mesh, single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training.divergence import first_not_finite
from alexnet2012.training.train_step import TrainStep
from alexnet2012.utils.shard import Shard, padded_shard_size, shard_of

SIZE, CLASSES = 64, 5
# Images of each step. Two replicas have 5 and 4 rows, then 1 and none, then 3 and 3.
BATCHES = (9, 1, 6)


def step_of(micro_batch: int | None, *, gather_logits: bool = True, **mesh: Any) -> TrainStep:
    config = ModelConfig(width=0.04, input_size=SIZE)
    model = AlexNet("paper", CLASSES, model=config, precision="fp64", **mesh)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    optimizer.set_rates(LearningRates(0.01, 0.02))
    return TrainStep(model, optimizer, gather_logits=gather_logits, micro_batch=micro_batch)


def global_batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (
            60 * torch.randn(count, 3, SIZE, SIZE, generator=draw, dtype=torch.float64),
            torch.randint(CLASSES, (count,), generator=draw),
        )
        for count in BATCHES
    ]


def trained_both_ways(gather_logits: bool) -> tuple[dict[str, Any], dict[str, Any]]:
    """With the whole batch at a time and two images at a time."""
    return trained(None, gather_logits), trained(2, gather_logits)


def trained(micro_batch: int | None, gather_logits: bool) -> dict[str, Any]:
    """What a rank has after a step with each of ``BATCHES``."""
    mesh = init_mesh(2, device="cpu")
    step = step_of(micro_batch, gather_logits=gather_logits, mesh=mesh)
    exchanges: list[str] = []
    begin = mesh.watchdog.this_rank.record.begin

    def note(layer: str, direction: str, sent_bytes: int) -> None:
        exchanges.append(f"{layer} {direction}")
        begin(layer, direction, sent_bytes)

    mesh.watchdog.this_rank.record.begin = note  # type: ignore[method-assign]
    outputs = []
    for images, labels in global_batches():
        rows = shard_of(len(labels), mesh.replicas, mesh.replica)
        own = slice(rows.start, rows.stop)
        outputs.append(tuple(step(Batch(images[own], labels[own], np.arange(rows.size), rows))))
    return {
        "outputs": outputs,
        "exchanges": exchanges,
        "weights": {name: w.numpy() for name, w in step.model.full_state_dict().items()},
        "streams": {name: int(state) for name, state in step.model.random_state().items()},
    }


def differ(got: dict[str, Any], want: dict[str, Any]) -> float:
    """The largest difference of a weight, relative to the largest weight of its tensor."""
    weights = want["weights"].items()
    return max(float(np.abs(got["weights"][n] - w).max() / np.abs(w).max()) for n, w in weights)


@pytest.mark.parametrize("gather_logits", [True, False])
@pytest.mark.parametrize("processes", [1, 2, 4])
def test_micro_batches_train_like_the_whole_batch(processes: int, gather_logits: bool) -> None:
    ranks = run_ranks(processes, trained_both_ways, gather_logits)
    whole, parts = ([rank[way] for rank in ranks] for way in (0, 1))
    for got, want in zip(parts, whole, strict=True):
        # float64; sums over images in another order
        assert differ(got, want) < 1e-10
        np.testing.assert_allclose(got["outputs"], want["outputs"], rtol=1e-10)
        assert got["streams"] == want["streams"]
        assert got["exchanges"].count("gradients all-reduce") == (3 if processes == 4 else 0)
        assert got["exchanges"].count("loss all-reduce") == (3 if processes == 4 else 0)
    assert all(rank["exchanges"] == parts[0]["exchanges"] for rank in parts)
    conv3 = [rank["exchanges"].count("conv3 backward") for rank in (whole[0], parts[0])]
    # The parts of 9, 1 and 6 images are 5, 1 and 3; those of the larger replica are 3, 1 and 2.
    assert conv3 == {1: [0, 0], 2: [3, 9], 4: [3, 6]}[processes]


def test_masks_that_are_not_those_of_the_whole_batch_are_detected(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = trained(None, True)
    monkeypatch.setattr(AlexNet, "rewind_dropout", lambda *_: None)
    assert differ(trained(2, True), whole) > 1e-6


def test_a_batch_that_fits_is_computed_as_without_the_setting() -> None:
    got, want = trained(max(BATCHES), True), trained(None, True)
    assert differ(got, want) == 0
    assert got["outputs"] == want["outputs"]


def test_one_part_that_is_not_finite_keeps_the_weights_of_the_whole_step() -> None:
    step = step_of(2, mesh=single_process(Device.cpu))
    images, labels = global_batches()[0]
    images[3] = math.nan
    before = [weight.clone() for weight in step.model.parameters()]
    output = step(Batch(images, labels, np.arange(9), Shard(0, 9, 9)))
    assert math.isnan(output.global_loss)
    assert all(map(torch.equal, before, step.model.parameters()))


def test_what_diverged_is_found_part_by_part() -> None:
    step, counts = step_of(2, mesh=single_process(Device.cpu)), []
    images, labels = global_batches()[0]
    images[3] = math.nan
    rows = Shard(0, 9, 9)
    step.model.register_forward_pre_hook(lambda _, inputs: counts.append(len(inputs[0])))
    batch = Batch(images, labels, np.arange(9), rows)
    assert first_not_finite(step.model, batch, step.micro_batches(rows)) == "input of conv1"
    assert counts == [2, 2, 2, 2, 1]


def peak_bytes_kept(micro_batch: int | None) -> int:
    """The most bytes of activations that a step keeps for backward at a time."""
    step = step_of(micro_batch, mesh=single_process(Device.cpu))
    parameters = {p.untyped_storage().data_ptr() for p in step.model.parameters()}
    kept = peak = 0

    class Kept:
        def __init__(self, x: Tensor) -> None:
            self.x = x

    def release(size: int) -> None:
        nonlocal kept
        kept -= size

    def pack(x: Tensor) -> Kept:
        nonlocal kept, peak
        saved = Kept(x)
        if x.untyped_storage().data_ptr() not in parameters:
            kept += x.nbytes
            peak = max(peak, kept)
            weakref.finalize(saved, release, x.nbytes)
        return saved

    images, labels = torch.randn(8, 3, SIZE, SIZE, dtype=torch.float64), torch.zeros(8).long()
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.x):
        step(Batch(images, labels, np.arange(8), Shard(0, 8, 8)))
    return peak


def test_a_quarter_of_the_images_at_a_time_keeps_a_quarter_of_the_activations() -> None:
    assert peak_bytes_kept(2) == pytest.approx(peak_bytes_kept(None) / 4, rel=0.05)


@given(total=st.integers(1, 300), replicas=st.integers(1, 5), limit=st.integers(1, 50))
def test_parts_cover_the_rows_within_the_limit_and_are_as_many_on_every_replica(
    total: int, replicas: int, limit: int
) -> None:
    counts = set()
    for replica in range(replicas):
        rows = shard_of(total, replicas, replica)
        parts = rows.split(-(-padded_shard_size(total, replicas) // limit))
        counts.add(len(parts))
        assert [row for p in parts for row in range(p.start, p.stop)] == [*range(*rows[:2])]
        assert all(part.size <= limit and part.total == total for part in parts)
    assert len(counts) == 1
