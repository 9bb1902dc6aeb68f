"""What each claim runs, and how files of runs become measurements of claims.

The runs themselves are Hydra experiments (``conf/experiment``); this room reads what they wrote.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from torch import Tensor

from alexnet2012.data.store import Store
from alexnet2012.diagnostics.training_plan import PAPER_EPOCHS, PAPER_TRAINING_IMAGES
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.results import Audit, AuditLayer, Evaluation, ExchangeTraffic, TrainingRun
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.flops import LayerCounts, count_layers
from alexnet2012.tracking.tracker import read_records
from alexnet2012.utils.metrics import ErrorCounts, error_interval_pct
from alexnet2012.utils.shard import padded_shard_size

# Floats that the two towers send each other per image: the paper's fig. 2, half of each map or
# layer crossing each way. The logits' gradient is an own slice and sends nothing.
EXCHANGED_FLOATS = {"conv3": 2 * 21_632, "fc6": 2 * 4_608, "fc7": 2 * 2_048, "fc8": 2 * 2_048}


def audit_measurements(command: str) -> tuple[Audit, list[Measurement]]:
    """The architecture's numbers, counted from the built net of the paper's recipe."""
    counts = count_layers(AlexNet("paper"))
    parameters = sum(layer.weights + layer.biases for layer in counts)
    neurons = sum(layer.neurons for layer in counts)
    shares = {
        layer.name: 100 * (layer.weights + layer.biases) / parameters
        for layer in counts
        if layer.name.startswith("conv")
    }
    above = {name: share for name, share in shares.items() if share > 1}
    first = counts[0].neurons
    return Audit(recipe="paper", layers=[_audit_layer(layer) for layer in counts]), [
        Measurement(
            claim="size",
            value=f"{parameters:,} parameters; {neurons:,} neurons",
            scale=Scale.exact,
            command=command,
            numbers={
                "parameters": parameters,
                "neurons": neurons,
                "multiply_adds": sum(layer.multiply_adds for layer in counts),
            },
            agrees=round(parameters, -6) in (60_000_000, 61_000_000),
            agreement_note="60 M is 60.97 M rounded down; 659,272 neurons round to 660,000",
        ),
        Measurement(
            claim="fig2",
            value=f"{first:,} neurons in layer 1",
            scale=Scale.exact,
            command=command,
            numbers={"conv1_neurons": first},
            agrees=first == 253_440,
            agreement_note="96 maps of 55 × 55",
        ),
        Measurement(
            claim="conv-share",
            value=", ".join(f"{name} {share:.2f}%" for name, share in shares.items()),
            scale=Scale.exact,
            command=command,
            numbers={f"{name}_pct": share for name, share in shares.items()},
            agrees=not above,
            agreement_note=f"{' and '.join(above)} hold more than 1%" if above else None,
        ),
    ]


def expected_exchanges(summary: dict[str, Any], classes: int) -> list[ExchangeTraffic]:
    """What a full-size run counted, beside what the layers' shapes say; float32."""
    floats = {**EXCHANGED_FLOATS, "logits": 2 * padded_shard_size(classes, 2)}
    counted = summary["exchange_bytes_per_image"]
    return [
        ExchangeTraffic(
            layer=layer,
            direction=direction,
            bytes_per_image=counted.get(layer, {}).get(direction, 0.0),
            expected_bytes_per_image=0.0
            if (layer, direction) == ("logits", "backward")
            else 4.0 * n,
        )
        for layer, n in floats.items()
        for direction in ("forward", "backward")
    ]


def read_run(run_dir: Path, label: str, config: str, command: str, classes: int) -> TrainingRun:
    """A training run as the report shows it, from its files."""
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
    summary: dict[str, Any] = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    return summary


def chance_error_pct(classes: int, k: int) -> float:
    """The top-k error of guessing."""
    return 100 * max(0.0, 1 - k / classes)


def evaluation_row(errors: ErrorCounts, views: int, classes: int) -> Evaluation:
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


