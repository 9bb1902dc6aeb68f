"""The charts and images of the report, drawn from the results of a reproduction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from markupsafe import Markup

from alexnet2012.inference.images import jpeg_data_uri
from alexnet2012.ledger.measurements.ablations import BASELINE, METRICS, seeds_text
from alexnet2012.ledger.report import svg
from alexnet2012.ledger.results import (
    Ablation,
    Effect,
    EpochRatio,
    Reproduction,
    TrainingRun,
    TrainingRuns,
)
from alexnet2012.tracking.image_grids import kernel_pictures


def towers(reproduction: Reproduction) -> list[Markup]:
    """The diagram of the two towers, horizontal and vertical."""
    layers = [(x["name"], x["kernels"]) for x in reproduction.get("audit", {}).get("layers", [])]
    crossings = {
        e["layer"]: e["bytes_per_image"]
        for e in reproduction.get("exchanges", [])
        if e["direction"] == "forward"
    }
    if not layers or not crossings:
        return []
    return [Markup(svg.two_towers(layers, crossings, vertical)) for vertical in (False, True)]


def training(runs: TrainingRuns) -> list[dict[str, Any]]:
    """One chart for the full-size runs and two for the reduced run."""
    charts = []
    full = (runs.get("full_paper"), runs.get("full_code145"))
    for title, group in (("Full size", full), ("Reduced", (runs.get("reduced"),))):
        present = [run for run in group if run and run.get("loss")]
        if not present:
            continue
        curves = [svg.Curve(r.get("label", "loss"), r["steps"], r["loss"]) for r in present]
        chance = present[0].get("chance_loss")
        level = svg.ReferenceLine(chance, f"chance, {chance:.2f}") if chance else None
        alt = f"{title}: training loss"
        band = _band(present[0])
        drawn = svg.line_chart(curves, "step", "Training loss", alt, level, band=band)
        charts.append({"title": f"{title}: training loss", "svg": Markup(drawn), "runs": present})
    val = runs.get("reduced", {}).get("val", [])
    if val:
        epochs = [v["epoch"] for v in val]
        curves = [
            svg.Curve("top-1", epochs, [v.get("top1_error_pct") for v in val]),
            svg.Curve("top-5", epochs, [v.get("top5_error_pct") for v in val]),
        ]
        chance = runs["reduced"].get("chance_top1_error_pct")
        level = svg.ReferenceLine(chance, f"chance, top-1 {chance:.1f}") if chance else None
        title = "Reduced: validation error"
        drawn = svg.line_chart(curves, "epoch", "Error, per cent", title, level, y_range=(0, 102))
        charts.append({"title": title, "svg": Markup(drawn), "runs": []})
    return charts


def _band(run: TrainingRun) -> svg.ShadedBand | None:
    """The band of healthy runs behind a curve."""
    if (band := run.get("band")) is None:
        return None
    label = f"{band['runs']} healthy runs"
    return svg.ShadedBand(label, band["steps"], band["low"], band["high"])


def kernels(reproduction: Reproduction) -> dict[str, Any]:
    """An image of each tower's conv1 kernels."""
    kernels = reproduction.get("kernels")
    return {
        "images": [] if kernels is None else kernel_pictures(kernels),
        "per_tower": 0 if kernels is None else kernels.shape[0] // 2,
        "caption": reproduction.get("kernels_caption", ""),
    }


def lookalikes(reproduction: Reproduction) -> dict[str, Any] | None:
    """Predictions and nearest training images, with the images as data URIs."""
    figure, images = reproduction.get("lookalikes"), reproduction.get("pictures")
    if figure is None or images is None:
        return None
    uris = (jpeg_data_uri(image) for image in images)
    return {
        "predictions": [
            {
                "src": next(uris),
                "label": prediction["label"],
                "rows": [
                    {"name": name, "pct": 100 * p, "right": name == prediction["label"]}
                    for name, p in zip(
                        prediction["guesses"], prediction["probabilities"], strict=True
                    )
                ],
            }
            for prediction in figure["guesses"]
        ],
        "queries": [
            {
                "src": next(uris),
                "label": label,
                "nearest": [{"src": next(uris), "label": neighbour} for neighbour in neighbours],
            }
            for label, neighbours in zip(figure["queries"], figure["nearest"], strict=True)
        ],
    }


