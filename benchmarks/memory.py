"""How much memory does a full-size step take, and how close is the estimate of `alexnet2012.plan`?

    python benchmarks/memory.py [batches=32,128]

Measures the peak of two steps on one and on two processes, in float32 and bf16, on the rank with
the highest. On a CPU that is the resident set minus the memory before the model was built (torch,
gloo); on CUDA, the memory that torch's allocator gave out. The plan counts memory as if all of it
were needed at once, but not the input pipeline's batch, which is measured. Prints a table and
writes results/memory.json.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import torch
from arms import CLASSES, OURS, Arm, arms, joined, prepared, run_apart
from record import given, keep, show

from alexnet2012 import AlexNet
from alexnet2012.config.enums import Precision
from alexnet2012.config.validation import load_recipe
from alexnet2012.nn.cost_model import LayerCounts, Layout, count_layers, layer_costs, memory_bytes
from alexnet2012.nn.precision import DTYPES

STEPS = 2
RESET_PEAK = "5"  # proc(5), clear_refs


def measure(arm: Arm, batch: int, answer: Path) -> None:
    """Runs on each process; rank 0 writes the bytes of all ranks."""
    mesh = joined(arm)
    before = 0 if mesh.device.type == "cuda" else resident_bytes("VmRSS")
    _, step = prepared(arm, batch, mesh, ExitStack())  # so few steps are not captured
    if mesh.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(mesh.device)
    else:
        Path("/proc/self/clear_refs").write_text(RESET_PEAK, encoding="ascii")
    for _ in range(STEPS):
        step()
    on_gpu = mesh.device.type == "cuda"
    peak = torch.cuda.max_memory_allocated() if on_gpu else resident_bytes("VmHWM")
    of_ranks = mesh.gather_objects(peak - before, "peaks")
    if mesh.rank == 0:
        answer.write_text(json.dumps(of_ranks), encoding="utf-8")
    mesh.close()


def resident_bytes(which: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(which))


def planned(audited: Sequence[LayerCounts], arm: Arm, batch: int) -> dict[str, int]:
    types = DTYPES[Precision(arm.precision)]
    layout = Layout(
        batch,
        towers=arm.processes,
        activation_bytes=types.activations.itemsize,
        parameter_bytes=types.parameters.itemsize,
    )
    return memory_bytes(layer_costs(load_recipe("paper"), audited, layout), layout)


def main() -> None:
    words, load_before = given(batches="32,128"), os.getloadavg()[0]
    audited = count_layers(AlexNet("paper", CLASSES))
    rows = []
    for arm in (arm for arm in arms() if arm.kind == OURS):
        for batch in map(int, words.batches.split(",")):
            of_ranks = run_apart(measure, arm.processes, arm, batch)
            by_use = planned(audited, arm, batch)
            rows.append(
                {
                    "processes": arm.processes,
                    "precision": arm.precision,
                    "batch": batch,
                    "peak_mb": [peak / 1e6 for peak in of_ranks],
                    "largest_mb": max(of_ranks) / 1e6,
                    "planned_mb": sum(by_use.values()) / 1e6,
                    "planned_by_use_mb": {use: size / 1e6 for use, size in by_use.items()},
                    "planned_pct": 100 * sum(by_use.values()) / max(of_ranks),
                }
            )
    columns = {
        "processes": "{processes}",
        "precision": "{precision}",
        "batch": "{batch}",
        "peak of one rank, MB": "{largest_mb:.0f}",
        "planned, MB": "{planned_mb:.0f}",
        "% of measured": "{planned_pct:.0f}%",
    }
    show("Memory of a full-size step", columns, rows)
    question = "memory of a full-size step, compared with the plan"
    keep(question, ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
