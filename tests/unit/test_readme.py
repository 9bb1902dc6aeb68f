"""The numbers of the README are those of files that a command wrote."""

from __future__ import annotations

from pathlib import Path

from alexnet2012.findings import load_reproduction
from alexnet2012.report import claims_table, summary_table

ROOT = Path(__file__).parents[2]


def test_the_readme_shows_the_numbers_of_the_kept_reproduction() -> None:
    table = summary_table(load_reproduction(ROOT / "results" / "photos"))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_shows_what_several_seeds_said() -> None:
    table = claims_table(load_reproduction(ROOT / "results" / "imagenette"))
    assert table in (ROOT / "README.md").read_text(encoding="utf-8")
