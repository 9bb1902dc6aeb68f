"""The authors' own runs: their spread, and their comparisons in units of it."""

from __future__ import annotations

import re
import tarfile
from dataclasses import replace
from pathlib import Path
from statistics import stdev

import pytest
from programs import REPOSITORY

from alexnet2012.ledger.authors_runs import (
    authors_rows,
    authors_table,
    difference,
    load_authors_runs,
    ten_view_gain,
    top1_spread,
)
from alexnet2012.ledger.command import main

DEFINITIONS = REPOSITORY.parent / "shared/data/cuda-convnet-definitions.tar.gz"
RUNS = {run.run: run for run in load_authors_runs()}


def test_ten_runs_of_the_papers_definition_have_a_standard_deviation_of_a_quarter_point() -> None:
    spread = top1_spread(load_authors_runs())
    assert (spread.n, round(spread.mean, 2), round(spread.sd, 2)) == (10, 40.73, 0.25)
    assert round(spread.sd_of_difference, 2) == 0.35


def test_a_run_whose_first_layer_was_not_frozen_is_no_repeat_and_would_widen_the_spread() -> None:
    with_it = [*load_authors_runs(), replace(RUNS["160"], repeat=True)]
    assert not RUNS["160"].repeat
    assert round(top1_spread(with_it).sd, 2) == 0.30


@pytest.mark.parametrize(
    ("run", "points", "in_sds"),
    [
        ("147", 0.39, 1.1),
        ("150", 1.16, 3.3),
        ("148", 1.37, 3.9),
        ("145-half", 1.70, 4.9),
        ("167", -0.18, -0.5),
    ],
)
def test_the_authors_comparisons_in_units_of_their_own_spread(
    run: str, points: float, in_sds: float
) -> None:
    runs = load_authors_runs()
    found = difference(RUNS[run], runs)
    assert found == pytest.approx(points, abs=0.005)
    assert found / top1_spread(runs).sd_of_difference == pytest.approx(in_sds, abs=0.05)


def test_ten_views_gain_nearly_two_points_in_the_repeats() -> None:
    gain = ten_view_gain(load_authors_runs())
    assert (gain.n, round(gain.mean, 2), round(gain.sd, 2)) == (9, 1.94, 0.11)


def test_a_changed_error_changes_the_table() -> None:
    runs = [replace(run, top1=run.top1 + (run.run == "145")) for run in load_authors_runs()]
    assert top1_spread(runs).sd == stdev(run.top1 for run in runs if run.repeat)
    assert top1_spread(runs) != top1_spread(load_authors_runs())
    assert difference(RUNS["150"], runs) == pytest.approx(0.164)


def test_each_run_is_compared_with_a_run_on_the_same_images() -> None:
    for run in load_authors_runs():
        assert run.against is None or RUNS[run.against].images == run.images, run.run


def test_the_command_prints_every_run(capsys: pytest.CaptureFixture[str]) -> None:
    main(["--authors-runs"])
    printed = capsys.readouterr().out
    assert printed.strip() == authors_table()
    assert all(f"| {row['run']} |" in printed for row in authors_rows())


@pytest.mark.skipif(not DEFINITIONS.exists(), reason="needs the definitions of the 2012 code")
def test_errors_are_those_of_the_run_notes() -> None:
    with tarfile.open(DEFINITIONS) as archive:
        names = {Path(name).name: name for name in archive.getnames() if "layers/" in name}
        for run in load_authors_runs():
            file = archive.extractfile(names[run.file])
            assert file is not None
            notes = [line for line in file.read().decode().splitlines() if line.startswith("#")]
            errors = {tuple(re.findall(r"0\.\d{6}", line)) for line in notes}
            assert (f"{run.top1 / 100:.6f}", f"{run.top5 / 100:.6f}") in errors, run.run
            if run.one_view is not None:
                top1 = {found[0] for found in errors if found}
                assert any(abs(float(x) - run.one_view / 100) < 1e-6 for x in top1), run.run
