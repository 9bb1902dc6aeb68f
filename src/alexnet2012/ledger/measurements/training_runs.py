"""Single training runs, full-size and reduced: what the report shows of them, and their claims."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet2012.config.schema import RunError
from alexnet2012.data.store import Store
from alexnet2012.ledger.claims import How, Measurement, stand_in
from alexnet2012.ledger.measurements.nearest_neighbours import (
    FROM_SAMPLE,
    Neighbours,
    neighbours_measurements,
)
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Evaluation, LossBand, TrainingRun
from alexnet2012.tracking.bands import BINS, load_bands, read_curve
from alexnet2012.tracking.run_index import DamagedRunError
from alexnet2012.tracking.tracker import read_records
from alexnet2012.utils.intervals import error_interval_pct
from alexnet2012.utils.metrics import ErrorCounts
from alexnet2012.utils.untrusted import read_json_object

PAPER_TRAINING_IMAGES = 1_200_000  # sec. 2
PAPER_EPOCHS = 90  # sec. 5
PAPER_DAYS = 5, 6  # sec. 5
_VALIDATION = ("epoch", "step", "loss", "top1_error_pct", "top5_error_pct")  # if recorded


@dataclass(frozen=True)
class FullSizeRuns:
    paper: TrainingRun
    code145: TrainingRun
    hardware: str
    input_wait_pct: float  # share of code145's training spent waiting for input


@dataclass(frozen=True)
class ReducedRun:
    store: Store
    evaluation: Evaluation  # with 10 views
    neighbours: Neighbours
    conv1: Tensor  # [2K, 3, h, w] weights, tower 0's kernels first


def read_run(run_dir: Path, label: str, config: str, command: str, classes: int) -> TrainingRun:
    records = read_records(run_dir / "metrics.jsonl")
    train = [r for r in records if r["kind"] == "train"]
    run = TrainingRun(
        label=label,
        config=config,
        command=command,
        steps=[r["step"] for r in train],
        loss=[r["loss"] for r in train],
        val=[
            {key: r[key] for key in _VALIDATION if key in r}  # type: ignore[misc]
            for r in records
            if r["kind"] == "validation"
        ],
        images_per_s=read_summary(run_dir)["images_per_s"],
        chance_loss=math.log(classes),
        chance_top1_error_pct=chance_error_pct(classes, 1),
    )
    if (band := _loss_band(run_dir)) is not None:
        run["band"] = band
    return run


def _loss_band(run_dir: Path) -> LossBand | None:
    try:
        curve = read_curve(run_dir)
    except DamagedRunError:  # the report shows what else it has
        return None
    band = None if curve is None else curve.band(load_bands())
    if curve is None or band is None:
        return None
    found = [
        (curve.steps * (index + 0.5) / BINS, limits)
        for index, limits in enumerate(band.limits["loss"])
        if limits is not None
    ]
    return LossBand(
        runs=band.runs,
        steps=[step for step, _ in found],
        low=[limits[0] for _, limits in found],
        high=[limits[2] for _, limits in found],
    )


def read_summary(run_dir: Path) -> Any:
    file = run_dir / "summary.json"
    try:
        return read_json_object(file)
    except ValueError as error:
        remedy = "remove this run and repeat the command"
        raise RunError(f"{file}: is damaged ({error}); {remedy}") from error


def chance_error_pct(classes: int, k: int) -> float:
    """The top-k error of random predictions, per cent."""
    return 100 * max(0.0, 1 - k / classes)


def first_step_below_chance(run: TrainingRun) -> int | None:
    """The first recorded step with a loss 10% below chance level; None: there is none."""
    losses = zip(run["steps"], run["loss"], strict=True)
    return next((step for step, loss in losses if loss < 0.9 * run["chance_loss"]), None)


def below_chance_note(run: TrainingRun) -> str:
    """A sentence for the report on when the loss leaves chance level."""
    step, last = first_step_below_chance(run), run["steps"][-1]
    when = f"first falls 10% below chance level at step {step}"
    return f"The loss {when if step is not None else f'stays near chance level for {last} steps'}."


def evaluation_row(errors: ErrorCounts, views: int, classes: int) -> Evaluation:
    """Validation errors in the form that the report shows."""
    return Evaluation(
        views=views,
        pictures=errors.pictures,
        top1_error_pct=errors.top1_error_pct,
        top5_error_pct=errors.top5_error_pct,
        top1_interval_pct=error_interval_pct(errors.top1_errors, errors.pictures),
        top5_interval_pct=error_interval_pct(errors.top5_errors, errors.pictures),
        chance_top1_error_pct=chance_error_pct(classes, 1),
        chance_top5_error_pct=chance_error_pct(classes, 5),
    )


@measures("recipe", part="full_size")
def recipe_measurement(runs: FullSizeRuns, *how: *How) -> Measurement:
    """Training loss of both recipes after the same number of steps at full size."""
    by_recipe = {"paper": runs.paper, "code145": runs.code145}
    losses = {name: run["loss"][-1] for name, run in by_recipe.items()}
    steps = {name: first_step_below_chance(run) for name, run in by_recipe.items()}
    chance = runs.paper["chance_loss"]
    return Measurement(
        "recipe",
        f"after {runs.paper['steps'][-1]} steps the training loss is {losses['paper']:.3f} "
        f"with `paper` and {losses['code145']:.3f} with `code145`; chance is {chance:.3f}",
        *stand_in(*how),
        numbers={
            **{f"{name}_final_loss": loss for name, loss in losses.items()},
            **{f"{name}_step_off_chance": step for name, step in steps.items() if step is not None},
        },
        agreement_note="only the start of training: the learning rate never drops, and the paper "
        "trains for 90 epochs",
    )


@measures("time", part="full_size")
def time_measurement(runs: FullSizeRuns, *how: *How) -> Measurement:
    """Images/s of the full-size network, and the days of 90 epochs at that throughput."""
    rate = runs.code145["images_per_s"]
    images = PAPER_TRAINING_IMAGES * PAPER_EPOCHS
    fast, slow = (images / (days * 86_400) for days in PAPER_DAYS)
    return Measurement(
        "time",
        f"the full-size network, two processes on {runs.hardware}; see the timings",
        *stand_in(*how),
        timings={"images_per_s": rate, "days_for_90_epochs_of_1_2_m": images / rate / 86_400},
        agreement_note=f"{PAPER_EPOCHS} epochs of {PAPER_TRAINING_IMAGES:,} images in "
        f"{PAPER_DAYS[0]} to {PAPER_DAYS[1]} days are {slow:.0f} to {fast:.0f} images/s, which the "
        "paper does not report",
    )


@measures("augment-free", part="full_size")
def input_measurement(runs: FullSizeRuns, *how: *How) -> Measurement:
    """Share of the training that the full-size network waits for decoded, augmented images."""
    return Measurement(
        "augment-free",
        f"the share of training spent waiting for input, on {runs.hardware}; see the timings",
        *stand_in(*how),
        timings={"input_wait_pct": runs.input_wait_pct},
        agreement_note="images are decoded once and then kept in memory; without a GPU, the "
        "augmentation shares the processor with the training",
    )


@measures("data", part="reduced")
def data_measurement(run: ReducedRun, *how: *How) -> Measurement:
    """The size of the data set that stands in for ILSVRC."""
    train, val = (len(run.store.split(name).labels) for name in ("train", "val"))
    classes = len(run.store.classes)
    return Measurement(
        "data",
        f"{train:,} training and {val:,} validation images of {classes:,} classes; no test images",
        *stand_in(*how),
        numbers={"train": train, "val": val, "classes": classes},
        agreement_note="a different data set",
    )


@measures("lsvrc2010", part="reduced")
def error_measurement(run: ReducedRun, *how: *How) -> Measurement:
    """Validation errors of one network with ten views."""
    row = run.evaluation
    top1, top5, pictures = row["top1_error_pct"], row["top5_error_pct"], row["pictures"]
    chance = f"{row['chance_top1_error_pct']:.1f} / {row['chance_top5_error_pct']:.1f}"
    return Measurement(
        "lsvrc2010",
        f"{top1:.2f} / {top5:.2f} on {pictures:,} images; chance is {chance}",
        *stand_in(*how),
        numbers={"top1_error_pct": top1, "top5_error_pct": top5, "pictures": pictures},
        interval=row["top1_interval_pct"],
        agreement_note="another network on other images: the errors are not comparable",
    )


@measures("fig4", "fig4-pixels", part="reduced", from_sample=FROM_SAMPLE)
def figure4_measurements(run: ReducedRun, *how: *How) -> list[Measurement]:
    """The classes of the nearest training images, and their distances in pixels."""
    return neighbours_measurements(run.neighbours, *how)
