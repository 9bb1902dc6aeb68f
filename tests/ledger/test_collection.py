"""Several reproductions together: the README's table of claims, and the page of results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale, load_claims
from alexnet2012.ledger.report.collection import MOST_ROWS, overview_table, results_page
from alexnet2012.ledger.results import Reproduction, save_reproduction
from alexnet2012.ledger.statistics import Design, Estimate
from alexnet2012.report import _report as report

HOW: dict[str, Any] = {"command": "…", "caveat": "tiny"}


def effect(
    claim: str, points: float, *, claimed: float = 1.4, scale: Scale = Scale.reduced
) -> Measurement:
    """Of 8 seeds against 24, with an interval of about 0.2 points on both sides."""
    estimate = Estimate(claim, "top1_error_pct", points, Design(8, 0.2, 24, 0.2), claimed=claimed)
    return Measurement(claim, f"{claim}: …", scale, n_seeds=8, estimates=(estimate,), **HOW)


def of(*measurements: Measurement) -> Reproduction:
    return {"measurements": [m.to_json() for m in measurements], "provenance": {"commit": "abc"}}


def rows(*reproductions: Reproduction) -> list[list[str]]:
    lines = overview_table(reproductions).splitlines()
    return [line[2:-2].split(" | ") for line in lines[2:]]


def test_every_claim_is_in_the_table_once() -> None:
    size = Measurement("size", "60 M", Scale.exact, "…", agrees=True)
    table = rows(of(size, effect("lrn", 1.2)), of(effect("lrn", 9), effect("overlap", -3)))
    alone = [row[0] for row in table if row[2]]
    named = [name for row in table for name in re.findall(r"`([\w-]+)`", row[0])]
    assert alone == ["Local response normalisation", "Overlapping pools"]
    assert sorted([*named, "lrn", "overlap"]) == sorted(claim.id for claim in load_claims())
    assert ["1 claim: `size`", "", "", "agrees", "settled"] in table


def test_a_row_says_what_was_claimed_and_measured_and_what_would_settle_it() -> None:
    (lrn, overlap, *_) = rows(of(effect("lrn", 1.2), effect("overlap", 0.05, claimed=0.1)))
    title, claimed, measured, verdict, settles = lrn
    assert (title, claimed) == ("Local response normalisation", "+1.40 points")
    assert re.fullmatch(r"\+1\.20 \(\+1\.\d to \+1\.\d\) points", measured)
    assert (verdict, settles) == ("supported in direction", "full scale")
    assert overlap[3] == "inconclusive"
    assert re.fullmatch(r"\d+ seeds \(power \d+%\)", overlap[4])


def test_the_best_measurement_of_a_claim_is_shown() -> None:
    old = Measurement("lrn", "old", Scale.reduced, n_seeds=8, agrees=True, **HOW)
    new, full = effect("lrn", 1.2), effect("lrn", 3, scale=Scale.full)
    photographs = new.on_stand_in()
    for others in ((old, new), (photographs, new), (new, old), (new, photographs)):
        assert rows(*map(of, others))[0][2].startswith("+1.20")
    assert rows(of(new), of(full))[0][2].startswith("+3.00")
    assert rows(of(old))[0][0] == "1 claim: `lrn`"
    earlier, later = of(effect("lrn", 1.2)), of(effect("lrn", 1.3))
    earlier["provenance"]["date"], later["provenance"]["date"] = "2026-11-26", "2026-12-01"
    for pair in ((earlier, later), (later, earlier)):
        assert rows(*pair)[0][2].startswith("+1.30")


def test_the_table_stays_short_and_names_the_claims_that_it_leaves_out() -> None:
    names = [claim.id for claim in load_claims() if claim.effect is not None]
    assert len(names) > MOST_ROWS
    table = rows(of(*(effect(name, 1.4) for name in names)))
    assert sum(bool(row[2]) for row in table) == MOST_ROWS
    assert len(table) <= MOST_ROWS + 6
    (others,) = (row for row in table if row[3] == "supported" and not row[2])
    assert others[0].startswith(f"{len(names) - MOST_ROWS} claims: `")


def test_the_page_says_what_ran_where() -> None:
    made = of(effect("lrn", 1.2))
    made["provenance"] = {
        "commit": "abc", "dirty": True, "date": "2026-01-01", "cpu": "EPYC", "cores": 2,
        "gpu": None, "torch": "2.13", "seeds": [0, 1], "command": "reproduce x",
        "data_description": "Ten classes.", "extra": {"Ablations ran at": "abd"},
    }  # fmt: skip
    page = results_page({"mine": made}, "../results")
    assert page.startswith("### mine\n\nTen classes. Measured on 2026-01-01 at commit `abc` with ")
    assert "uncommitted changes, with torch 2.13 on EPYC, 2 cores, no GPU; seeds 0, 1. " in page
    assert "Ablations ran at commit `abd`." in page
    assert (
        "[Report](../results/mine/report.html).\n\n```text\nreproduce x\n```\n\n| claim |" in page
    )
    nothing = results_page({"mine": {"measurements": []}}, "..")
    assert nothing.endswith("No claim was measured with several seeds.")


def test_the_command_takes_a_folder_of_reproductions(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = of(effect("lrn", 1.2))
    for name in ("b", "a"):
        save_reproduction(made, tmp_path / name)
    report([str(tmp_path), "--claims"])
    assert capsys.readouterr().out.strip() == overview_table([made])
    report([str(tmp_path), "--page"])
    assert re.findall("^### (.+)", capsys.readouterr().out, re.MULTILINE) == ["a", "b"]
    for words in ([], ["--table"]):
        with pytest.raises(ConfigError, match="holds several reproductions; give one"):
            report([str(tmp_path), *words])
    (tmp_path / "b" / "reproduction.json").write_text("{")
    with pytest.raises(ConfigError, match="b: is damaged"):
        report([str(tmp_path), "--claims"])
