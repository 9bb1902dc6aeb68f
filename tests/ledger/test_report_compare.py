"""Comparison of two reproductions."""

from __future__ import annotations

from pathlib import Path

import pytest
from programs import REPOSITORY

from alexnet2012.ledger.claims import Measurement, Scale, load_claims
from alexnet2012.ledger.report.compare import compare, comparison_tables, different_conditions
from alexnet2012.ledger.results import Reproduction, save_reproduction
from alexnet2012.report import main
from alexnet2012.tracking.run_compare import Comparison


def made(
    value: str | None, interval: tuple[float, float] | None = None, **provenance: object
) -> Reproduction:
    measurement = (
        []
        if value is None
        else [
            Measurement(
                "relu", value, Scale.reduced, "…", caveat="tiny", interval=interval
            ).to_json()
        ]
    )
    return {"measurements": measurement, "provenance": provenance}  # type: ignore[typeddict-item]


@pytest.mark.parametrize(
    ("first", "second", "outcome"),
    [
        (made("2 ×"), made("2 ×"), Comparison.same),
        (made("2 ×"), made("3 ×"), Comparison.other),
        (made("2 ×", (1, 3)), made("3 ×", (2, 4)), Comparison.overlap),
        (made("2 ×", (1, 2)), made("4 ×", (3, 5)), Comparison.apart),
        (made("4 ×", (3, 5)), made("2 ×", (1, 2)), Comparison.apart),
        (made("2 ×", (1, 2)), made("4 ×"), Comparison.other),
        (made("2 ×"), made(None), Comparison.one),
        (made(None), made(None), Comparison.neither),
    ],
)
def test_two_measurements_of_a_claim(
    first: Reproduction, second: Reproduction, outcome: Comparison
) -> None:
    rows = compare(first, second)
    assert len(rows) == len(load_claims())
    assert {row.claim: row.outcome for row in rows}["relu"] is outcome
    assert all(row.outcome is Comparison.neither for row in rows if row.claim != "relu")


def test_only_conditions_that_differ_are_listed() -> None:
    first, second = made("2 ×", commit="abc", seeds=[0, 1]), made("2 ×", commit="abd", seeds=[0, 1])
    assert different_conditions(first["provenance"], second["provenance"]) == [
        ("commit", "abc", "abd")
    ]
    assert len(comparison_tables(("A", "B"), first, first)) == 1


def test_the_command_prints_both_and_refuses_a_directory_without_a_reproduction(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (("one", "2 × [bold]"), ("two", "3 ×")):
        save_reproduction(made(value, cpu=name), tmp_path / name)
    words = ["report", "compare", str(tmp_path / "one"), str(tmp_path / "two")]
    monkeypatch.setattr("sys.argv", words)
    main()
    printed = capsys.readouterr().out
    assert "2 × [bold]" in printed  # not markup
    assert "different value" in printed
    monkeypatch.setattr("sys.argv", [*words[:3], str(tmp_path / "none")])
    with pytest.raises(SystemExit):
        main()
    assert "contains no reproduction.json" in capsys.readouterr().err


def test_the_table_of_an_incomplete_reproduction_is_refused_in_one_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["report", str(REPOSITORY / "results/imagenette"), "--table"])
    with pytest.raises(SystemExit):
        main()
    printed = capsys.readouterr().err
    assert "parts=not all: needs the parts audit, exactness, full_size and reduced" in printed
