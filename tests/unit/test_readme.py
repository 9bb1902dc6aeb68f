"""The numbers of the README are those of files that a command wrote."""

from __future__ import annotations

import json
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


def test_the_readme_is_as_fast_as_was_measured() -> None:
    result = ROOT / "benchmarks" / "results" / "full_step.json"
    rows = {r["arm"]: r for r in json.loads(result.read_text(encoding="utf-8"))["rows"]}
    fp32, bf16 = (rows[f"ours, 2 processes, {precision}"] for precision in ("fp32", "bf16"))
    words = " ".join((ROOT / "README.md").read_text(encoding="utf-8").split())
    assert f"at {fp32['ratio_to_plain']:.1f} times the images/s" in words
    assert f"at {bf16['ratio_to_plain']:.1f} times in bf16" in words
    assert f"{fp32['of_limit_pct']:.0f}% and {bf16['of_limit_pct']:.0f}% of what matrix" in words
