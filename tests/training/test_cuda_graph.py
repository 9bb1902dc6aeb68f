"""Which training steps are replayed, and that replayed ones equal eager ones to the bit.

Without a GPU a recorder of the tests stands in for CUDA graphs; tests/gpu has real ones.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from programs import TINY
from ranks import run_ranks
from recorders import ComputesAgain, OutOfMemory
from torch import Tensor

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.checkpoint.run_dir import SUMMARY
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ModelConfig, RunError, TrainConfig
from alexnet2012.data.loaders import Batch
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training import trainer
from alexnet2012.training.cuda_graph import WARM_UP, GraphedStep, Sums
from alexnet2012.training.train_step import TrainStep
from alexnet2012.utils.shard import Shard, shard_of

SMALL = ModelConfig(width=1 / 24, input_size=64)
STEPS, BATCH, LAST_BATCH = 20, 5, 3  # every fifth step is the smaller last one of an epoch


class Counting:
    """A step whose passes are counted."""

    def __init__(self) -> None:
        self.passes = self.updates = 0
        self.benchmarked: list[bool] = []  # for each pass: whether cuDNN timed its algorithms

    def gradients(self, images: Tensor, labels: Tensor, rows: Shard) -> Sums:
        assert len(images) == rows.size
        self.passes += 1
        self.benchmarked.append(torch.backends.cudnn.benchmark)
        return images.sum(), labels.sum().float(), torch.zeros(())

    def update(self, global_loss: Tensor) -> None:
        self.updates += 1


class Replays:
    """A recorder that only counts: captures of a step, and replays of its two parts."""

    captures = replays = 0

    def capture(self, work: Any) -> Any:
        Replays.captures += 1
        return work()

    def replay(self) -> None:
        Replays.replays += 1

    def close(self) -> None:
        pass


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> GraphedStep:
    monkeypatch.setattr(Replays, "captures", 0)
    monkeypatch.setattr(Replays, "replays", 0)
    model = AlexNet("paper", 4, model=SMALL, mesh=single_process(Device.cpu))
    return GraphedStep(model, Counting(), Replays)


def run_steps(step: GraphedStep, *counts: int, total: int | None = None) -> int:
    """Run one step for each count of images; returns how many were replayed."""
    before = Replays.replays
    for count in counts:
        rows = Shard(0, count, total or count)
        sums = step.gradients(torch.ones(count, 3, 64, 64), torch.zeros(count), rows)
        step.update(sums[0])
    assert (Replays.replays - before) % 2 == 0
    return (Replays.replays - before) // 2


def test_full_batches_are_replayed_after_the_warm_up(step: GraphedStep) -> None:
    assert run_steps(step, *[3] * WARM_UP) == 0
    assert run_steps(step, 3, 3) == 2
    assert run_steps(step, 2) == 0  # the last batch of an epoch
    assert run_steps(step, 3, 3) == 2
    assert Replays.captures == 2  # of gradients and update


def test_a_run_that_resumes_with_a_smaller_batch_captures_full_batches(step: GraphedStep) -> None:
    assert run_steps(step, 2, *[3] * WARM_UP) == 0
    assert run_steps(step, 3) == 1


def test_the_global_batch_decides_not_this_replicas_share_of_it(step: GraphedStep) -> None:
    assert run_steps(step, *[3] * (WARM_UP + 1), total=6) == 1
    assert run_steps(step, 3, total=5) == 0  # the other replica has fewer images
    assert run_steps(step, 3, total=6) == 1


def test_cudnn_times_algorithms_for_full_batches_only(step: GraphedStep) -> None:
    run_steps(step, 3, 2, 3)
    assert step._eager.benchmarked == [True, False, True]
    assert not torch.backends.cudnn.benchmark


def test_without_a_recorder_every_step_is_eager(step: GraphedStep) -> None:
    eager = GraphedStep(step._model, Counting(), None)
    assert run_steps(eager, *[3] * (WARM_UP + 2)) == 0
    assert eager._eager.passes == eager._eager.updates == WARM_UP + 2


def batches(mesh: Mesh) -> Iterable[Batch]:
    """This replica's part of each global batch; the last one of an epoch is smaller."""
    draw = torch.Generator().manual_seed(0)
    for number in range(STEPS):
        total = LAST_BATCH if number % 5 == 4 else BATCH
        images = 60 * torch.randn(total, 3, 64, 64, generator=draw)
        labels = torch.randint(10, (total,), generator=draw)
        rows = shard_of(total, mesh.replicas, mesh.replica)
        yield Batch(rows.of(images), rows.of(labels), np.arange(rows.size), rows)


