"""Single training runs: what the report shows of them, and the claims of the full-size runs."""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import TrainingRun
from alexnet2012.tracking.tracker import read_records

PAPER_TRAINING_IMAGES = 1_200_000  # sec. 2
PAPER_EPOCHS = 90  # sec. 5


@dataclass(frozen=True)
class FullSizeRuns:
    """The full-size network after a few steps with either recipe."""

    paper: TrainingRun
    code145: TrainingRun
    hardware: str


def read_run(run_dir: Path, label: str, config: str, command: str, classes: int) -> TrainingRun:
    """Read a training run from its directory."""
    records = read_records(run_dir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    return TrainingRun(
        label=label,
        config=config,
        command=command,
        steps=[r["step"] for r in train],
        loss=[r["loss"] for r in train],
        val=[
            {key: r[key] for key in ("epoch", "step", "loss", "top1_error_pct", "top5_error_pct")}  # type: ignore[misc]
            for r in records
            if r["kind"] == "validation"
        ],
        images_per_s=read_summary(run_dir)["images_per_s"],
        chance_loss=math.log(classes),
        chance_top1_error_pct=chance_error_pct(classes, 1),
    )


def read_summary(run_dir: Path) -> dict[str, Any]:
    """Read ``summary.json`` of a finished run."""
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary


def chance_error_pct(classes: int, k: int) -> float:
    """The top-k error of random predictions, per cent."""
    return 100 * max(0.0, 1 - k / classes)


def first_step_below_chance(run: TrainingRun) -> int | None:
    """The first recorded step with a loss 10% below chance level; None: there is none."""
    below = [
        step
        for step, loss in zip(run["steps"], run["loss"], strict=True)
        if loss < 0.9 * run["chance_loss"]
    ]
    return below[0] if below else None


def below_chance_note(run: TrainingRun) -> str:
    """A sentence for the report on when the loss leaves chance level."""
    step, last = first_step_below_chance(run), run["steps"][-1]
    when = f"first falls 10% below chance level at step {step}"
    return f"The loss {when if step is not None else f'stays near chance level for {last} steps'}."


@measures("recipe", part="full_size")
def recipe_measurement(
    runs: FullSizeRuns, scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """Training loss of both recipes after the same number of steps at full size."""
    by_recipe = {"paper": runs.paper, "code145": runs.code145}
    losses = {name: run["loss"][-1] for name, run in by_recipe.items()}
    chance = runs.paper["chance_loss"]
    return Measurement(
        claim="recipe",
        value=f"after {runs.paper['steps'][-1]} steps the training loss is {losses['paper']:.3f} "
        f"with `paper` and {losses['code145']:.3f} with `code145`; chance is {chance:.3f}",
        scale=scale,
        command=command,
        numbers={
            **{f"{name}_final_loss": loss for name, loss in losses.items()},
            **{
                f"{name}_step_off_chance": step
                for name, run in by_recipe.items()
                if (step := first_step_below_chance(run)) is not None
            },
        },
        caveat=caveat,
        agreement_note="only the start of training: the learning rate never drops, and the paper "
        "trains for 90 epochs",
    )


@measures("time", part="full_size")
def time_measurement(
    runs: FullSizeRuns, scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """Images/s of the full-size network, and the days of 90 epochs at that throughput."""
    rate = runs.code145["images_per_s"]
    days = PAPER_TRAINING_IMAGES * PAPER_EPOCHS / rate / 86_400
    return Measurement(
        claim="time",
        value=f"the full-size network, two processes on {runs.hardware}; see the timings",
        scale=scale,
        command=command,
        timings={"images_per_s": rate, "days_for_90_epochs_of_1_2_m": days},
        caveat=caveat,
    )