def comparison(ablation: Ablation) -> dict[str, Any]:
    """Learning curves of variants that differ in one setting."""
    variants = ablation["arms"]
    threshold = ablation.get("threshold_pct")
    drawn = [v for v in variants if v.get("epochs")]
    curves = [svg.Curve(v["label"], v["epochs"], v["train_error_pct"]) for v in drawn]
    title = ablation.get("title", ablation["name"])
    level = svg.ReferenceLine(threshold, f"{threshold:g}%") if threshold is not None else None
    alt = f"{title}: training error by epoch for {', '.join(v['label'] for v in variants)}"
    label = "Training error, per cent"
    chart = svg.line_chart(curves, "epoch", label, alt, level) if curves else ""
    return {**ablation, "title": title, "svg": Markup(chart), "threshold_pct": threshold}


def relu_ratios(ratios: Sequence[EpochRatio]) -> dict[str, Any]:
    """A forest plot of tanh's epochs over ReLU's at each training error, and its rows."""
    lines = [
        svg.IntervalRow(f"{ratio['threshold_pct']:g}%", ratio["mean"], ratio["interval"])
        for ratio in ratios
    ]
    title = "Epochs with tanh over epochs with ReLU"
    alt = f"{title}: {', '.join(f'{line.label} {line.mean:.1f}' for line in lines)}"
    return {"rows": ratios, "svg": Markup(svg.forest(lines, title, alt)) if lines else ""}


def effects(reproduction: Reproduction) -> dict[str, Any]:
    """A forest plot of the ablations' top-1 differences, and a row of all metrics for each."""
    effects = reproduction.get("effects", [])
    rows: dict[str, dict[str, Any]] = {}
    for effect in effects:
        control = len(effect.get("control_seeds", effect["seeds"]))
        row = {"arm": effect["arm"], "seeds": seeds_text(len(effect["seeds"]), control)}
        rows.setdefault(effect["arm"], row)[effect["metric"]] = effect
    lines = [_interval_row(effect) for effect in effects if effect["metric"] == "top1_error_pct"]
    title = "Top-1 error, ablation minus baseline, points"
    alt = f"{title}: {', '.join(f'{line.label} {line.mean:+.1f}' for line in lines)}"
    return {
        "rows": list(rows.values()),
        "svg": Markup(svg.forest(lines, title, alt)) if lines else "",
        "caption": reproduction.get("effects_caption", ""),
        "gap": reproduction.get("gap", ""),
        "metrics": {m: name for m, name in METRICS.items() if any(m in r for r in rows.values())},
    }


def claimed_and_measured(row: dict[str, Any], reproduction: Reproduction) -> Markup:
    """A forest plot of a claim's effect as reported and as measured."""
    claim = row["effect"]
    lines = [
        _interval_row(effect)
        for effect in (*reproduction.get("effects", []), *reproduction.get("cifar10_effects", []))
        if claim and effect["arm"] in claim["arms"] and effect["metric"] == claim["metric"]
    ]
    if not lines:
        return Markup("")
    if claim["claimed_points"] is not None:
        lines.insert(0, svg.IntervalRow(claim["source"], claim["claimed_points"], None, series=1))
    metric = METRICS[claim["metric"]]
    title = f"Points of {metric}, ablation minus baseline"
    values = ", ".join(f"{line.label} {line.mean:+.1f}" for line in lines)
    return Markup(svg.forest(lines, title, f"{row['title']}. {title}: {values}"))


def learning_curves(row: dict[str, Any], reproduction: Reproduction) -> Markup:
    """Training error by epoch of the baseline and of a claim's ablations."""
    curves = reproduction.get("learning_curves", {})
    if row["effect"] is None or not (curves.keys() & row["effect"]["arms"]):
        return Markup("")
    names = [name for name in (BASELINE, *row["effect"]["arms"]) if curves.get(name)]
    lines = [svg.Curve(name, range(1, len(curves[name]) + 1), curves[name]) for name in names]
    title = "Training error, per cent, mean over seeds"
    return Markup(svg.line_chart(lines, "epoch", title, f"{row['title']}. {title}, by epoch"))


def _interval_row(effect: Effect) -> svg.IntervalRow:
    return svg.IntervalRow(effect["arm"], effect["mean_points"], effect["interval_points"])
