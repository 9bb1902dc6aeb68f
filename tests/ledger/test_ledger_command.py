"""``alexnet2012 ledger DIR``: it recognises a sweep, prints its tables and verdicts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import test_relu
from test_effects import write_run

from alexnet2012.ledger.command import main
from alexnet2012.ledger.registry import all_measures
from alexnet2012.ledger.tables import claims_table, find_sweep


@pytest.fixture
def ablations(tmp_path: Path) -> Path:
    for seed in range(3):
        write_run(tmp_path, "none", seed, 40.0 + 0.1 * seed)
        write_run(tmp_path, "no_lrn", seed, 42.0 + 0.1 * seed)
    return tmp_path


@pytest.fixture
def activations(tmp_path: Path) -> Path:
    for activation, epochs in (("relu", 5), ("tanh", 20)):
        for seed in range(3):
            run_dir = tmp_path / activation / "0.01" / str(seed)
            test_relu.write_run(run_dir, activation, 0.01, seed, test_relu.falling(epochs))
    return tmp_path


def pretraining(root: Path) -> Path:
    for seed in range(3):
        errors = {"none": 50.0, "few_classes_equal_steps": 40.0, "pretrained_other": 35.0}
        for ablation, top1 in errors.items():
            write_run(root, ablation, seed, top1 + 0.1 * seed)
    return root


def test_a_sweep_of_ablations_is_recognised_and_its_claims_have_verdicts(
    ablations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_sweep(ablations).part == "ablations"
    main([str(ablations)])
    printed = capsys.readouterr().out
    assert "ablation minus none" in printed
    assert "training error without augmentation and dropout: not evaluated" in printed
    assert "claimed: +1.40; size inside: no; seeds: 3; power: " in printed
    assert "recipe code145, width 0.125, 64 pixels, 6 epochs" in printed
    assert "supported in direction" in printed


def test_activations_and_pretraining_are_recognised(
    activations: Path, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    assert find_sweep(activations).part == "relu"
    main([str(activations)])
    printed = capsys.readouterr().out
    assert "epochs to 25% training error, by seed" in printed
    assert "4.0 × (95% 4.0 to 4.0)" in printed
    root = pretraining(tmp_path_factory.mktemp("pretraining"))
    assert find_sweep(root).part == "pretrain"
    main([str(root)])
    printed = capsys.readouterr().out
    assert "without pretraining +5.00 (+4.8 to +5.2)" in printed
    assert "supported in direction (claimed: +1.70; size inside: no; seeds: 3; " in printed


def test_measurements_are_printed_as_json(
    ablations: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main([str(ablations), "--json"])
    (lrn,) = json.loads(capsys.readouterr().out)
    assert (lrn["claim"], lrn["n_seeds"]) == ("lrn", 3)
    assert lrn["estimates"][0]["claimed"] == 1.4


def test_checkpoints_are_evaluated_only_where_all_baseline_runs_have_them(ablations: Path) -> None:
    assert not find_sweep(ablations).checkpoints
    for seed in range(3):
        (ablations / "none" / str(seed) / "checkpoints").mkdir()
    assert find_sweep(ablations).checkpoints


def test_every_claim_is_in_the_table() -> None:
    table = claims_table()
    assert all(f"`{claim}`" in table for entry in all_measures() for claim in entry.claims)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "DIR=: is missing; give the directory of a sweep"),
        (["nowhere"], "DIR=nowhere: does not exist; give a sweep's directory"),
        (["."], "DIR=.: contains no finished runs; give a sweep's directory"),
    ],
)
def test_a_directory_without_runs_is_answered_in_one_line(
    words: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
