"""Kill a training run at random times, restart it, and compare its final state."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from programs import finish, module, start, succeed, with_rank
from safetensors.torch import load_file

from alexnet2012.checkpoint import manifest
from alexnet2012.distributed.mesh import single_process

METRICS = "metrics.jsonl"
KILLABLE = ("rank 0", "rank 1", "launcher")
STARTED_WITHIN_S = 120


@dataclass(frozen=True)
class Kill:
    """A killed process, the step and phase of the run at that time, and processes left over."""

    target: str
    step: int
    during: str  # training, validating or saving
    left: list[str]


def train_through_kills(
    overrides: Sequence[str], run_dir: Path, targets: Sequence[str], seed: int, most_s: float
) -> list[Kill]:
    """Kill each target in turn with SIGKILL, at most ``most_s`` after its run has resumed.

    The last start is not killed.
    """
    rng = random.Random(seed)
    kills = []
    for target in targets:
        before = _size(run_dir / METRICS)
        program, mark = start(module("train", *overrides), run_dir.parent)
        deadline = time.monotonic() + STARTED_WITHIN_S
        while _size(run_dir / METRICS) == before and program.poll() is None:
            assert time.monotonic() < deadline, "the run does not start"
            time.sleep(0.01)
        time.sleep(rng.uniform(0, most_s))
        pid = program.pid if target == "launcher" else with_rank(mark, int(target[-1]))
        os.kill(pid, signal.SIGKILL)
        ended = finish(program, mark)
        assert ended.code, "the run ended before it was killed: make it longer"
        assert target == "launcher" or f"{target} was killed by SIGKILL" in ended.err
        kills.append(Kill(target, *_caught(run_dir), ended.left))
    succeed(module("train", *overrides), run_dir.parent)
    return kills


def state_of(run_dir: Path) -> dict[str, bytes]:
    """Weights, momenta and random streams of the newest checkpoint, from all ranks' files."""
    folder = manifest.find_valid(run_dir, single_process())
    return {
        f"{file.name}: {name}": tensor.numpy().tobytes()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _caught(run_dir: Path) -> tuple[int, str]:
    """The step of the last complete record, and the phase of the run at that time."""
    lines = (run_dir / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    records = [json.loads(line) for line in lines if line.endswith("\n")]
    last = records[-1] if records else {"step": 0, "kind": "train"}
    if list((run_dir / "checkpoints").glob(f"*{manifest.WRITING}")):
        return last["step"], "saving"
    return last["step"], "validating" if last["kind"] == "epoch" else "training"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
