"""Which steps on a GPU run eagerly and which are replayed. tests/gpu replays real graphs."""

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


class Replayed:
    """In place of a CUDA graph, which needs a GPU: computes again."""

    made = 0

    def __init__(self, model: AlexNet, work: Callable[..., Output], *batch: Any) -> None:
        Replayed.made += 1
        self._work, self._rows, self.times = work, batch[-1], 0

    def fits(self, images: Tensor, rows: Shard) -> bool:
        return rows == self._rows

    def replay(self, images: Tensor, labels: Tensor) -> Output:
        assert len(images) == self._rows.size
        self.times += 1
        return self._work(images, labels, self._rows)


@pytest.fixture
def tries() -> list[bool]:
    """Whether cuDNN timed its algorithms, at each step that was computed."""
    return []


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch, tries: list[bool]) -> GraphedStep:
    monkeypatch.setattr(cuda_graph, "_Graph", Replayed)
    monkeypatch.setattr(Replayed, "made", 0)
    on_cpu = single_process(Device.cpu)
    net = AlexNet("paper", 4, model=ModelConfig(width=0.05, input_size=64), mesh=on_cpu)

    def forward_backward(images: Tensor, labels: Tensor, rows: Shard) -> Output:
        tries.append(torch.backends.cudnn.benchmark)
        return net(images, rows).sum(), labels.sum()

    return GraphedStep(net, forward_backward)


def take(step: GraphedStep, *counts: int) -> int:
    """Steps of so many images; how many were replayed."""
    before = step._graph.times if step._graph else 0
    for count in counts:
        images, labels = torch.randn(count, 3, 64, 64), torch.zeros(count, dtype=torch.long)
        loss, errors = step(images, labels, Shard(0, count, count))
        assert loss.shape == errors.shape == ()
    return (step._graph.times if step._graph else 0) - before


def test_whole_batches_are_replayed_after_a_few_steps(step: GraphedStep) -> None:
    assert take(step, *[3] * WARM_UP) == 0
    assert take(step, 3, 3) == 2
    assert take(step, 2) == 0  # the last of an epoch
    assert take(step, 3, 3) == 2
    assert Replayed.made == 1


def test_a_run_that_resumes_with_a_smaller_batch_records_whole_ones(step: GraphedStep) -> None:
    assert take(step, 2, *[3] * WARM_UP) == 0
    assert take(step, 3) == 1


def test_cudnn_times_algorithms_for_whole_batches_only(
    step: GraphedStep, tries: list[bool]
) -> None:
    take(step, 3, 2, 3)
    assert tries == [True, False, True]
    assert not torch.backends.cudnn.benchmark