def train(
    recipe: str, towers: int, replays: bool, recorders: list[Any], micro_batch: int | None = None
) -> dict[str, Any]:
    """Weights, losses and bytes of twenty steps, with rates that change; of this rank."""
    mesh = init_mesh(towers, device="cpu")
    model = AlexNet(recipe, 10, model=SMALL, mesh=mesh)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    recorder = partial(recorders[mesh.rank], model, optimizer) if replays else None
    step = TrainStep(model, optimizer, micro_batch=micro_batch, recorder=recorder)
    warnings: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: warnings.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("alexnet2012").addHandler(handler)
    outputs = []
    for number, batch in enumerate(batches(mesh)):
        mesh.watchdog.this_rank.record.step = number + 1
        frozen = {"conv1": 0.0} if number == 12 else {}
        optimizer.set_rates(LearningRates(0.01 / (1 + number), 0.02, frozen))
        outputs.append(tuple(step(batch)))
    entries = [e.direction for e in mesh.watchdog.this_rank.record.exchanges()]
    result: dict[str, Any] = {
        "weights": {n: w.numpy() for n, w in model.full_state_dict().items()},
        "outputs": outputs,
        "bytes": dict(model.comm.traffic.sent_bytes),
        "replays": entries.count("replay"),
        "open": ComputesAgain.open,
        "warnings": warnings,
    }
    step.close()
    return result | {"closed": ComputesAgain.open == 0}


def both(recipe: str, towers: int, recorders: list[Any], *more: Any) -> list[dict[str, Any]]:
    """Twenty eager steps, then the same with graphs."""
    return [train(recipe, towers, replays, recorders, *more) for replays in (False, True)]


def assert_equal(eager: dict[str, Any], graphed: dict[str, Any]) -> None:
    assert graphed["outputs"] == eager["outputs"]
    assert graphed["bytes"] == eager["bytes"]
    for name, weight in eager["weights"].items():
        assert np.array_equal(graphed["weights"][name], weight), name


@pytest.mark.parametrize("recipe", ["paper", "code145"])
@pytest.mark.parametrize(("towers", "micro_batch"), [(2, None), (1, None), (2, 2)])
def test_replayed_steps_equal_eager_ones_in_every_bit_and_byte(
    recipe: str, towers: int, micro_batch: int | None
) -> None:
    """Two processes: two towers, or two replicas."""
    recorders = 2 * [ComputesAgain]
    for eager, graphed in run_ranks(2, both, recipe, towers, recorders, micro_batch):
        assert_equal(eager, graphed)
        assert len({output[0] for output in eager["outputs"]}) == STEPS  # the rates had an effect
        assert graphed["replays"] > 0 == eager["replays"]
        assert (graphed["open"], graphed["closed"]) == (2, True)
        assert (len(eager["bytes"]) > 0) is (towers == 2)


class SkipsAReplay(ComputesAgain):
    """Its first replay computes nothing."""

    def replay(self) -> None:
        self.replay = super().replay  # type: ignore[method-assign]


def test_a_replay_that_computes_nothing_is_not_equal() -> None:
    eager, graphed = run_ranks(2, both, "paper", 2, 2 * [SkipsAReplay])[0]
    with pytest.raises(AssertionError):
        assert_equal(eager, graphed)


