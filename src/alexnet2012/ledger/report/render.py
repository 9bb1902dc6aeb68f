"""The report: one self-contained HTML page that shows a reproduction and the whole ledger.

``python -m alexnet2012.report DIR`` renders DIR/reproduction.json and its arrays again. Sections
without data are left out.
"""

from __future__ import annotations

import math
from pathlib import Path

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.report import context
from alexnet2012.ledger.results import Evaluation, Reproduction, ledger_of
from alexnet2012.ledger.verdicts import columns
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.templates import page_template


def write_report(reproduction: Reproduction, directory: Path) -> Path:
    """Render DIRECTORY/report.html: one file without external resources, all text escaped."""
    template = page_template(
        "alexnet2012.ledger.report",
        "report.html.jinja",
        count=lambda n: f"{n:,.0f}",
        fixed=context.fixed,
        sci=context.scientific,
        prose=context.prose,
    )
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "report.html"
    replace_text(path, template.render(context.view(reproduction)))
    return path


def has_summary(reproduction: Reproduction) -> bool:
    """Whether a reproduction has the parts whose results :func:`summary_table` shows."""
    return all(reproduction.get(part) for part in ("audit", "exactness", "evaluation", "runs"))


def summary_table(reproduction: Reproduction) -> str:
    """The main results as a Markdown table."""
    claims = {m["claim"]: m for m in reproduction["measurements"]}
    if not has_summary(reproduction):
        remedy = "needs the parts audit, exactness, full_size and reduced; see --claims"
        raise ConfigError("parts", "not all", remedy)
    audit, runs = context.audit_view(reproduction["audit"]), reproduction["runs"]
    largest = max(context.number(e["worst_relative_difference"]) for e in reproduction["exactness"])
    exchanges = context.exchanges_view(reproduction["exchanges"])
    as_computed = f"{'as' if exchanges['ok'] else 'not as'} computed"
    paper, code = runs["full_paper"], runs["full_code145"]
    one_view, ten_views = sorted(reproduction["evaluation"], key=lambda row: row["views"])
    rows = [
        ("parameters", f"{audit['parameters']:,}", "60 M"),
        ("neurons", f"{audit['totals']['neurons']:,}", "650,000"),
        ("two processes compared with one: largest relative difference", f"{largest:.1e}", ""),
        (
            "bytes exchanged between the towers per image, forward and backward "
            f"({round(math.exp(code['chance_loss']))} classes)",
            f"{exchanges['counted']:,.0f}, {as_computed}",
            "",
        ),
        (
            f"full size, loss after {code['steps'][-1]} steps (chance {code['chance_loss']:.2f})",
            f"`paper` {paper['loss'][-1]:.2f}, `code145` {code['loss'][-1]:.2f}",
            "",
        ),
        (
            "reduced network, top-1 error, 1 view "
            f"(chance {context.fixed(one_view['chance_top1_error_pct'])}%)",
            _with_interval(one_view),
            "",
        ),
        ("reduced network, top-1 error, 10 views", _with_interval(ten_views), ""),
    ]
    if "relu" in claims:
        title = "epochs to 25% training error, tanh relative to ReLU"
        rows.append((title, claims["relu"]["value"], "6 ×"))
    lines = ["| quantity | measured | paper |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def claims_table(reproduction: Reproduction) -> str:
    """The claims measured with several seeds, with their verdicts, as a Markdown table."""
    rows = [
        {
            "claim": row["title"],
            "measured, 95% interval": row["measured"]["value"],
            **columns(row),
            "how": row["scale"],
            "verdict": row["verdict"],
        }
        for row in ledger_of(reproduction)["rows"]
        if row["measured"] and row["measured"]["n_seeds"] > 1
    ]
    if not rows:
        return "no claim was measured with several seeds"
    names = [name for name in rows[0] if any(row[name] != "–" for row in rows)]
    escaped = ([row[name].replace("|", "\\|") for name in names] for row in rows)
    lines = [names, ["---"] * len(names), *escaped]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _with_interval(row: Evaluation) -> str:
    low, high = row["top1_interval_pct"]
    return f"{row['top1_error_pct']:.1f}% ({low:.1f} – {high:.1f})"
