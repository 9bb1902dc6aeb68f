"""What needs a GPU, in one go: tests, exactness over NCCL, training at full size, benchmarks.

    python benchmarks/gpu_rehearsal.py [store=PATH] [nccl=PATH] [minutes=10] [only=tests]

For a machine that is lent for minutes: every part runs with a limit, most important first, and a
part that cannot run or has no time left says why. ``store``: a store of Imagenette, for training at
full size; ``nccl``: libnccl.so.2 of NCCL 2.30 or later, which lets two ranks share a card. Prints a
table and writes results/gpu_rehearsal.json, and the output of each part beside it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import NamedTuple

import torch
from record import given, keep, show

REPOSITORY = Path(__file__).parents[1]
# Two ranks on one card; by default NCCL refuses them.
SHARED_CARD = {
    "NCCL_MULTI_RANK_GPU_ENABLE": "1",
    "NCCL_NVLS_ENABLE": "0",
    "NCCL_MAX_CTAS": "4",
}
RECENT_NCCL = (2, 30)


class Part(NamedTuple):
    """A command, its limit in seconds, and why it cannot run (empty: it can)."""

    name: str
    words: list[str]
    limit_s: int
    environ: Mapping[str, str] = MappingProxyType({})
    missing: str = ""


def parts(store: str, nccl: str) -> list[Part]:
    python, cards = sys.executable, torch.cuda.device_count()
    two_ranks = {} if cards > 1 else SHARED_CARD | ({"LD_PRELOAD": nccl} if nccl else {})
    recent = bool(nccl) or (torch.cuda.is_available() and torch.cuda.nccl.version() >= RECENT_NCCL)
    alone = "" if cards > 1 or recent else "one card: set nccl= to libnccl.so.2 of NCCL 2.30"
    pytest = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/gpu"]
    tests, two_rank_tests = [*pytest, "tests/nn/test_kernels.py"], [*pytest, "-k", "nccl"]
    on_gpu = {"ALEXNET2012_TEST_GPU": "1"}
    full_size = [
        *(python, "-m", "alexnet2012.train", "recipe=code145", "precision=bf16", "data=store"),
        *(f"data.store={store}", "data.keep=device", "mesh=one_process", "eval_views=1"),
        *("tracking.wandb=disabled", "hydra.run.dir=runs/gpu_rehearsal"),
    ]
    no_store = "" if store else "set store= to a store of Imagenette"
    return [
        Part("tests of one card", tests, 180, on_gpu),
        Part("tests of two ranks", two_rank_tests, 120, on_gpu | two_ranks, alone),
        Part("90 epochs at full size", full_size, 150, {}, no_store),
        Part("full step", [python, "benchmarks/full_step.py", "rounds=2"], 180),
        Part("input", [python, "benchmarks/input.py", "arms=gpu", "rounds=1", "seconds=4"], 90),
        Part("normalisation", [python, "benchmarks/lrn.py"], 60),
        Part("memory", [python, "benchmarks/memory.py"], 60),
    ]


def run(part: Part, seconds_left: float, folder: Path) -> dict[str, object]:
    """Outcome, seconds and last line of a part."""
    row: dict[str, object] = {"part": part.name, "outcome": "not run", "seconds": 0.0}
    if part.missing or seconds_left < 10:
        return row | {"note": part.missing or "no time left"}
    began, limit_s = time.perf_counter(), min(part.limit_s, seconds_left)
    output = folder / f"{part.name.replace(' ', '_')}.txt"
    with output.open("w", encoding="utf-8") as file:
        try:
            code = subprocess.run(
                part.words,
                cwd=REPOSITORY,
                env={**os.environ, **part.environ},
                stdout=file,
                stderr=subprocess.STDOUT,
                timeout=limit_s,
                check=False,
            ).returncode
            row["outcome"] = "ok" if code == 0 else f"failed ({code})"
        except subprocess.TimeoutExpired:
            row["outcome"] = f"stopped after {limit_s:.0f} s"
    lines = output.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    last = lines[-1] if lines else ""
    return row | {"seconds": time.perf_counter() - began, "note": last[:100]}


def main() -> None:
    words, load_before = given(store="", nccl="", minutes=10, only=""), os.getloadavg()[0]
    folder = Path(__file__).parent / "results" / "gpu_rehearsal"
    folder.mkdir(parents=True, exist_ok=True)
    deadline = time.perf_counter() + 60 * words.minutes
    rows = []
    for part in parts(words.store, words.nccl):
        if not torch.cuda.is_available():
            part = part._replace(missing="no GPU")
        if words.only in part.name:
            rows.append(run(part, deadline - time.perf_counter(), folder))
    columns = {"part": "{part}", "outcome": "{outcome}", "s": "{seconds:.0f}", "note": "{note}"}
    show("What needs a GPU", columns, rows)
    keep("rehearsal on a GPU", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
