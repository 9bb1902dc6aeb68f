"""The report: one self-contained page that shows a reproduction, with the ledger in full.

The page is a view of files: ``python -m alexnet2012.report DIR`` renders DIR/reproduction.json
and DIR/kernels.npy again. A section whose part of the reproduction is missing is left out.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import support_word
from alexnet2012.ledger.report.compare import comparison_tables
from alexnet2012.ledger.report.context import (
    audit_view,
    exchanges_view,
    fixed,
    number,
    prose,
    scientific,
    view,
)
from alexnet2012.ledger.results import Evaluation, Reproduction, ledger_of, load_reproduction
from alexnet2012.utils.templates import page_template


def write_report(reproduction: Reproduction, directory: Path) -> Path:
    """Render DIRECTORY/report.html: one file, nothing fetched, all foreign text escaped."""
    template = page_template(
        "alexnet2012.ledger.report",
        "report.html.jinja",
        count=lambda n: f"{n:,.0f}",
        fixed=fixed,
        sci=scientific,
        prose=prose,
    )
    page = template.render(view(reproduction))
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / "report.html"
    path.write_text(page, encoding="utf-8")
    return path


def summary_table(reproduction: Reproduction) -> str:
    """The few numbers of a README, as a Markdown table; every cell from the reproduction.

    Raises:
        ConfigError: it was made without some of the parts that these are of.
    """
    claims = {m["claim"] for m in reproduction["measurements"]}
    if not (
        reproduction["exactness"] and reproduction["evaluation"] and {"size", "relu"} <= claims
    ):
        remedy = "needs the parts audit, exactness, full_size, reduced and relu; see --claims"
        raise ConfigError("parts", "not all", remedy)
    audit, runs = audit_view(reproduction["audit"]), reproduction["runs"]
    worst = max(number(e["worst_relative_difference"]) for e in reproduction["exactness"])
    exchanges = exchanges_view(reproduction["exchanges"])
    paper, code = runs["full_paper"], runs["full_code145"]
    one, ten = sorted(reproduction["evaluation"], key=lambda row: row["views"])
    relu = next(m for m in reproduction["measurements"] if m["claim"] == "relu")
    rows = [
        ("parameters", f"{audit['parameters']:,}", "60 M"),
        ("neurons", f"{audit['totals']['neurons']:,}", "650,000"),
        ("two processes against one: worst relative difference", f"{worst:.1e}", ""),
        (
            "bytes between the towers per image, forward and backward",
            f"{exchanges['counted']:,.0f}, {'as' if exchanges['ok'] else 'not as'} computed",
            "",
        ),
        (
            f"full size, loss after {code['steps'][-1]} steps (chance {code['chance_loss']:.2f})",
            f"`paper` {paper['loss'][-1]:.2f}, `code145` {code['loss'][-1]:.2f}",
            "",
        ),
        (
            f"reduced net, top-1 error, 1 view (chance {fixed(one['chance_top1_error_pct'])}%)",
            _with_interval(one),
            "",
        ),
        ("the same, 10 views", _with_interval(ten), ""),
        ("ReLU reaches 25% training error sooner than tanh", relu["value"], "6 ×"),
    ]
    lines = ["| quantity | measured here | paper |", "|---|---|---|"]
    return "\n".join(lines + [f"| {' | '.join(row)} |" for row in rows])


def claims_table(reproduction: Reproduction) -> str:
    """What was measured of each claim over several seeds, as a Markdown table."""
    lines = ["| claim | measured here, 95% over seeds | seeds | so it is |", "|---|---|---|---|"]
    for row in ledger_of(reproduction)["rows"]:
        here = row["measured"]
        if here is None or here["n_seeds"] < 2:
            continue
        cells = (row["title"], here["value"], str(here["n_seeds"]), support_word(here["agrees"]))
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def _with_interval(row: Evaluation) -> str:
    low, high = row["top1_interval_pct"]
    return f"{row['top1_error_pct']:.1f}% ({low:.1f} – {high:.1f})"


def main() -> None:
    if sys.argv[1:2] == ["compare"]:
        _compare_main(sys.argv[2:])
        return
    parser = argparse.ArgumentParser(
        prog="python -m alexnet2012.report",
        description="Render DIR/report.html again, or print its numbers.",
        epilog="python -m alexnet2012.report compare A B sets two reproductions side by side.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="of reproduction.json")
    parser.add_argument("--table", action="store_true", help="print the summary as Markdown")
    parser.add_argument("--claims", action="store_true", help="what several seeds say, as Markdown")
    arguments = parser.parse_args()
    reproduction = _load(arguments.directory, parser)
    if arguments.table:
        try:
            print(summary_table(reproduction))
        except ConfigError as error:
            parser.error(str(error))
    elif arguments.claims:
        print(claims_table(reproduction))
    else:
        print(write_report(reproduction, arguments.directory))


def _compare_main(words: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet2012.report compare",
        description="Set two reproductions side by side, claim by claim.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, type=Path, help="a folder of reproduction.json")
    given = parser.parse_args(words)
    first, second = _load(given.A, parser), _load(given.B, parser)
    names = (escape(str(given.A)), escape(str(given.B)))
    for table in comparison_tables(names, first, second):
        Console().print(table)


def _load(directory: Path, parser: argparse.ArgumentParser) -> Reproduction:
    if not (directory / "reproduction.json").exists():
        parser.error(f"DIR={directory}: holds no reproduction.json; `make reproduce` writes one")
    return load_reproduction(directory)


if __name__ == "__main__":
    main()
