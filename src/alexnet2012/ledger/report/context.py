"""The values that the report's template shows: sums, shares, checks and formatted numbers."""

from __future__ import annotations

import math
from typing import Any

from markupsafe import Markup

from alexnet2012.ledger.authors_runs import authors_rows, authors_summary
from alexnet2012.ledger.claims import Scale, load_differences
from alexnet2012.ledger.report import charts
from alexnet2012.ledger.results import (
    Audit,
    CommittedLedger,
    Evaluation,
    ExchangeTraffic,
    Reproduction,
    ledger_of,
)
from alexnet2012.ledger.verdicts import Verdict, columns

VERDICT_MARKS = {  # CSS classes of badges
    Verdict.agrees.value: "ok",
    Verdict.differs.value: "bad",
    Verdict.supported.value: "ok",
    Verdict.in_direction.value: "ok",
    Verdict.contradicted.value: "bad",
    Verdict.inconclusive.value: "unsure",
    Verdict.stand_in.value: "unsure",
    Verdict.not_recomputable.value: "unsure",
    Verdict.not_measured.value: "none",
}
SCALE_NOTES = {
    Scale.exact.words: "exact",
    Scale.full.words: "full scale",
    Scale.reduced.words: "reduced scale",
}  # beside a badge; "stand-in only" says it itself
SOURCE_NAMES = {"paper": "Paper", "code": "2012 code", "article": "Article"}


def view(reproduction: Reproduction) -> dict[str, Any]:
    """The variables of the template."""
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
        "towers": charts.towers(reproduction),
        "audit": audit,
        "exactness": exactness,
        "exchanges": exchanges,
        "training": charts.training(reproduction.get("runs", {})),
        "evaluation": evaluation,
        "kernels": charts.kernels(reproduction),
        "lookalikes": charts.lookalikes(reproduction),
        "ablations": [charts.comparison(a) for a in reproduction.get("ablations", [])],
        "relu_ratios": charts.relu_ratios(reproduction.get("relu_ratios", [])),
        "effects": charts.effects(reproduction),
        "committed": reproduction.get("committed", []),
        "ledger": _ledger_view(reproduction),
        "differences": load_differences(),
        "authors": {"summary": authors_summary(), "rows": authors_rows()},
    }


def audit_view(audit: Audit) -> dict[str, Any]:
    """Counts by layer with each layer's share of the parameters, and their totals."""
    rows: list[dict[str, Any]] = [{**layer} for layer in audit.get("layers", [])]
    keys = ("weights", "biases", "neurons", "multiply_adds")
    totals = {key: sum(row[key] for row in rows) for key in keys}
    parameters = totals["weights"] + totals["biases"]
    for row in rows:
        row["share_pct"] = 100 * (row["weights"] + row["biases"]) / parameters
    recipe = audit.get("recipe")
    return {"recipe": recipe, "rows": rows, "totals": totals, "parameters": parameters}


def exchanges_view(exchanges: list[ExchangeTraffic]) -> dict[str, Any]:
    """One row per layer with both directions, and the totals."""
    rows: dict[str, dict[str, Any]] = {}
    for e in exchanges:
        new = {"layer": e["layer"], "forward": None, "backward": None, "counted": 0, "expected": 0}
        row = rows.setdefault(e["layer"], new)
        row[e["direction"]] = e
        row["counted"] += e["bytes_per_image"]
        row["expected"] += e["expected_bytes_per_image"]
    return {
        "rows": list(rows.values()),
        "largest": max((row["counted"] for row in rows.values()), default=1) or 1,
        "counted": sum(row["counted"] for row in rows.values()),
        "expected": sum(row["expected"] for row in rows.values()),
        "ok": all(e["bytes_per_image"] == e["expected_bytes_per_image"] for e in exchanges),
    }


