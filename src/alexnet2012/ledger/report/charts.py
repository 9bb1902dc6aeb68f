"""The charts and pictures of the report, drawn from what a reproduction found."""

from __future__ import annotations

from typing import Any

from markupsafe import Markup

from alexnet2012.inference.images import jpeg_data_uri
from alexnet2012.ledger.report.svg import (
    Curve,
    IntervalRow,
    ReferenceLine,
    forest,
    line_chart,
    two_towers,
)
from alexnet2012.ledger.results import Ablation, Reproduction, TrainingRuns
from alexnet2012.tracking.image_grids import kernel_pictures

WITH_ALL = "none"  # the ablation that takes nothing away


def towers(reproduction: Reproduction) -> list[Markup]:
    layers = [(x["name"], x["kernels"]) for x in reproduction.get("audit", {}).get("layers", [])]
    crossings = {
        e["layer"]: e["bytes_per_image"]
        for e in reproduction.get("exchanges", [])
        if e["direction"] == "forward"
    }
    if not layers or not crossings:
        return []
    return [Markup(two_towers(layers, crossings, vertical)) for vertical in (False, True)]


def training(runs: TrainingRuns) -> list[dict[str, Any]]:
    """One chart for the full-size runs, and two for the reduced one."""
    charts = []
    full = [run for run in (runs.get("full_paper"), runs.get("full_code145")) if run]
    for title, group in (("At the paper's own size", full), ("Reduced", [runs.get("reduced")])):
        present = [run for run in group if run and run.get("loss")]
        if not present:
            continue
        curves = [Curve(r.get("label", "loss"), r["steps"], r["loss"]) for r in present]
        chance = present[0].get("chance_loss")
        level = ReferenceLine(chance, f"chance, {chance:.2f}") if chance else None
        drawn = line_chart(curves, "step", "Training loss", f"{title}: training loss", level)
        charts.append({"title": f"{title}: training loss", "svg": Markup(drawn), "runs": present})
    val = runs.get("reduced", {}).get("val", [])
    if val:
        epochs = [v["epoch"] for v in val]
        curves = [
            Curve("top-1", epochs, [v.get("top1_error_pct") for v in val]),
            Curve("top-5", epochs, [v.get("top5_error_pct") for v in val]),
        ]
        chance = runs["reduced"].get("chance_top1_error_pct")
        level = ReferenceLine(chance, f"chance, top-1 {chance:.1f}") if chance else None
        title = "Reduced: validation error"
        drawn = line_chart(curves, "epoch", "Error, per cent", title, level, y_range=(0, 102))
        charts.append({"title": title, "svg": Markup(drawn), "runs": []})
    return charts


def kernels(reproduction: Reproduction) -> dict[str, Any]:
    kernels = reproduction.get("kernels")
    pictures = [] if kernels is None else kernel_pictures(kernels)
    count = 0 if kernels is None else kernels.shape[0] // 2
    return {
        "pictures": pictures, "each": count, "caption": reproduction.get("kernels_caption", "")
    }  # fmt: skip


def lookalikes(reproduction: Reproduction) -> dict[str, Any] | None:
    found, pictures = reproduction.get("lookalikes"), reproduction.get("pictures")
    if found is None or pictures is None:
        return None
    uris = (jpeg_data_uri(picture) for picture in pictures)
    return {
        "guesses": [
            {
                "src": next(uris),
                "label": guess["label"],
                "rows": [
                    {"name": name, "pct": 100 * p, "right": name == guess["label"]}
                    for name, p in zip(guess["guesses"], guess["probabilities"], strict=True)
                ],
            }
            for guess in found["guesses"]
        ],
        "queries": [
            {
                "src": next(uris),
                "label": label,
                "nearest": [{"src": next(uris), "label": other} for other in nearest],
            }
            for label, nearest in zip(found["queries"], found["nearest"], strict=True)
        ],
    }


def ablation(ablation: Ablation) -> dict[str, Any]:
    arms = ablation["arms"]
    threshold = ablation.get("threshold_pct")
    curves = [Curve(a["label"], a["epochs"], a["train_error_pct"]) for a in arms if a.get("epochs")]
    title = ablation.get("title", ablation["name"])
    level = ReferenceLine(threshold, f"{threshold:g}%") if threshold is not None else None
    alt = f"{title}: training error by epoch for {', '.join(a['label'] for a in arms)}"
    drawn = line_chart(curves, "epoch", "Training error, per cent", alt, level) if curves else ""
    return {**ablation, "title": title, "svg": Markup(drawn), "threshold_pct": threshold}


def effects(reproduction: Reproduction) -> dict[str, Any]:
    """A forest of top-1 differences, and a row an ablation of all metrics."""
    found = reproduction.get("effects", [])
    rows: dict[str, dict[str, Any]] = {}
    for effect in found:
        row = rows.setdefault(effect["arm"], {"arm": effect["arm"], "seeds": len(effect["seeds"])})
        row[effect["metric"]] = effect
    top1 = [effect for effect in found if effect["metric"] == "top1_error_pct"]
    lines = [
        IntervalRow(e["arm"], e["mean_points"], *(e["interval_points"] or (None, None)))
        for e in top1
    ]
    title = "Top-1 error without it, minus with it, points"
    alt = f"{title}: {', '.join(f'{e.label} {e.mean:+.1f}' for e in lines)}"
    return {
        "rows": list(rows.values()),
        "svg": Markup(forest(lines, title, alt)) if lines else "",
        "caption": reproduction.get("effects_caption", ""),
    }


def claimed_and_measured(row: dict[str, Any], reproduction: Reproduction) -> Markup:
    """A forest of what leaving a thing out cost here, below what a source says that it costs."""
    claim = row["effect"]
    if claim is None:
        return Markup("")
    lines = [
        IntervalRow(e["arm"], e["mean_points"], *(e["interval_points"] or (None, None)))
        for e in (*reproduction.get("effects", []), *reproduction.get("cifar10_effects", []))
        if e["arm"] in claim["arms"] and e["metric"] == claim["metric"]
    ]
    if not lines:
        return Markup("")
    if claim["claimed_points"] is not None:
        lines.insert(0, IntervalRow(claim["source"], claim["claimed_points"], None, None, series=1))
    metric = {"top1_error_pct": "top-1 error", "train_error_pct": "training error"}[claim["metric"]]
    title = f"Points of {metric} without it, minus with it"
    told = ", ".join(f"{line.label} {line.mean:+.1f}" for line in lines)
    return Markup(forest(lines, title, f"{row['title']}. {title}: {told}"))


def learning(row: dict[str, Any], reproduction: Reproduction) -> Markup:
    """How training went with a thing and without it."""
    curves = reproduction.get("learning_curves", {})
    if row["effect"] is None or not (curves.keys() & row["effect"]["arms"]):
        return Markup("")
    arms = [arm for arm in (WITH_ALL, *row["effect"]["arms"]) if curves.get(arm)]
    lines = [Curve(arm, range(1, len(curves[arm]) + 1), curves[arm]) for arm in arms]
    title = "Training error, per cent, mean over seeds"
    return Markup(line_chart(lines, "epoch", title, f"{row['title']}. {title}, by epoch"))
