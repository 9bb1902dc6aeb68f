"""The report: one self-contained HTML page that shows a reproduction and the whole ledger.

``python -m alexnet2012.report DIR`` renders DIR/reproduction.json and its arrays again. Sections
without data are left out.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.report import context
from alexnet2012.ledger.report.compare import compare, comparison_tables
from alexnet2012.ledger.results import (
    Evaluation,
    Reproduction,
    damaged_directory,
    ledger_of,
    load_reproduction,
)
from alexnet2012.ledger.verdicts import columns
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.templates import page_template
from alexnet2012.utils.text import printable, say


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


def summary_table(reproduction: Reproduction) -> str:
    """The main results as a Markdown table."""
    claims = {m["claim"]: m for m in reproduction["measurements"]}
    parts = reproduction["exactness"], reproduction["evaluation"]
    if not (all(parts) and "size" in claims):
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
            "bytes exchanged between the towers per image, forward and backward",
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


def main() -> None:
    words = sys.argv[1:]
    exit_on_error(lambda: _compare(words[1:]) if words[:1] == ["compare"] else _report(words))


def _report(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 report",
        description="Render DIR/report.html again, or print its tables.",
        epilog="alexnet2012 report compare A B compares two reproductions.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="reproduction directory")
    parser.add_argument("--table", action="store_true", help="print the main results as Markdown")
    parser.add_argument(
        "--claims", action="store_true", help="print the verdicts over several seeds as Markdown"
    )
    arguments = parser.parse_args(words)
    reproduction = _load("DIR", arguments.directory)
    with damaged_directory("DIR", arguments.directory):
        if arguments.table:
            say(summary_table(reproduction))
        elif arguments.claims:
            say(claims_table(reproduction))
        else:
            say(str(write_report(reproduction, arguments.directory)))


def _compare(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 report compare",
        description="Compare two reproductions claim by claim.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a directory with a reproduction.json")
    parser.add_argument("--json", action="store_true", help="print the comparison as JSON")
    arguments = parser.parse_args(words)
    first, second = _load("A", arguments.A), _load("B", arguments.B)
    if arguments.json:
        rows = [{**asdict(row), "outcome": row.outcome.value} for row in compare(first, second)]
        print(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    names = (escape(printable(str(arguments.A))), escape(printable(str(arguments.B))))
    for table in comparison_tables(names, first, second):
        Console().print(table)


def _load(name: str, directory: Path) -> Reproduction:
    if not (directory / "reproduction.json").exists():
        remedy = "contains no reproduction.json; `make reproduce` writes one"
        raise ConfigError(name, directory, remedy)
    with damaged_directory(name, directory):
        ledger_of(reproduction := load_reproduction(directory))  # its claims can be read
    return reproduction


if __name__ == "__main__":
    main()
