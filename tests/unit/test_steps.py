"""Which steps of a run on a GPU are computed, and which replayed. tests/gpu replays real ones."""

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
from alexnet2012.training import train_step as steps
from alexnet2012.training.train_step import WARM_UP, Found, Gradients
from alexnet2012.utils.shard import Share


class Replayed:
    """Stands for a CUDA graph: computes again."""

    made = 0

    def __init__(self, work: Callable[..., Found], model: AlexNet, *batch: Any) -> None:
        Replayed.made += 1
        self._work, self._rows, self.times = work, batch[-1], 0

    def is_of(self, images: Tensor, rows: Share) -> bool:
        return rows == self._rows

    def replayed(self, images: Tensor, labels: Tensor) -> Found:
        assert len(images) == self._rows.size
        self.times += 1
        return self._work(images, labels, self._rows)


@pytest.fixture
def gradients(monkeypatch: pytest.MonkeyPatch) -> Gradients:
    monkeypatch.setattr(steps, "_Recorded", Replayed)
    monkeypatch.setattr(Replayed, "made", 0)
    on_cpu = single_process(Device.cpu)
    net = AlexNet("paper", 4, model=ModelConfig(width=0.05, input_size=64), mesh=on_cpu)
    found = Gradients(net)
    assert not found._records
    found._on_gpu = found._records = True
    return found


def take(gradients: Gradients, *counts: int) -> int:
    """Steps of so many pictures; how many were replayed."""
    before = gradients._recorded.times if gradients._recorded else 0
    for count in counts:
        images, labels = torch.randn(count, 3, 64, 64), torch.zeros(count, dtype=torch.long)
        loss, errors = gradients(images, labels, Share(0, count, count))
        assert loss.shape == errors.shape == ()
    return (gradients._recorded.times if gradients._recorded else 0) - before


def test_whole_batches_are_replayed_after_a_few_steps(gradients: Gradients) -> None:
    assert take(gradients, *[3] * WARM_UP) == 0
    assert take(gradients, 3, 3) == 2
    assert take(gradients, 2) == 0  # the last of an epoch
    assert take(gradients, 3, 3) == 2
    assert Replayed.made == 1


def test_a_run_that_goes_on_with_a_smaller_batch_records_whole_ones(gradients: Gradients) -> None:
    assert take(gradients, 2, *[3] * WARM_UP) == 0
    assert take(gradients, 3) == 1


def test_cudnn_tries_algorithms_for_whole_batches_alone(
    gradients: Gradients, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[bool] = []
    compute = gradients._compute

    def noted(*batch: Any) -> Found:
        tries.append(torch.backends.cudnn.benchmark)
        return compute(*batch)

    monkeypatch.setattr(gradients, "_compute", noted)
    take(gradients, 3, 2, 3)
    assert tries == [True, False, True]
    assert not torch.backends.cudnn.benchmark
