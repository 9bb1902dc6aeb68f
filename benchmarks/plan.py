"""How accurately does `alexnet2012.plan` predict the speed of a full-size step on this machine?

    python benchmarks/plan.py [steps=3] [rounds=3]

The plan's own short measurement and the step of benchmarks/full_step.py take turns, because the
speed of a shared machine drifts: on two gloo processes in float32; with a GPU, on one process in
bf16. Batches larger than those that the plan times are scaled from them. Prints predicted and
measured images/s with their ratio, and writes results/plan.json.
"""

from __future__ import annotations

import os
import statistics

import torch
from arms import CLASSES, OURS, Arm, time_together
from record import given, keep, show

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import MeshConfig, PlanConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.diagnostics.training_plan import plan_training

ON_GPU = torch.cuda.is_available()
ARM = Arm(OURS, 1, "bf16") if ON_GPU else Arm(OURS, 2, "fp32")
BATCHES = (128, 1024) if ON_GPU else (16, 64, 128)
LIMITS = (0.8, 1.2)


def predicted(batch: int) -> float:
    config = PlanConfig(
        gpus=ARM.processes,
        batch=batch,
        classes=CLASSES,
        precision=Precision(ARM.precision),
        mesh=MeshConfig(towers=ARM.processes),
        recipe=load_recipe("paper"),
    )
    rate: float = plan_training(config)["images_per_s"]
    return rate


def measured(batch: int, steps: int) -> float:
    (found,) = time_together([ARM], batch, steps)
    return batch / found.median_s


def main() -> None:
    words, load_before = given(steps=3, rounds=3), os.getloadavg()[0]
    rates: dict[int, list[tuple[float, float]]] = {batch: [] for batch in BATCHES}
    for _ in range(words.rounds):
        for batch in BATCHES:
            rates[batch].append((predicted(batch), measured(batch, words.steps)))
    rows = []
    for batch in BATCHES:
        ratios = [mine / theirs for mine, theirs in rates[batch]]
        ratio = statistics.median(ratios)
        rows.append(
            {
                "batch": batch,
                "predicted_images_per_s": statistics.median(mine for mine, _ in rates[batch]),
                "measured_images_per_s": statistics.median(theirs for _, theirs in rates[batch]),
                "ratio": ratio,
                "ratio_range": [min(ratios), max(ratios)],
                "limits": LIMITS,
                "within": LIMITS[0] <= ratio <= LIMITS[1],
            }
        )
    columns = {
        "batch": "{batch}",
        "predicted images/s": "{predicted_images_per_s:.1f}",
        "measured images/s": "{measured_images_per_s:.1f}",
        "ratio": "{ratio:.2f}",
        "range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
        "allowed": "{limits[0]:.1f} - {limits[1]:.1f}",
    }
    title = f"Plan compared with a full-size step of {ARM.name}, median of {words.rounds}"
    show(title, columns, rows)
    question = "images/s predicted by the plan, compared with a full-size step"
    keep(question, ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
