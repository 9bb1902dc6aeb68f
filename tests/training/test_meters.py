"""Running sums are restored on any mesh; each second is counted once."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.collectives import Traffic
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.training.meters import LossMeter, ThroughputMeter
from alexnet2012.utils.shard import Shard

SAVED = [[1.0, 2.0, 3.0], [0.1, 0.2, 4.0]]  # loss, errors and images of two replicas


def replica(number: int, of: int) -> Mesh:
    return Mesh(torch.device("cpu"), replicas=of, replica=number)


def test_on_the_same_mesh_each_replica_restores_its_own_sums() -> None:
    assert [LossMeter.restored(SAVED, replica(r, 2)) for r in (0, 1)] == [
        LossMeter(*row) for row in SAVED
    ]


@pytest.mark.parametrize("replicas", [1, 3])
def test_on_another_mesh_the_first_replica_restores_the_total(replicas: int) -> None:
    first, *others = (LossMeter.restored(SAVED, replica(r, replicas)) for r in range(replicas))
    assert first == LossMeter(1.1, 2.2, 7.0)
    assert others == [LossMeter()] * (replicas - 1)


def test_sums_saved_before_the_first_step_are_zero() -> None:
    assert LossMeter.restored([], replica(0, 2)) == LossMeter()


def test_each_pace_covers_the_steps_since_the_previous_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 0.0
    monkeypatch.setattr("alexnet2012.training.meters.time.perf_counter", lambda: now_s)
    throughput, traffic, paces = ThroughputMeter(), Traffic(), []
    batch = Batch(torch.empty(2), torch.empty(2), np.arange(2), Shard(0, 2, 4))  # of two replicas
    for epoch in range(2):
        now_s += 100  # a validation, which is not counted
        throughput.start()
        for step in range(3):
            now_s += 7 if epoch == step == 0 else 0.25  # start-up of the pipelines, then a wait
            throughput.waited()
            now_s += 1
            traffic.seconds["fc7", "forward"] += 0.5
            traffic.seconds["fc7", "inference"] += 50
            throughput.trained(batch)
            if step != 1:
                paces.append(throughput.pace(traffic))
            throughput.lap()
        throughput.lap()
    assert [pace["step_time_ms"] for pace in paces] == [1000, 1250, 1250, 1250]
    assert [pace["input_wait_ms"] for pace in paces] == [0, 250, 250, 250]
    assert [pace["exchange_ms"] for pace in paces] == [500] * 4
    assert [pace["images_per_s"] for pace in paces] == [4, 3.2, 3.2, 3.2]
    assert (throughput.train_s, throughput.input_wait_s) == (1 + 5 * 1.25, 5 * 0.25)
    assert (throughput.first_batch_s, throughput.images, throughput.local_images) == (7, 24, 12)
    assert throughput.timings(traffic)["images_per_s"] == 24 / 7.25
