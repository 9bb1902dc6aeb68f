"""The step timer on two processes: layers without their exchanges, and the link by itself."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from alexnet2012 import init_mesh
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import MeshConfig, ModelConfig, PlanConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.diagnostics import step_timer
from alexnet2012.diagnostics.step_timer import time_link, time_steps
from alexnet2012.distributed.collectives import Traffic
from alexnet2012.distributed.mesh import Mesh

TINY = ModelConfig(width=0.04, input_size=64)
EXCHANGES, DELAY_S = 9, 0.05  # per step; added to each, far more than a tiny layer takes
ON_LINK_S = 0.01  # far longer than a gather between two processes of a machine


def measure_with_slow_exchanges() -> dict[str, Any]:
    mesh = init_mesh(2, device="cpu")
    exchange = dist.all_to_all_single

    def slow_exchange(*args: Any, **kwargs: Any) -> Any:
        time.sleep(delay_s)
        return exchange(*args, **kwargs)

    config = PlanConfig(classes=5, recipe=load_recipe("paper"), model=TINY)
    dist.all_to_all_single = slow_exchange
    delay_s = ON_LINK_S
    timings: dict[str, Any] = {"link": time_link(mesh)}
    delay_s = DELAY_S
    timings["layers"] = time_steps(config, mesh, rows=2)
    Traffic.training_seconds = lambda traffic: 0.0  # count exchanges
    return timings | {"with exchanges": time_steps(config, mesh, rows=2)}


def test_layers_are_timed_without_their_exchanges_and_the_link_with_them() -> None:
    for rank in run_ranks(2, measure_with_slow_exchanges):
        directions = {"conv1": {"forward", "backward"}, "fc8": {"forward", "backward"}}
        for layer, ways in directions.items():
            assert {way for name, way in rank["layers"] if name == layer} == ways
        assert 0 < sum(rank["layers"].values()) < EXCHANGES * DELAY_S
        assert sum(rank["with exchanges"].values()) > EXCHANGES * DELAY_S
        assert rank["link"].latency_s > ON_LINK_S


def test_fewer_images_are_timed_when_memory_runs_out(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = step_timer.time_steps

    def short_of_memory(config: PlanConfig, mesh: Mesh, rows: int) -> step_timer.Seconds:
        if rows > 2:
            raise torch.OutOfMemoryError
        return steps(config, mesh, rows)

    monkeypatch.setattr(step_timer, "time_steps", short_of_memory)
    monkeypatch.setattr(step_timer, "reuse_memory", lambda: None)  # tests share this process
    mesh = MeshConfig(device=Device.cpu)
    config = PlanConfig(classes=5, recipe=load_recipe("paper"), model=TINY, mesh=mesh)
    step_timer.worker(config, 1, 9, tmp_path / "output")
    assert json.loads((tmp_path / "output").read_text())["rows"] == 2
