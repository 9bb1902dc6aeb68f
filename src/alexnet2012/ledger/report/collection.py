"""Several reproductions together, such as those in ``results/``, as Markdown.

One table has every claim once, by the best measurement of it; a page has what each reproduction ran
and measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from alexnet2012.ledger.claims import Scale
from alexnet2012.ledger.report.render import claims_table, has_summary, summary_table
from alexnet2012.ledger.results import Provenance, Reproduction, ledger_of
from alexnet2012.ledger.statistics import Estimate
from alexnet2012.ledger.verdicts import Verdict

Row = Mapping[str, Any]  # of a ledger

MOST_ROWS = 12  # of claims with a row of their own: the README shows the table
_SCALES = [scale.words for scale in Scale]
_VERDICTS = [verdict.value for verdict in Verdict]
_DECIDED = _VERDICTS[: _VERDICTS.index(Verdict.inconclusive.value)]
_CLAIMED_DIRECTION = {
    "top1_error_pct": "a lower error",
    "gap_points": "less overfitting",
    "train_error_pct": "a lower training error",
}
_WOULD_SETTLE = {
    Verdict.agrees.value: "settled",
    Verdict.differs.value: "settled",
    Verdict.inconclusive.value: "more seeds, or more validation images",
    Verdict.stand_in.value: "another data set",
    Verdict.not_recomputable.value: "a new measurement that keeps the errors of every run",
    Verdict.not_measured.value: "full scale",
}


def directories(folder: Path) -> list[Path]:
    """The reproductions in a folder, by name."""
    return sorted(file.parent for file in folder.glob("*/reproduction.json"))


def overview_table(reproductions: Sequence[Reproduction]) -> str:
    """Every claim once: what was claimed and measured, the verdict, and what would settle it.

    Claims that were tested have a row of their own, decided ones first; the others are listed by
    verdict. Of equally good measurements, the newest counts.
    """
    best: dict[str, Row] = {}
    for reproduction in sorted(reproductions, key=_date, reverse=True):
        for row in ledger_of(reproduction)["rows"]:
            if row["id"] not in best or _rank(row) < _rank(best[row["id"]]):
                best[row["id"]] = row
    tested = sorted(
        filter(_was_tested, best.values()), key=lambda row: _VERDICTS.index(row["verdict"])
    )
    alone = {row["id"]: row for row in tested[:MOST_ROWS]}
    rows = [("claim", "claimed", "measured, 95% interval", "verdict", "what would settle it")]
    rows += [
        (row["title"], _claimed(row), _measured(row), row["verdict"], _settles(row))
        for row in alone.values()
    ]
    for verdict in _VERDICTS:
        names = [f"`{n}`" for n, r in best.items() if r["verdict"] == verdict and n not in alone]
        if names:
            text = f"{len(names)} claim{'s' * (len(names) > 1)}: {' '.join(names)}"
            rows.append((text, "", "", verdict, _WOULD_SETTLE.get(verdict, "full scale")))
    return _table(rows)


def results_page(reproductions: Mapping[str, Reproduction], link: str) -> str:
    """What each reproduction ran and measured, a section for each.

    Args:
        reproductions: by the names of their directories.
        link: the address of the folder that they are in.
    """
    return "\n\n".join(_section(name, made, link) for name, made in reproductions.items())


def _section(name: str, reproduction: Reproduction, link: str) -> str:
    made = reproduction.get("provenance", {})
    parts = [
        f"### {name}",
        f"{made.get('data_caveat') or made.get('data_description', '')} {_circumstances(made)} "
        f"[Report]({link}/{name}/report.html).",
        f"```text\n{made.get('command', '')}\n```",
    ]
    if has_summary(reproduction):
        parts.append(summary_table(reproduction))
    table = claims_table(reproduction)
    parts.append(table if table.startswith("|") else f"{table[0].upper()}{table[1:]}.")
    return "\n\n".join(parts)


def _circumstances(made: Provenance) -> str:
    commit = f"commit `{made.get('commit', 'unknown')}`"
    if made.get("dirty"):
        commit += " with uncommitted changes"
    machine = f"{made.get('cpu', 'unknown')}, {made.get('cores', '?')} cores"
    seeds = ", ".join(map(str, made.get("seeds", [])))
    sentences = [
        f"Measured on {made.get('date', 'an unknown day')} at {commit}, with torch "
        f"{made.get('torch', '?')} on {machine}, {made.get('gpu') or 'no GPU'}; seeds {seeds}."
    ]
    for what, earlier in made.get("extra", {}).items():
        if what.endswith("ran at") and earlier != made.get("commit"):
            sentences.append(f"{what} commit `{earlier}`.")
    return " ".join(sentences)


def _date(reproduction: Reproduction) -> str:
    return str(reproduction.get("provenance", {}).get("date", ""))


def _rank(row: Row) -> tuple[bool, bool, int]:
    """Smaller for better measurements."""
    is_old = row["verdict"] == Verdict.not_recomputable.value
    scale = _SCALES.index(row["scale"]) if row["measured"] else len(_SCALES)
    return row["measured"] is None, is_old, scale


def _was_tested(row: Row) -> bool:
    return row["test"]["p_adjusted"] is not None


def _claimed(row: Row) -> str:
    if row["test"]["claimed"] is not None:
        return f"{row['test']['claimed']:+.2f} points"
    if row["effect"] is not None:
        return _CLAIMED_DIRECTION[row["effect"]["metric"]]
    source = next(source for source in row["sources"].values() if source is not None)
    return "; ".join(source["value"].splitlines())


def _measured(row: Row) -> str:
    estimates = [Estimate.from_json(fields) for fields in row["measured"]["estimates"]]
    if not estimates:
        return str(row["measured"]["value"])
    texts = (f"{e.arm} " * (len(estimates) > 1) + _with_interval(e) for e in estimates)
    return f"{'; '.join(texts)} points"


def _with_interval(estimate: Estimate) -> str:
    if estimate.interval is None:
        return f"{estimate.mean:+.2f}"
    low, high = estimate.interval
    return f"{estimate.mean:+.2f} ({low:+.1f} to {high:+.1f})"


def _settles(row: Row) -> str:
    test = row["test"]
    if row["verdict"] in _DECIDED:
        return "full scale" if row["scale"] == Scale.reduced.words else "settled"
    if test["power"] is None:
        return _WOULD_SETTLE[row["verdict"]]
    number = test["seeds_needed"]
    needed = "more validation images" if number is None else f"{number} seeds"
    return f"{needed} (power {100 * test['power']:.0f}%)"


def _table(rows: Sequence[Sequence[str]]) -> str:
    escaped = [[cell.replace("|", "\\|") for cell in row] for row in rows]
    lines = [escaped[0], ["---"] * len(rows[0]), *escaped[1:]]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)