def test_ranks_go_on_eagerly_if_one_of_them_cannot_capture() -> None:
    ranks = run_ranks(2, both, "paper", 2, [ComputesAgain, OutOfMemory])
    for eager, graphed in ranks:
        assert_equal(eager, graphed)
        assert graphed["replays"] == graphed["open"] == 0
    assert [graphed["warnings"] for _, graphed in ranks] == [
        [
            "training continues without CUDA graphs; rank 1 cannot capture a step: "
            "CUDA out of memory. Tried to allocate 2 GiB."
        ],
        [],
    ]


def capture_differently() -> str:
    """Rank 1 does not gather the logits, so its step has another last exchange."""
    mesh = init_mesh(2, device="cpu")
    model = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    recorder = partial(ComputesAgain, model, optimizer)
    step = TrainStep(model, optimizer, recorder=recorder)
    try:
        for number, batch in enumerate(batches(mesh)):
            step.gather_logits = not (mesh.rank == 1 and number == WARM_UP)
            step(batch)
    except RunError as error:
        return str(error)
    finally:
        step.close()
    return "no error"


def test_steps_with_other_exchanges_on_another_tower_are_refused() -> None:
    first, second = run_ranks(2, capture_differently)
    assert first == second
    assert first.startswith("captured step differs between ranks: exchange 5 is all-gather loss ")
    assert "on rank 1 and all-gather logits forward, " in first


def train_in_run_dir(store: str, run_dir: str, ends: str, graphs: bool) -> tuple[list[int], str]:
    """How many recorders were open at the end of each step, then after the run; its error."""
    mesh = init_mesh(2, device="cpu")
    words = [*TINY, f"data.store={store}", f"hydra.run.dir={run_dir}", "data.batch_size=20"]
    words += ["schedule.epochs=2", f"mesh.graph={str(graphs).lower()}"]
    config, folder = compose_config("train", TrainConfig, words)

    def recorded_step(model: AlexNet, optimizer: PaperSGD, **settings: Any) -> TrainStep:
        recorder: Any = None
        if settings["cuda_graph"]:
            recorder = partial(ComputesAgain, model, optimizer)
        return TrainStep(model, optimizer, recorder=recorder, **settings)

    opened = []

    class Watched(trainer.Trainer):
        def _after_step(self, *arguments: Any) -> None:
            opened.append(ComputesAgain.open)
            if ends == "error" and self.progress.step == WARM_UP + 2:
                raise RunError("a fault")
            super()._after_step(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trainer, "TrainStep", recorded_step)
        try:
            Watched(config, mesh, folder).run()
        except RunError as error:
            return [*opened, ComputesAgain.open], str(error)
    return [*opened, ComputesAgain.open], ""


@pytest.mark.parametrize("ends", ["normally", "error"])
def test_a_run_frees_its_graphs_before_it_leaves_the_process_group(
    photos_store: Store, tmp_path: Path, ends: str
) -> None:
    arguments = str(photos_store.root), str(tmp_path / "run"), ends, True
    for opened, error in run_ranks(2, train_in_run_dir, *arguments):
        assert opened[: WARM_UP + 1] == [0] * WARM_UP + [2]
        assert opened[-2:] == [2, 0]
        assert error == ("a fault" if ends == "error" else "")


def test_runs_with_and_without_graphs_write_the_same_metrics(
    photos_store: Store, tmp_path: Path
) -> None:
    """Two epochs on two processes, with smaller last batches and the input gathered (split)."""
    for graphs in (False, True):
        folder = str(tmp_path / str(graphs))
        ranks = run_ranks(2, train_in_run_dir, str(photos_store.root), folder, "normally", graphs)
        assert all((max(opened) == 2) is graphs for opened, _ in ranks)
    metrics = [(tmp_path / str(graphs) / "metrics.jsonl").read_bytes() for graphs in (False, True)]
    assert metrics[0] == metrics[1]
    summaries = [
        json.loads((tmp_path / str(graphs) / SUMMARY).read_text()) for graphs in (False, True)
    ]
    sent = [summary["exchange_bytes_per_image"] for summary in summaries]
    assert sent[0] == sent[1] != {}
