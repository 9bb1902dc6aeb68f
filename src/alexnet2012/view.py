"""What the report shows: every sum, share and judgement that stands on the page is made here."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from alexnet2012.claims import Verdict, load_differences
from alexnet2012.figures import (
    Curve,
    Interval,
    Level,
    forest,
    kernel_pictures,
    line_chart,
    photo,
    two_towers,
)
from alexnet2012.findings import (
    Ablation,
    Audit,
    Evaluation,
    Exchange,
    Reproduction,
    Runs,
    ledger_of,
)

VERDICT_MARKS = {
    Verdict.exact: "exact",
    Verdict.full: "full",
    Verdict.reduced: "reduced",
    Verdict.not_measured: "none",
}


def view(reproduction: Reproduction) -> dict[str, Any]:
    """What the template shows: every sum, share and judgement is made here."""
    exchanges = exchanges_view(reproduction.get("exchanges", []))
    exactness = [
        {**e, "ok": number(e["worst_relative_difference"]) <= e["bound"]}
        for e in reproduction.get("exactness", [])
    ]
    audit = audit_view(reproduction.get("audit", {}))
    evaluation = reproduction.get("evaluation", [])
    return {
        "provenance": reproduction.get("provenance", {}),
        "warnings": reproduction.get("warnings", []),
        "tiles": _tiles(audit, exactness, exchanges, evaluation),
        "towers": _towers(reproduction),
        "audit": audit,
        "exactness": exactness,
        "exchanges": exchanges,
        "training": _training(reproduction.get("runs", {})),
        "evaluation": evaluation,
        "kernels": _kernels(reproduction),
        "lookalikes": _lookalikes(reproduction),
        "ablations": [_ablation(a) for a in reproduction.get("ablations", [])],
        "effects": _effects(reproduction),
        "ledger": _ledger_view(reproduction),
        "differences": load_differences(),
    }


def audit_view(audit: Audit) -> dict[str, Any]:
    layers: list[dict[str, Any]] = [{**layer} for layer in audit.get("layers", [])]
    keys = ("weights", "biases", "neurons", "multiply_adds")
    totals = {key: sum(layer[key] for layer in layers) for key in keys}
    parameters = totals["weights"] + totals["biases"]
    shares = [100 * (layer["weights"] + layer["biases"]) / parameters for layer in layers]
    rows = [{**layer, "share_pct": share} for layer, share in zip(layers, shares, strict=True)]
    return {
        "recipe": audit.get("recipe"), "rows": rows, "totals": totals, "parameters": parameters
    }  # fmt: skip


def exchanges_view(exchanges: list[Exchange]) -> dict[str, Any]:
    """One row a layer, forward and backward side by side."""
    rows: dict[str, dict[str, Any]] = {}
    for e in exchanges:
        row = rows.setdefault(e["layer"], {"layer": e["layer"], "forward": None, "backward": None})
        row[e["direction"]] = e
    counted = sum(e["bytes_per_image"] for e in exchanges)
    return {
        "rows": list(rows.values()),
        "largest": max((e["bytes_per_image"] for e in exchanges), default=1) or 1,
        "counted": counted,
        "expected": sum(e["expected_bytes_per_image"] for e in exchanges),
        "ok": all(e["bytes_per_image"] == e["expected_bytes_per_image"] for e in exchanges),
    }


def _tiles(
    audit: dict[str, Any],
    exactness: list[dict[str, Any]],
    exchanges: dict[str, Any],
    evaluation: list[Evaluation],
) -> list[dict[str, str]]:
    """The few numbers that open the page; one that was not measured has no tile."""
    tiles = []
    if audit["rows"]:
        note = f"{audit['totals']['neurons']:,} neurons"
        if audit["parameters"] == 60_965_224:  # the paper's own net, not a smaller one
            note += "; the paper rounds to 60 M and 650,000"
        tiles.append({"label": "Parameters", "value": f"{audit['parameters']:,}", "note": note})
    if exactness:
        # float64 shows whether the two compute the same; float32 only how it rounds
        doubles = [e for e in exactness if e["dtype"] == "float64"] or exactness
        worst = max(doubles, key=lambda e: number(e["worst_relative_difference"]))
        note = f"worst relative difference: {worst['quantity']}, {worst['dtype']}"
        value: str = scientific(worst["worst_relative_difference"])
        tiles.append({"label": "Two processes against one", "value": value, "note": note})
    if exchanges["rows"]:
        note = "forward and backward; "
        note += "to the byte as computed" if exchanges["ok"] else "not what the shapes say"
        value = f"{exchanges['counted']:,.0f}"
        tiles.append({"label": "Bytes exchanged per image", "value": value, "note": note})
    if evaluation:
        best = max(evaluation, key=lambda e: e["views"])
        note = f"{best['views']} views, {best['pictures']:,} pictures"
        if "chance_top1_error_pct" in best:
            note += f"; chance is {fixed(best['chance_top1_error_pct'])}%"
        value = f"{fixed(best['top1_error_pct'])}%"
        tiles.append({"label": "Top-1 validation error", "value": value, "note": note})
    return tiles


def _towers(reproduction: Reproduction) -> list[Markup]:
    layers = [(x["name"], x["kernels"]) for x in reproduction.get("audit", {}).get("layers", [])]
    crossings = {
        e["layer"]: e["bytes_per_image"]
        for e in reproduction.get("exchanges", [])
        if e["direction"] == "forward"
    }
    if not layers or not crossings:
        return []
    return [Markup(two_towers(layers, crossings, vertical)) for vertical in (False, True)]


def _training(runs: Runs) -> list[dict[str, Any]]:
    """One chart for the full-size runs, and two for the reduced one."""
    charts = []
    full = [run for run in (runs.get("full_paper"), runs.get("full_code145")) if run]
    for title, group in (("At the paper's own size", full), ("Reduced", [runs.get("reduced")])):
        present = [run for run in group if run and run.get("loss")]
        if not present:
            continue
        curves = [Curve(r.get("label", "loss"), r["steps"], r["loss"]) for r in present]
        chance = present[0].get("chance_loss")
        level = Level(chance, f"chance, {chance:.2f}") if chance else None
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
        level = Level(chance, f"chance, top-1 {chance:.1f}") if chance else None
        title = "Reduced: validation error"
        drawn = line_chart(curves, "epoch", "Error, per cent", title, level, y_range=(0, 102))
        charts.append({"title": title, "svg": Markup(drawn), "runs": []})
    return charts


def _kernels(reproduction: Reproduction) -> dict[str, Any]:
    kernels = reproduction.get("kernels")
    pictures = [] if kernels is None else kernel_pictures(kernels)
    count = 0 if kernels is None else kernels.shape[0] // 2
    return {
        "pictures": pictures, "each": count, "caption": reproduction.get("kernels_caption", "")
    }  # fmt: skip


def _lookalikes(reproduction: Reproduction) -> dict[str, Any] | None:
    found, pictures = reproduction.get("lookalikes"), reproduction.get("pictures")
    if found is None or pictures is None:
        return None
    uris = (photo(picture) for picture in pictures)
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


def _ablation(ablation: Ablation) -> dict[str, Any]:
    arms = ablation["arms"]
    threshold = ablation.get("threshold_pct")
    curves = [Curve(a["label"], a["epochs"], a["train_error_pct"]) for a in arms if a.get("epochs")]
    title = ablation.get("title", ablation["name"])
    level = Level(threshold, f"{threshold:g}%") if threshold is not None else None
    alt = f"{title}: training error by epoch for {', '.join(a['label'] for a in arms)}"
    drawn = line_chart(curves, "epoch", "Training error, per cent", alt, level) if curves else ""
    return {**ablation, "title": title, "svg": Markup(drawn), "threshold_pct": threshold}


def _effects(reproduction: Reproduction) -> dict[str, Any]:
    """A forest of top-1 differences, and a row an ablation of all metrics."""
    found = reproduction.get("effects", [])
    rows: dict[str, dict[str, Any]] = {}
    for effect in found:
        row = rows.setdefault(effect["arm"], {"arm": effect["arm"], "seeds": len(effect["seeds"])})
        row[effect["metric"]] = effect
    top1 = [effect for effect in found if effect["metric"] == "top1_error_pct"]
    lines = [
        Interval(e["arm"], e["mean_points"], *(e["interval_points"] or (None, None))) for e in top1
    ]
    title = "Top-1 error without it, minus with it, points"
    alt = f"{title}: {', '.join(f'{e.label} {e.mean:+.1f}' for e in lines)}"
    return {
        "rows": list(rows.values()),
        "svg": Markup(forest(lines, title, alt)) if lines else "",
        "caption": reproduction.get("effects_caption", ""),
    }


def _ledger_view(reproduction: Reproduction) -> dict[str, Any]:
    content = ledger_of(reproduction)
    rows = [
        {
            **row,
            "mark": VERDICT_MARKS[Verdict(row["verdict"])],
            "timings": content["timings"].get(row["id"], {}),
            "svg": _claimed_and_measured(row, reproduction),
        }
        for row in content["rows"]
    ]
    tally = [
        {"verdict": verdict.value, "mark": mark, "count": sum(row["mark"] == mark for row in rows)}
        for verdict, mark in VERDICT_MARKS.items()
    ]
    return {"rows": rows, "tally": tally}


def _claimed_and_measured(row: dict[str, Any], reproduction: Reproduction) -> Markup:
    """A forest of what leaving a thing out cost here, below what a source says that it costs."""
    claim = row["effect"]
    if claim is None:
        return Markup("")
    lines = [
        Interval(e["arm"], e["mean_points"], *(e["interval_points"] or (None, None)))
        for e in reproduction.get("effects", [])
        if e["arm"] in claim["arms"] and e["metric"] == claim["metric"]
    ]
    if not lines:
        return Markup("")
    if claim["claimed_points"] is not None:
        lines.insert(0, Interval(claim["source"], claim["claimed_points"], None, None, series=1))
    metric = {"top1_error_pct": "top-1 error", "train_error_pct": "training error"}[claim["metric"]]
    title = f"Points of {metric} without it, minus with it"
    told = ", ".join(f"{line.label} {line.mean:+.1f}" for line in lines)
    return Markup(forest(lines, title, f"{row['title']}. {title}: {told}"))


def scientific(value: float | None) -> Markup:
    """3.1e-15 → 3.1 × 10⁻¹⁵, and words for what is no number."""
    if value is None or not math.isfinite(value):
        return Markup("not finite")
    if value == 0:
        return Markup("0")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).replace("-", "−")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa.removesuffix(".0"), power)


def fixed(value: float | None, digits: int = 1) -> str:
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def prose(text: str) -> str:
    """Curly apostrophes, and pairs of errors that stay on one line."""
    return text.replace("'", "’").replace(" / ", "\u00a0/\u00a0")


def number(value: float | None) -> float:
    """What JSON holds as null was not finite: worse than any bound."""
    return math.inf if value is None or math.isnan(value) else value
