"""Render a reproduction's report again, or compare two: ``python -m alexnet2012.report DIR``.

DIR may also be a folder of reproductions, such as ``results/``.
``python -m alexnet2012.report compare A B`` compares two.
"""

from __future__ import annotations

import json
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet2012.cli.args import ArgumentParser
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError
from alexnet2012.utils.text import printable, say

if TYPE_CHECKING:  # a mistake in the command is reported without torch
    from alexnet2012.ledger.results import Reproduction


def main() -> None:
    words = sys.argv[1:]
    exit_on_error(lambda: _compare(words[1:]) if words[:1] == ["compare"] else _report(words))


def _report(words: Sequence[str]) -> None:
    parser = ArgumentParser(
        prog="alexnet2012 report",
        description="Render DIR/report.html again, or print its tables.",
        epilog="alexnet2012 report compare A B compares two reproductions.",
    )
    parser.add_argument(
        "directory", type=Path, metavar="DIR", help="a reproduction, or a folder of several"
    )
    shown = parser.add_mutually_exclusive_group()
    shown.add_argument("--table", action="store_true", help="print the main results as Markdown")
    shown.add_argument(
        "--claims",
        action="store_true",
        help="print the verdicts as Markdown: over several seeds, or of all in a folder",
    )
    shown.add_argument(
        "--page", action="store_true", help="print what ran and what it measured as Markdown"
    )
    arguments = parser.parse_args(words)
    folder: Path = arguments.directory
    if (folder / "reproduction.json").exists() or not any(folder.glob("*/reproduction.json")):
        _print_one(folder, arguments)
    else:
        _print_all(folder, arguments)


def _print_one(directory: Path, arguments: Namespace) -> None:
    reproduction = _load("DIR", directory)
    from alexnet2012.ledger.report.collection import results_page
    from alexnet2012.ledger.report.render import claims_table, summary_table, write_report
    from alexnet2012.ledger.results import damaged_directory

    with damaged_directory("DIR", directory):
        if arguments.table:
            say(summary_table(reproduction))
        elif arguments.claims:
            say(claims_table(reproduction))
        elif arguments.page:
            say(results_page({directory.resolve().name: reproduction}, ".."))
        else:
            say(str(write_report(reproduction, directory)))


def _print_all(folder: Path, arguments: Namespace) -> None:
    from alexnet2012.ledger.report.collection import directories, overview_table, results_page
    from alexnet2012.ledger.results import damaged_directory

    if arguments.table:
        raise ConfigError("DIR", folder, "holds several reproductions; give one of them")
    reproductions = {path.name: _load("DIR", path) for path in directories(folder)}
    with damaged_directory("DIR", folder):
        if arguments.claims:
            say(overview_table(list(reproductions.values())))
        elif arguments.page:
            say(results_page(reproductions, f"../{folder.resolve().name}"))
        else:
            raise ConfigError("DIR", folder, "holds several reproductions; give one, or --claims")


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
    from rich.console import Console
    from rich.markup import escape

    from alexnet2012.ledger.report.compare import compare, comparison_tables

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
    from alexnet2012.ledger.results import damaged_directory, ledger_of, load_reproduction

    with damaged_directory(name, directory):
        ledger_of(reproduction := load_reproduction(directory))  # its claims can be read
    return reproduction


if __name__ == "__main__":
    main()
