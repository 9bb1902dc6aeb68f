"""Results of benchmarks: what counts as slower, and the page that shows them."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from documented import printed

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
sys.path.insert(0, str(BENCHMARKS))
import arms  # noqa: E402
import full_step  # noqa: E402
import page  # noqa: E402
import record  # noqa: E402
from compare import changes  # noqa: E402

BEFORE: dict[str, Any] = {
    "question": "speed",
    "rows": [
        {"arm": "ours", "images_per_s": 50.0, "ratio_to_plain": 2.0, "ratio_range": [1.9, 2.1]},
        {"arm": "plain", "images_per_s": 25.0, "ratio_to_plain": 1.0, "ratio_range": [1.0, 1.0]},
    ],
}


def with_ratio(ratio: float, low: float, high: float) -> dict[str, Any]:
    after = copy.deepcopy(BEFORE)
    after["rows"][0].update(ratio_to_plain=ratio, ratio_range=[low, high], images_per_s=1.0)
    return after


@pytest.mark.parametrize(
    ("after", "slower"),
    [
        (with_ratio(2.0, 1.9, 2.1), False),  # fewer images/s: another machine
        (with_ratio(1.7, 1.6, 1.8), True),
        (with_ratio(1.7, 1.5, 2.0), False),  # its rounds reach into those before
        (with_ratio(1.85, 1.84, 1.86), False),  # less than a tenth
        (with_ratio(3.0, 2.9, 3.1), False),
    ],
)
def test_only_a_ratio_that_fell_out_of_its_range_is_a_regression(
    after: dict[str, Any], slower: bool
) -> None:
    assert [change.regression for change in changes(BEFORE, after, 0.1)] == [slower, False]


def test_other_questions_are_not_compared() -> None:
    with pytest.raises(ValueError, match="different benchmarks"):
        changes(BEFORE, {**BEFORE, "question": "memory"}, 0.1)
    with pytest.raises(ValueError, match="no ratio"):
        changes(BEFORE, {"question": "speed", "rows": []}, 0.1)


def test_the_command_fails_on_a_regression_and_names_what_it_cannot_read(tmp_path: Path) -> None:
    files = tmp_path / "before.json", tmp_path / "after.json"
    for file, result in zip(files, (BEFORE, with_ratio(1.5, 1.4, 1.6)), strict=True):
        file.write_text(json.dumps(result), encoding="utf-8")

    def run(*words: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, BENCHMARKS / "compare.py", *words]
        return subprocess.run(command, capture_output=True, text=True, check=False)

    slower = run(*map(str, files))
    assert slower.returncode == 1
    assert "slower" in slower.stdout
    assert run(str(files[0]), str(files[0])).returncode == 0
    missing = run(str(files[0]), "gone.json")
    assert missing.returncode == 1
    assert "gone.json" in missing.stderr


def test_every_kept_result_can_be_read_for_its_ratios() -> None:
    kept = [json.loads(p.read_text(encoding="utf-8")) for p in BENCHMARKS.glob("results/*.json")]
    with_ratios = [r for r in kept if any("ratio_range" in row for row in r.get("rows", []))]
    assert len(with_ratios) > 2
    for result in with_ratios:
        if any(k.startswith(("ratio_to", "times_")) for row in result["rows"] for k in row):
            assert not any(change.regression for change in changes(result, result, 0.1))


def test_the_page_is_what_the_results_say() -> None:
    assert page.PAGE.read_text(encoding="utf-8") == page.page()


def test_the_page_has_each_cell_where_it_was_printed() -> None:
    result = {
        "question": "speed",
        "command": "python benchmarks/speed.py",
        "commit": "abc",
        "machine": {"processor": "CPU", "cores": 2},
        "load_before": 3.0,
        "versions": {"torch": "2.13"},
        "tables": [{"title": "Steps", "headings": ["", "ms"], "cells": [["a|b", "1.0"]]}],
    }
    text = page.section(result)
    assert "| a\\|b | 1.0 |" in text
    assert "load 3.0 before" in text


@pytest.mark.usefixtures("launched_soon")
def test_the_step_is_timed_on_this_machine_whatever_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arm = arms.Arm(arms.OURS, 2, "bf16")
    if arm not in arms.arms():  # one GPU holds one process
        arm = arms.Arm(arms.OURS, 1, "bf16")
    some = [arm, arm._replace(kind=arms.NO_EXCHANGES)]  # two of a dozen
    monkeypatch.setattr(full_step, "arms", lambda: some)
    monkeypatch.setattr(record, "__file__", str(tmp_path / "record.py"))
    _, *words = printed("python benchmarks/full_step.py")
    monkeypatch.setattr(sys, "argv", [*words, "batch=2", "steps=2", "rounds=1"])
    full_step.main()
    found = json.loads((tmp_path / "results" / "full_step.json").read_text(encoding="utf-8"))
    for row in found["rows"]:
        assert row["images_per_s"] > 0
        assert row["of_limit_pct"] > 0
    (exchanges,) = found["exchanges"]
    assert (exchanges["exchange_pct"] > 0) == (arm.processes > 1)