def _tiles(
    audit: dict[str, Any],
    exactness: list[dict[str, Any]],
    exchanges: dict[str, Any],
    evaluation: list[Evaluation],
) -> list[dict[str, str]]:
    """The main numbers at the top of the page, if measured."""
    tiles = []
    if audit["rows"]:
        note = f"{audit['totals']['neurons']:,} neurons"
        if audit["parameters"] == 60_965_224:  # the paper's network, not a smaller one
            note += "; the paper says 60 M and 650,000"
        tiles.append({"label": "Parameters", "value": f"{audit['parameters']:,}", "note": note})
    if exactness:
        # float64 shows whether the results are the same; float32 differences are rounding
        doubles = [e for e in exactness if e["dtype"] == "float64"] or exactness
        worst = max(doubles, key=lambda e: number(e["worst_relative_difference"]))
        note = f"largest relative difference: {worst['quantity']}, {worst['dtype']}"
        value: str = scientific(worst["worst_relative_difference"])
        tiles.append({"label": "Two processes compared with one", "value": value, "note": note})
    if exchanges["rows"]:
        outcome = (
            "as many as the shapes give" if exchanges["ok"] else "not as many as the shapes give"
        )
        note = f"forward and backward; {outcome}"
        value = f"{exchanges['counted']:,.0f}"
        tiles.append({"label": "Bytes exchanged per image", "value": value, "note": note})
    if evaluation:
        best = max(evaluation, key=lambda e: e["views"])
        note = f"{best['views']} views, {best['pictures']:,} images"
        if interval := best.get("top1_interval_pct"):
            note = f"95% interval {fixed(interval[0])} to {fixed(interval[1])}; {note}"
        if "chance_top1_error_pct" in best:
            note += f"; chance is {fixed(best['chance_top1_error_pct'])}%"
        value = f"{fixed(best['top1_error_pct'])}%"
        tiles.append({"label": "Top-1 validation error", "value": value, "note": note})
    return tiles


def _ledger_view(reproduction: Reproduction) -> dict[str, Any]:
    content = ledger_of(reproduction)
    evidence = _evidence(reproduction.get("committed", []))
    rows = [
        {
            **row,
            "mark": VERDICT_MARKS[row["verdict"]],
            "scale_note": SCALE_NOTES.get(row["scale"], ""),
            "below_full_scale": row["scale"] not in (Scale.exact.words, Scale.full.words),
            "reported": _reported(row["sources"]),
            "evidence": evidence.get(row["id"]) or evidence.get(row["title"], []),
            "columns": columns(row) if row["measured"] else {},
            "timings": content["timings"].get(row["id"], {}),
            "figures": [
                figure
                for draw in (charts.claimed_and_measured, charts.learning_curves)
                if (figure := draw(row, reproduction))
            ],
        }
        for row in content["rows"]
    ]
    tally = [
        {
            "verdict": verdict,
            "mark": mark,
            "count": sum(row["verdict"] == verdict for row in rows),
        }
        for verdict, mark in VERDICT_MARKS.items()
    ]
    return {"rows": rows, "tally": tally}


def _reported(sources: dict[str, Any]) -> dict[str, str]:
    """What the first source that mentions the claim says, and which that is."""
    said = ((name, source) for name, source in sources.items() if source is not None)
    name, source = next(said, ("paper", {"value": "–"}))
    return {"source": SOURCE_NAMES[name], "value": source["value"]}


def _evidence(ledgers: list[CommittedLedger]) -> dict[str, list[dict[str, Any]]]:
    """The rows of committed ledgers by claim, or by title in older files; most seeds first."""
    found: dict[str, list[dict[str, Any]]] = {}
    for ledger in ledgers:
        for row in ledger["rows"]:
            mark = VERDICT_MARKS.get(row["verdict"], "unsure")  # older ledgers have other verdicts
            shown = {**ledger, **row, "mark": mark}
            found.setdefault(row.get("claim", row["title"]), []).append(shown)
    for rows in found.values():
        rows.sort(key=lambda row: -row["n_seeds"])
    return found


def scientific(value: float | None) -> Markup:
    """3.1e-15 → 3.1 × 10⁻¹⁵; ``not finite`` for NaN and infinities."""
    if value is None or not math.isfinite(value):
        return Markup("not finite")
    if value == 0:
        return Markup("0")
    mantissa, exponent = f"{value:.1e}".split("e")
    power = str(int(exponent)).replace("-", "−")
    return Markup("{} × 10<sup>{}</sup>").format(mantissa.removesuffix(".0"), power)


def fixed(value: float | None, digits: int = 1) -> str:
    """A number with fixed digits; a dash for NaN and infinities."""
    return "–" if value is None or not math.isfinite(value) else f"{value:,.{digits}f}"


def prose(text: str) -> str:
    """Typographic apostrophes, and no line breaks within pairs of errors."""
    return text.replace("'", "’").replace(" / ", "\u00a0/\u00a0")


def number(value: float | None) -> float:
    """Infinity for null, which stands for a number that was not finite, and for NaN."""
    return math.inf if value is None or math.isnan(value) else value