def error_measurement(row: Evaluation, caveat: str, command: str) -> Measurement:
    """One net's errors with ten views; on other pictures there is nothing to compare them with."""
    errors = f"{row['top1_error_pct']:.2f} / {row['top5_error_pct']:.2f}"
    chance = f"{row['chance_top1_error_pct']:.1f} / {row['chance_top5_error_pct']:.1f}"
    return Measurement(
        claim="lsvrc2010",
        value=f"{errors} on {row['pictures']:,} pictures; chance is {chance}",
        scale=Scale.reduced,
        command=command,
        numbers={
            "top1_error_pct": row["top1_error_pct"],
            "top5_error_pct": row["top5_error_pct"],
            "pictures": row["pictures"],
        },
        caveat=caveat,
        interval=row["top1_interval_pct"],
        agreement_note="another net on other pictures: the two cannot be compared",
    )


def data_measurement(store: Store, caveat: str, command: str) -> Measurement:
    """What was trained on instead."""
    train, val = (len(store.split(name).labels) for name in ("train", "val"))
    return Measurement(
        claim="data",
        value=f"{train:,} training and {val:,} validation pictures of {len(store.classes):,} "
        "classes; no test pictures",
        scale=Scale.reduced,
        command=command,
        numbers={"train": train, "val": val, "classes": len(store.classes)},
        caveat=caveat,
        agreement_note="other pictures",
    )


def step_off_chance(run: TrainingRun) -> int | None:
    """The first recorded step whose loss is a tenth below that of guessing, if any."""
    below = [
        step
        for step, loss in zip(run["steps"], run["loss"], strict=True)
        if loss < 0.9 * run["chance_loss"]
    ]
    return below[0] if below else None


def off_chance_note(run: TrainingRun) -> str:
    """What there is to see at the start of a run's curve."""
    step, last = step_off_chance(run), run["steps"][-1]
    where = f"at step {step}" if step is not None else f"not within {last} steps"
    return f"The loss falls a tenth below chance {where}."


def recipe_measurement(
    paper: TrainingRun, code: TrainingRun, caveat: str, command: str
) -> Measurement:
    """How far either recipe comes in the same short run at full size."""
    losses = {"paper": paper["loss"][-1], "code145": code["loss"][-1]}
    chance = paper["chance_loss"]
    return Measurement(
        claim="recipe",
        value=f"after {paper['steps'][-1]} steps the training loss is {losses['paper']:.3f} with "
        f"`paper` and {losses['code145']:.3f} with `code145`; chance is {chance:.3f}",
        scale=Scale.reduced,
        command=command,
        numbers={
            **{f"{name}_final_loss": loss for name, loss in losses.items()},
            **{
                f"{name}_step_off_chance": step
                for name, run in (("paper", paper), ("code145", code))
                if (step := step_off_chance(run)) is not None
            },
        },
        caveat=caveat,
        agreement_note="the start of the recipe only: no drop of the rate, not 90 cycles",
    )


def time_measurement(run: TrainingRun, hardware: str, caveat: str, command: str) -> Measurement:
    """Images/s of the full-size net, and the days that 90 epochs would take at that rate."""
    rate = run["images_per_s"]
    days = PAPER_TRAINING_IMAGES * PAPER_EPOCHS / rate / 86_400
    return Measurement(
        claim="time",
        value=f"the full-size net, two processes on {hardware}; see the timings",
        scale=Scale.reduced,
        command=command,
        timings={"images_per_s": rate, "days_for_90_epochs_of_1_2_m": days},
        caveat=caveat,
    )


def colour_share(kernels: Tensor) -> float:
    """[K, 3, h, w] → mean over kernels of the energy off the grey axis, 0 (grey) to 1."""
    grey = kernels.mean(1, keepdim=True)
    off_axis = (kernels - grey).square().sum((1, 2, 3))
    return float((off_axis / kernels.square().sum((1, 2, 3))).mean())


def _audit_layer(layer: LayerCounts) -> AuditLayer:
    return AuditLayer(
        name=layer.name,
        kernels=layer.biases,  # one bias a kernel
        weights=layer.weights,
        biases=layer.biases,
        neurons=layer.neurons,
        multiply_adds=layer.multiply_adds,
    )
