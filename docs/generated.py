"""Writes the parts of pages that commands print again: ``python docs/generated.py [PAGE …]``.

Such a part stands between ``<!-- made by: alexnet2012 COMMAND … -->`` and ``<!-- end -->``. What is
not Markdown, such as the tables of a terminal, is put into a block of text; ``COMMAND … | TITLE``
takes only the table of that title.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

ROOT = Path(__file__).parents[1]
COLUMNS = "100"  # of the terminal
MADE = re.compile(r"<!-- made by: alexnet2012 (.+?) -->\n(.*?)<!-- end -->", re.DOTALL)


def pages() -> list[Path]:
    """The README and the pages of docs/ that have such parts."""
    files = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
    return [file for file in files if MADE.search(file.read_text("utf-8"))]


def written(text: str, run: Callable[[list[str]], str]) -> str:
    """The text of a page with what ``run`` prints for the words of each command."""

    def part(found: re.Match[str]) -> str:
        command, _, title = found[1].partition(" | ")
        printed = "\n".join(line.rstrip() for line in run(shlex.split(command)).splitlines())
        if title:
            _, _, table = printed.partition(f"\n{title}\n")
            printed = f"…\n{title}\n{table.partition('┘')[0]}┘\n…"
        if not printed.startswith(("|", "#")):
            printed = f"```text\n$ alexnet2012 {command}\n{printed}\n```"
        return f"<!-- made by: alexnet2012 {found[1]} -->\n{printed}\n<!-- end -->"

    return MADE.sub(part, text)


def run(words: list[str]) -> str:
    command = [sys.executable, "-m", "alexnet2012", *words]
    env = {**os.environ, "COLUMNS": COLUMNS}
    return subprocess.run(command, cwd=ROOT, env=env, check=True, stdout=-1, text=True).stdout


if __name__ == "__main__":
    for page in map(Path, sys.argv[1:]) if sys.argv[1:] else pages():
        page.write_text(written(page.read_text("utf-8"), run), "utf-8")
