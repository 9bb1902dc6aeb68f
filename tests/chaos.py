"""Kill a training at random moments, start it again, and compare what it ends with."""

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
    """Who was killed, how far the run had come, and the processes that outlived it."""

    target: str
    step: int
    during: str  # training, validating or saving
    left: list[str]


def train_through_kills(
    overrides: Sequence[str], run_dir: Path, targets: Sequence[str], seed: int, most_s: float
) -> list[Kill]:
    """Kill each target in turn with SIGKILL, at most ``most_s`` after its run was taken up.

    The last start is left to end by itself.
    """
    draw = random.Random(seed)
    kills = []
    for target in targets:
        before = _size(run_dir / METRICS)
        program, mark = start(module("train", *overrides), run_dir.parent)
        give_up_s = time.monotonic() + STARTED_WITHIN_S
        while _size(run_dir / METRICS) == before and program.poll() is None:
            assert time.monotonic() < give_up_s, "it does not start"
            time.sleep(0.01)
        time.sleep(draw.uniform(0, most_s))
        pid = program.pid if target == "launcher" else with_rank(mark, int(target[-1]))
        os.kill(pid, signal.SIGKILL)
        ended = finish(program, mark)
        assert ended.code, "it has ended before it was killed: make it longer"
        assert target == "launcher" or f"{target} ended" in ended.err
        kills.append(Kill(target, *_caught(run_dir), ended.left))
    succeed(module("train", *overrides), run_dir.parent)
    return kills


def state_of(run_dir: Path) -> dict[str, bytes]:
    """Weights, momenta and streams of the newest checkpoint, of all ranks' files."""
    folder = manifest.find_valid(run_dir, single_process())
    return {
        f"{file.name}: {name}": tensor.numpy().tobytes()
        for file in sorted(folder.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def _caught(run_dir: Path) -> tuple[int, str]:
    """The step of the last whole record, and what was going on then."""
    lines = (run_dir / METRICS).read_text(encoding="utf-8").splitlines(keepends=True)
    whole = [json.loads(line) for line in lines if line.endswith("\n")]
    last = whole[-1] if whole else {"step": 0, "kind": "train"}
    if list((run_dir / "checkpoints").glob(f"*{manifest.WRITING}")):
        return last["step"], "saving"
    return last["step"], "validating" if last["kind"] == "epoch" else "training"


def _size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0
