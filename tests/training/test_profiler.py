"""Traces of training steps: one per rank, with the parts of a step and its exchanges by name."""

from __future__ import annotations

import gzip
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from programs import TINY
from ranks import run_ranks

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process
from alexnet2012.training.profiler import WARM_UP, trace_steps
from alexnet2012.training.trainer import Trainer

STEPS = 2
PARTS = ("data loading", "forward", "backward", "update")
EXCHANGES = [
    f"{collective} {layer} {direction}"
    for layer in ("conv3", "fc6", "fc7", "fc8")
    for collective, direction in (("all-gather", "forward"), ("reduce-scatter", "backward"))
]


@pytest.fixture
def one_process() -> Mesh:
    return single_process(Device.cpu)


def train_rank(arguments: list[str], run_dir: str) -> None:
    config, _ = compose_config("train", TrainConfig, arguments)
    Trainer(config, init_mesh(2, device="cpu"), Path(run_dir)).run()


def ranges(file: Path) -> list[dict[str, Any]]:
    """The named ranges of a trace, in the order of time."""
    events = json.loads(gzip.decompress(file.read_bytes()))["traceEvents"]
    named = [e for e in events if e["ph"] == "X" and e["cat"] == "user_annotation"]
    return sorted(named, key=lambda event: event["ts"])


def test_the_trace_of_every_rank_names_the_parts_of_a_step_and_its_exchanges(
    photos_store: Store, tmp_path: Path
) -> None:
    arguments = [*TINY, f"data.store={photos_store.root}", "schedule.epochs=3"]
    run_ranks(2, train_rank, [*arguments, f"profile={STEPS}"], str(tmp_path))
    files = sorted((tmp_path / "profile").iterdir())
    assert [file.name for file in files] == ["rank0.json.gz", "rank1.json.gz"]
    for file in files:
        events = ranges(file)
        counts = Counter(event["name"] for event in events)
        expected = (*PARTS, *EXCHANGES, "all-gather logits forward")
        assert {name: counts[name] for name in expected} == dict.fromkeys(expected, STEPS)
        names = [event["name"] for event in events if event["name"] in PARTS]
        assert names == [*PARTS * STEPS]
        spans = {
            name: [(e["ts"], e["ts"] + e["dur"]) for e in events if e["name"] == name]
            for name in counts
        }
        for part, exchange in (("forward", EXCHANGES[0]), ("backward", EXCHANGES[1])):
            for outer, inner in zip(spans[part], spans[exchange], strict=True):
                assert outer[0] <= inner[0] <= inner[1] <= outer[1], exchange


def traced(count: int | None, steps: int, run_dir: Path, mesh: Mesh) -> None:
    with trace_steps(count, run_dir, mesh) as end_step:
        for step in range(steps):
            with torch.profiler.record_function(f"work {step}"):
                torch.ones(3).sum()
            end_step()


def test_the_steps_after_the_warm_up_are_traced_and_the_folder_is_told(
    tmp_path: Path, one_process: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "alexnet2012")
    traced(STEPS, WARM_UP + STEPS + 3, tmp_path, one_process)
    (file,) = (tmp_path / "profile").iterdir()
    work = [e["name"] for e in ranges(file) if e["name"].startswith("work")]
    assert work == [f"work {WARM_UP + i}" for i in range(STEPS)]
    (line,) = caplog.messages
    assert line == f"traces of training steps: {file.parent}; open them at https://ui.perfetto.dev"


def test_a_run_that_ends_sooner_leaves_the_steps_that_it_made(
    tmp_path: Path, one_process: Mesh
) -> None:
    traced(100, WARM_UP + 1, tmp_path, one_process)
    (file,) = (tmp_path / "profile").iterdir()
    assert f"work {WARM_UP}" in [event["name"] for event in ranges(file)]


def test_a_run_that_ends_within_the_warm_up_says_that_there_is_no_trace(
    tmp_path: Path, one_process: Mesh, caplog: pytest.LogCaptureFixture
) -> None:
    traced(STEPS, WARM_UP - 2, tmp_path, one_process)
    assert caplog.messages == [f"profile=2: no trace; the run ended within {WARM_UP} steps"]
    assert list(tmp_path.iterdir()) == []


def test_without_the_setting_nothing_is_written(tmp_path: Path, one_process: Mesh) -> None:
    traced(None, WARM_UP + STEPS, tmp_path, one_process)
    assert list(tmp_path.iterdir()) == []
