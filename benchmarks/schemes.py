"""Which parallel scheme is fastest on this machine?

    python benchmarks/schemes.py [batch=128] [steps=2] [rounds=3] [processes=2] [precision=fp32]

Compares the paper's towers, whole replicas (our gradient sums, and torch's DDP), FSDP2, and data-
parallel convolutions with fully connected layers split by towers ("one weird trick"), each on the
full-size network with the same global batch; tests/project/test_schemes.py shows that they give
the same weights. With at least as many GPUs as processes, each process uses one. Variants take
turns. Prints images/s with ratios to the paper's towers, and writes results/schemes.json.
"""

from __future__ import annotations

import json
import os
import statistics
from pathlib import Path

import torch
from arms import CLASSES, run_apart, timed
from parallel_baselines import SCHEMES
from record import given, keep, show

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.distributed.mesh import init_mesh
from alexnet2012.nn.precision import allow_tf32

TOWERS = "towers"


def time_scheme(
    name: str, processes: int, batch: int, steps: int, precision: str, answer: Path
) -> None:
    """Runs on each process; rank 0 writes images/s, after a warm-up step."""
    reuse_memory()
    allow_tf32(Precision(precision))
    mesh = init_mesh(1)
    scheme = SCHEMES[name](
        load_recipe("paper"), CLASSES, ModelConfig(), precision=Precision(precision)
    )
    draw = torch.Generator().manual_seed(0)
    images = (50 * torch.randn(batch, 3, 224, 224, generator=draw)).to(mesh.device)
    labels = torch.randint(CLASSES, (batch,), generator=draw).to(mesh.device)
    seconds = timed(lambda: scheme.step(images, labels), steps, mesh.device)
    if mesh.rank == 0:
        answer.write_text(json.dumps(batch * steps / seconds), encoding="utf-8")
    mesh.close()


def main() -> None:
    words = given(batch=128, steps=2, rounds=3, processes=2, precision="fp32")
    load_before = os.getloadavg()[0]
    rates: dict[str, list[float]] = {name: [] for name in SCHEMES}
    what = words.processes, words.batch, words.steps, words.precision
    for _ in range(words.rounds):
        for name, found in rates.items():
            found.append(run_apart(time_scheme, words.processes, name, *what))
    rows = []
    for name, mine in rates.items():
        ratios = [rate / towers for rate, towers in zip(mine, rates[TOWERS], strict=True)]
        rows.append(
            {
                "arm": name,
                "images_per_s": statistics.median(mine),
                "ratio_to_towers": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
            }
        )
    columns = {
        "": "{arm}",
        "images/s": "{images_per_s:.1f}",
        "ratio to towers": "{ratio_to_towers:.2f}",
        "range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
    }
    title = f"{words.processes} processes, batch {words.batch}, {words.precision}"
    show(f"{title}, median of {words.rounds} rounds", columns, rows)
    keep("parallel schemes, full-size step", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
