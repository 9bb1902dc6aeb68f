"""``alexnet2012 ledger verify``: verdicts are recomputed from the errors of runs on images."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pytest
from made import made_sweep

from alexnet2012.ledger.claims import How, Measurement, Scale
from alexnet2012.ledger.command import main
from alexnet2012.ledger.evidence import Evidence, Sweep, load_evidence, save_evidence
from alexnet2012.ledger.measurements.ablations import effect_measurements
from alexnet2012.ledger.measurements.ensembles import (
    ENSEMBLE,
    ONE_VIEW,
    TEN_VIEWS,
    seed_measurements,
)
from alexnet2012.ledger.registry import Measure
from alexnet2012.ledger.results import save_reproduction
from alexnet2012.ledger.verify import verify
from alexnet2012.training.image_errors import UNITS

HOW = (Scale.reduced, "make reproduce", "tiny")


def views() -> Sweep:
    """Ten views are better than one, and five networks together better than each."""
    arms = made_sweep({ONE_VIEW: 2.0, TEN_VIEWS: 0.0, ENSEMBLE: -3.0}, seeds=15)
    arms[ENSEMBLE] = {seed: arms[ENSEMBLE][seed] for seed in (0, 5, 10)}
    del arms["none"]
    return arms


@pytest.fixture
def reproduced(tmp_path: Path) -> Path:
    """A ledger with its evidence."""
    runs, of_views = made_sweep({"no_lrn": 1.4, "no_dropout": 3.0}), views()
    measurements = effect_measurements(runs, *HOW) + seed_measurements(of_views, *HOW)
    rows = [m.to_json() for m in measurements]
    save_reproduction({"measurements": rows}, tmp_path)
    save_evidence(Evidence({"ablations": runs, "views": of_views}, {}), tmp_path)
    return tmp_path


def change_images(directory: Path, change: Callable[[dict[str, np.ndarray]], None]) -> None:
    file = directory / "evidence.npz"
    with np.load(file) as saved:
        arrays = dict(saved)
    change(arrays)
    np.savez_compressed(file, **arrays)


def test_the_evidence_of_a_ledger_gives_it_again(
    reproduced: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = verify(reproduced)
    assert found.differences == []
    assert set(found.claims) == {"lrn", "dropout", "dropout-overfit", "lsvrc2010-1crop", "table2"}
    main(["verify", str(reproduced)])
    assert "recomputed from " in capsys.readouterr().out


def test_one_image_changes_the_ledger(reproduced: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def one_hit(arrays: dict[str, np.ndarray]) -> None:
        errors = arrays["ablations/no_lrn/top1"]
        errors[2, 7] = UNITS - errors[2, 7]

    change_images(reproduced, one_hit)
    with pytest.raises(SystemExit) as ended:
        main(["verify", str(reproduced)])
    assert ended.value.code == 1
    printed = capsys.readouterr()
    assert "lrn: measured.interval.0: " in printed.out
    assert "lrn: measured.estimates.0.mean: " in printed.out
    assert "ablations/no_lrn/2: errors.top1_error_pct: " in printed.out
    assert "dropout: measured" not in printed.out  # only its adjusted p may change
    assert "values differ" in printed.err


def test_an_edited_verdict_or_interval_is_found(reproduced: Path) -> None:
    file = reproduced / "ledger.json"
    content = json.loads(file.read_text(encoding="utf-8"))
    row = next(row for row in content["rows"] if row["id"] == "dropout")
    assert row["verdict"] == "supported"
    row["verdict"] = "contradicted"
    row["measured"]["interval"][1] += 0.1
    file.write_text(json.dumps(content), encoding="utf-8")
    found = {(d.claim, d.value): d.recomputed for d in verify(reproduced).differences}
    assert found.keys() == {("dropout", "verdict"), ("dropout", "measured.interval.1")}
    assert found["dropout", "verdict"] == "supported"


def test_a_verdict_without_evidence_is_named(reproduced: Path) -> None:
    evidence = load_evidence(reproduced)
    save_evidence(Evidence({"ablations": evidence.sweeps["ablations"]}, {}), reproduced)
    missing = [d for d in verify(reproduced).differences if d.recomputed == "no evidence of it"]
    assert {d.claim for d in missing} == {"lsvrc2010-1crop", "table2"}


def test_a_test_of_another_kind_is_computed_again_from_its_sample(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def sign_test(sample: Mapping[str, np.ndarray], *how: How) -> Measurement:
        p = 0.5 ** len(sample["signs"])
        agrees = bool(sample["signs"].all())
        return Measurement("fig3", f"p = {p}", *how, agrees=agrees, p_value=p, sample=sample)

    entry = Measure(sign_test, ("fig3",), "none", evaluates=True, from_sample={"fig3": sign_test})
    monkeypatch.setattr("alexnet2012.ledger.registry._MEASURES", {("one", "none"): entry})
    found = sign_test({"signs": np.ones(9, bool)}, *HOW)
    save_reproduction({"measurements": [found.to_json()]}, tmp_path)
    save_evidence(Evidence({}, {"fig3": found.sample}), tmp_path)
    assert verify(tmp_path) == (["fig3"], 0, 0, [])
    change_images(tmp_path, lambda arrays: arrays["claims/fig3/signs"].__setitem__(4, False))
    changed = {d.value: d.recomputed for d in verify(tmp_path).differences}
    assert changed["verdict"] == "inconclusive"


def test_a_directory_without_evidence_is_answered_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for message in ("contains no ledger.json", "contains no evidence.json"):
        with pytest.raises(SystemExit) as ended:
            main(["verify", str(tmp_path)])
        assert ended.value.code == 2
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
        measured = Measurement("lrn", "…", *HOW).to_json()
        save_reproduction({"measurements": [measured]}, tmp_path)


def test_runs_that_were_not_committed_are_counted(tmp_path: Path) -> None:
    runs = made_sweep({"no_lrn": 1.4})
    for number, run in enumerate(runs["no_lrn"].values()):
        object.__setattr__(run, "dirty", number < 3)
    save_reproduction(
        {"measurements": [m.to_json() for m in effect_measurements(runs, *HOW)]}, tmp_path
    )
    save_evidence(Evidence({"ablations": runs}, {}), tmp_path)
    assert verify(tmp_path).dirty == 3


def test_the_evidence_of_a_large_sweep_is_small(tmp_path: Path) -> None:
    runs = made_sweep({f"arm{n}": 0.0 for n in range(3)}, images=2000)
    save_evidence(Evidence({"ablations": runs}, {}), tmp_path)
    count = sum(map(len, runs.values()))
    bits = count * 3 * 2000
    assert (tmp_path / "evidence.npz").stat().st_size < 1.6 * bits / 8
    again = load_evidence(tmp_path).sweeps["ablations"]
    assert again.keys() == runs.keys()
    assert again["arm1"][5].errors == pytest.approx(runs["arm1"][5].errors)
    assert np.array_equal(again["none"][15].images["top1"], runs["none"][15].images["top1"])
