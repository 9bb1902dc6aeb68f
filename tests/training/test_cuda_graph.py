"""Which training steps run eagerly and which replay a CUDA graph (tests/gpu uses real graphs)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from alexnet2012 import AlexNet
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ModelConfig
from alexnet2012.distributed.mesh import single_process
from alexnet2012.training import cuda_graph
from alexnet2012.training.cuda_graph import WARM_UP, GraphedStep
from alexnet2012.utils.shard import Shard

Output = tuple[Tensor, Tensor]


class FakeGraph:
    """Stands in for a CUDA graph, which needs a GPU: a replay computes again."""

    captures = 0

    def __init__(self, model: AlexNet, work: Callable[..., Output], *batch: Any) -> None:
        FakeGraph.captures += 1
        self._work, self._rows, self.replays = work, batch[-1], 0

    def fits(self, images: Tensor, rows: Shard) -> bool:
        return rows == self._rows

    def replay(self, images: Tensor, labels: Tensor) -> Output:
        assert len(images) == self._rows.size
        self.replays += 1
        return self._work(images, labels, self._rows)


@pytest.fixture
def benchmarked() -> list[bool]:
    """For each computed step: whether cuDNN timed its algorithms."""
    return []


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, benchmarked: list[bool]) -> GraphedStep:
    monkeypatch.setattr(cuda_graph, "_Graph", FakeGraph)
    monkeypatch.setattr(FakeGraph, "captures", 0)
    on_cpu = single_process(Device.cpu)
    model = AlexNet("paper", 4, model=ModelConfig(width=0.05, input_size=64), mesh=on_cpu)

    def forward_backward(images: Tensor, labels: Tensor, rows: Shard) -> Output:
        benchmarked.append(torch.backends.cudnn.benchmark)
        return model(images, rows).sum(), labels.sum()

    return GraphedStep(model, forward_backward)


def run_steps(step: GraphedStep, *counts: int) -> int:
    """Run one step for each count of images; returns how many were replayed."""
    before = step._graph.replays if step._graph else 0
    for count in counts:
        images, labels = torch.randn(count, 3, 64, 64), torch.zeros(count, dtype=torch.long)
        loss, errors = step(images, labels, Shard(0, count, count))
        assert loss.shape == errors.shape == ()
    return (step._graph.replays if step._graph else 0) - before


def test_full_batches_are_replayed_after_the_warm_up(step: GraphedStep) -> None:
    assert run_steps(step, *[3] * WARM_UP) == 0
    assert run_steps(step, 3, 3) == 2
    assert run_steps(step, 2) == 0  # the last batch of an epoch
    assert run_steps(step, 3, 3) == 2
    assert FakeGraph.captures == 1


def test_a_run_that_resumes_with_a_smaller_batch_captures_full_batches(step: GraphedStep) -> None:
    assert run_steps(step, 2, *[3] * WARM_UP) == 0
    assert run_steps(step, 3) == 1


def test_cudnn_times_algorithms_for_full_batches_only(
    step: GraphedStep, benchmarked: list[bool]
) -> None:
    run_steps(step, 3, 2, 3)
    assert benchmarked == [True, False, True]
    assert not torch.backends.cudnn.benchmark
