"""Effects of ablations: all seeds of an ablation against all of the baseline."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from made import made_sweep
from omegaconf import OmegaConf

from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger import command
from alexnet2012.ledger.claims import Scale, ablations_of, effect_claims
from alexnet2012.ledger.evidence import Result
from alexnet2012.ledger.measurements.ablations import (
    BASELINE,
    ablation_chart,
    describe,
    effect_measurements,
    effect_table,
    effects,
    errors_of_baseline,
    learning_curves,
    read_sweep,
)
from alexnet2012.ledger.verdicts import Verdict, verdicts

ABLATIONS = ablations_of("ablations")
SEEDS = range(5)


@cache
def settings(ablation: str) -> dict[str, Any]:
    words = ["experiment=ablations/quick", f"ablation={ablation}"]
    return to_plain(compose_config("train", TrainConfig, words)[0])


def write_run(
    root: Path, ablation: str, seed: int, top1: float, train: float = 20.0, **changed: Any
) -> None:
    run_dir = root / ablation / str(seed)
    run_dir.mkdir(parents=True)
    known = ablation if ablation in ("no_lrn", "one_gpu", "tanh") else BASELINE
    values = {**settings(known), "seed": seed, **changed}
    OmegaConf.save(OmegaConf.create(values), run_dir / "config.yaml")
    summary = {"top1_error_pct": top1, "top5_error_pct": top1 / 2}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    record = {"kind": "epoch", "step": 9, "epoch": 1, "loss": 1.0, "train_error_pct": train}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def result(seed: int, top1: float, train: float) -> Result:
    errors = {"top1_error_pct": top1, "top5_error_pct": top1 / 2, "train_error_pct": train}
    return Result({"seed": seed}, errors)


def sweep(shift: dict[str, float], noise: float = 0.1) -> dict[str, dict[int, Result]]:
    """Runs with a shift per ablation and a little noise."""
    draw = random.Random(0)
    runs: dict[str, dict[int, Result]] = {ablation: {} for ablation in (BASELINE, *ABLATIONS)}
    for seed in SEEDS:
        for ablation, results in runs.items():
            moved = 40 + shift.get(ablation, 0.0)
            results[seed] = result(seed, moved + draw.gauss(0, noise), moved + draw.gauss(0, noise))
    return runs


def test_a_learning_curve_is_the_mean_over_seeds() -> None:
    runs = {BASELINE: {s: Result({}, {}, train_errors=(60.0 + s, 40.0 - s)) for s in (0, 2)}}
    assert learning_curves(runs) == {BASELINE: [61.0, 39.0]}


def verdicts_of(runs: dict[str, dict[int, Result]]) -> dict[str, Verdict]:
    measurements = effect_measurements(runs, Scale.reduced, "…", "tiny")
    return {claim: verdict for claim, (verdict, _) in verdicts(measurements).items()}


CLAIMS = {claim.id for claim in effect_claims("ablations")}


def test_every_ablation_of_a_claim_has_a_config_file() -> None:
    conf = Path(__file__).parents[2] / "conf" / "ablation"
    assert {f"{ablation}.yaml" for ablation in ABLATIONS} <= {file.name for file in conf.iterdir()}
    of_sections_3_to_7 = (
        "two-gpu lrn overlap augment lighting dropout decay decay-regulariser depth"
    )
    of_sections_3_to_7 += (
        " crosslinks crosslinks-wide overlap-overfit augment-overfit dropout-overfit"
    )
    assert set(of_sections_3_to_7.split()) == CLAIMS
    assert len(ABLATIONS) == len(set(ABLATIONS))  # a sweep trains each once


def test_noise_alone_supports_almost_nothing() -> None:
    supported = 0
    for number in range(100):
        draw = random.Random(number)
        runs = {
            ablation: {seed: result(seed, draw.gauss(90, 3), draw.gauss(90, 3)) for seed in SEEDS}
            for ablation in (BASELINE, *ABLATIONS)
        }
        found = verdicts_of(runs).values()
        supported += Verdict.supported in found or Verdict.in_direction in found
    # Of families of claims without any effect, half of 5% have one on the claimed side.
    assert supported <= 9


def test_the_four_layer_network_has_its_own_claim() -> None:
    ablation, overlap = ablations_of("lrn_cifar10")
    assert overlap == "pool_2x2_cifar10"
    runs = {ablation: {s: result(s, 13.0 + s, 9) for s in SEEDS}}
    runs[BASELINE] = {s: result(s, 11.0 + s, 9) for s in SEEDS}
    (measured,) = effect_measurements(runs, Scale.reduced, "…", "tiny")
    assert measured.claim == "lrn-cifar10"
    # Student's interval of two groups of five, each with a variance of 2.5.
    assert measured.value == f"{ablation}: +2.00 (-0.3 to +4.3) points top-1: 15.00 against 13.00"


def test_the_four_layer_network_loses_only_its_normalisation() -> None:
    words = ["experiment=lrn_cifar10/reduced"]
    recipe = compose_config("train", TrainConfig, words)[0].recipe
    without = compose_config("train", TrainConfig, [*words, "ablation=no_lrn_cifar10"])[0].recipe
    for conv in (recipe.conv1, recipe.conv2):
        assert conv.after.pop() is LayerOp.lrn
    assert recipe == without


def test_a_chart_starts_with_the_baseline_and_shows_means_over_seeds() -> None:
    runs = sweep({"no_lrn": 2.0})
    for results in runs.values():
        for seed, run in results.items():
            results[seed] = replace(
                run, settings=settings(BASELINE), train_errors=(50.0, 40.0 + seed)
            )
    arms = ablation_chart({"no_lrn": runs["no_lrn"], BASELINE: runs[BASELINE]}, "lrn", "LRN", "…")[
        "arms"
    ]
    assert [ablation["label"] for ablation in arms] == [BASELINE, "no_lrn"]
    assert [ablation["train_error_pct"] for ablation in arms] == [[50.0, 42.0]] * 2
    assert arms[1]["top1_error_pct"] - arms[0]["top1_error_pct"] == pytest.approx(2, abs=0.5)


def test_all_seeds_of_both_arms_count() -> None:
    runs = sweep({"no_lrn": 2.0})
    del runs["no_lrn"][0]
    runs[BASELINE] |= {seed: result(seed, 40.0, 40.0) for seed in (7, 8, 9)}
    lrn = next(e for e in effects(runs) if e["arm"] == "no_lrn")
    assert (lrn["seeds"], lrn["control_seeds"]) == ([1, 2, 3, 4], [0, 1, 2, 3, 4, 7, 8, 9])
    low, high = lrn["interval_points"] or (0, 0)
    assert 1.5 < low < 2 < high < 2.5


def test_a_single_seed_has_no_interval() -> None:
    runs = {BASELINE: {0: result(0, 40, 40)}, "no_lrn": {0: result(0, 60, 60)}}
    found = effects(runs)
    assert {effect["interval_points"] for effect in found} == {None}
    assert effect_table(found).row_count == 1
    assert verdicts_of(runs)["lrn"] is Verdict.inconclusive


def test_the_gap_is_that_of_errors_that_were_evaluated_alike() -> None:
    runs = made_sweep({"no_dropout": 2.0})
    base = runs[BASELINE].values()
    gap = sum(r.errors["gap_points"] for r in base) / len(base)
    assert gap == pytest.approx(10, abs=1)  # training images are made 10 points easier
    assert f"a gap of {gap:.2f} points" in errors_of_baseline(runs)
    rows = {e["metric"]: e for e in effects(runs) if e["arm"] == "no_dropout"}
    assert rows["gap_points"]["mean_points"] == pytest.approx(0, abs=1)  # both errors rise
    assert "not evaluated" in errors_of_baseline(sweep({}))


def test_arms_that_were_evaluated_on_other_images_are_not_compared() -> None:
    runs = made_sweep({"no_lrn": 2.0})
    other = {seed: replace(run, labels=dict.fromkeys(run.labels, "others")) for seed, run in
             runs["no_lrn"].items()}  # fmt: skip
    with pytest.raises(ConfigError, match="no_lrn and none: were evaluated on different images"):
        effects({BASELINE: runs[BASELINE], "no_lrn": other})


@pytest.mark.parametrize(
    ("ended", "caption"),
    [
        ({"steps": 60, "epochs": 6}, "6 epochs"),
        ({}, "6 epochs"),  # runs of earlier versions
        ({"steps": 3, "epochs": 0}, "stopped after 3 steps, with 0 of 6 epochs finished"),
        ({"steps": 20, "epochs": 2}, "stopped after 20 steps, with 2 of 6 epochs finished"),
    ],
)
def test_a_caption_says_how_long_the_runs_were_trained(
    tmp_path: Path, ended: dict[str, int], caption: str
) -> None:
    write_run(tmp_path, BASELINE, 0, 40.0)
    file = tmp_path / BASELINE / "0" / "summary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | ended))
    assert describe(read_sweep(tmp_path)).endswith(f", 64 pixels, {caption}")


def test_differences_of_too_few_seeds_are_printed_with_a_warning(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path, BASELINE, 0, 40.0)
    write_run(tmp_path, "no_lrn", 0, 42.0)
    command.main([str(tmp_path), "--no-evaluation"])
    printed = " ".join(capsys.readouterr().out.split())
    assert "+2.00" in printed
    assert "warning: fewer than 3 seeds of no_lrn, none: no interval can be given" in printed
    for seed in (1, 2):
        write_run(tmp_path, BASELINE, seed, 40.0)
        write_run(tmp_path, "no_lrn", seed, 42.0)
    command.main([str(tmp_path), "--no-evaluation"])
    assert "warning" not in capsys.readouterr().out


def test_runs_with_other_settings_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, BASELINE, 0, 40.0)
    schedule = {**settings(BASELINE)["schedule"], "epochs": 7}
    write_run(tmp_path, "no_lrn", 0, 41.0, schedule=schedule)
    with pytest.raises(
        ConfigError, match=r"no_lrn/0 differs from the baseline .* `schedule.epochs`"
    ):
        read_sweep(tmp_path)


def test_an_activation_and_a_mesh_may_be_ablations(tmp_path: Path) -> None:
    for ablation in (BASELINE, "tanh", "one_gpu"):
        write_run(tmp_path, ablation, 0, 40.0)
    assert read_sweep(tmp_path).keys() == {BASELINE, "tanh", "one_gpu"}


def test_a_sweep_without_the_baseline_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "no_lrn", 0, 40.0)
    with pytest.raises(ConfigError, match="ablation=none"):
        read_sweep(tmp_path)
