"""What is said of a claim follows from paired seeds, and from nothing else."""

from __future__ import annotations

import json
import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger.ablations import (
    BASE,
    Result,
    ablation,
    effect_measurements,
    effect_table,
    effects,
    learning_curves,
    read_sweep,
    supports,
)
from alexnet2012.ledger.claims import Scale, arms_of, load_claims

ARMS = arms_of("effects")
SEEDS = range(5)


def settings(ablation: str, seed: int) -> dict[str, Any]:
    config, _ = compose_config(
        "train", TrainConfig, ["experiment=effects/quick", f"ablation={ablation}", f"seed={seed}"]
    )
    return to_plain(config)


SETTINGS = {arm: settings(arm, 0) for arm in (BASE, "no_lrn", "one_gpu", "tanh")}


def write_run(
    root: Path, arm: str, seed: int, top1: float, train: float = 20.0, **changed: Any
) -> None:
    run_dir = root / arm / str(seed)
    run_dir.mkdir(parents=True)
    values = {**SETTINGS.get(arm, SETTINGS[BASE]), "seed": seed, **changed}
    OmegaConf.save(OmegaConf.create(values), run_dir / "config.yaml")
    summary = {"top1_error_pct": top1, "top5_error_pct": top1 / 2}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    record = {"kind": "epoch", "step": 9, "epoch": 1, "loss": 1.0, "train_error_pct": train}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")


def result(seed: int, top1: float, train: float) -> Result:
    errors = {"top1_error_pct": top1, "top5_error_pct": top1 / 2, "train_error_pct": train}
    return Result({"seed": seed}, errors)


def sweep(shift: dict[str, float], noise: float = 0.1) -> dict[str, dict[int, Result]]:
    """Runs whose seeds move all arms alike, and each arm by its shift and a little noise."""
    draw = random.Random(0)
    runs: dict[str, dict[int, Result]] = {arm: {} for arm in (BASE, *ARMS)}
    for seed in SEEDS:
        luck = draw.uniform(-10, 10)  # what pairing takes out
        for arm, results in runs.items():
            moved = 40 + luck + shift.get(arm, 0.0)
            results[seed] = result(seed, moved + draw.gauss(0, noise), moved + draw.gauss(0, noise))
    return runs


def test_a_learning_curve_is_the_mean_over_seeds() -> None:
    runs = {BASE: {s: Result({}, {}, train_errors=(60.0 + s, 40.0 - s)) for s in (0, 2)}}
    assert learning_curves(runs) == {BASE: [61.0, 39.0]}


def said(runs: dict[str, dict[int, Result]]) -> dict[str, bool | None]:
    measurements = effect_measurements(effects(runs), Scale.reduced, "tiny", "…")
    return {m.claim: m.agrees for m in measurements}


CLAIMS = {c.id for c in load_claims() if c.effect is not None and c.effect.sweep == "effects"}


def test_every_ablation_of_a_claim_is_there() -> None:
    conf = Path(__file__).parents[2] / "conf" / "ablation"
    assert {f"{arm}.yaml" for arm in ARMS} <= {file.name for file in conf.iterdir()}
    of_sections_3_to_7 = "two-gpu lrn overlap augment lighting dropout decay depth crosslinks"
    assert set(of_sections_3_to_7.split()) == CLAIMS


def test_what_costs_in_every_seed_is_supported() -> None:
    assert said(sweep(dict.fromkeys(ARMS, 1.0))) == dict.fromkeys(CLAIMS, True)


def test_what_helps_in_every_seed_contradicts() -> None:
    assert said(sweep(dict.fromkeys(ARMS, -1.0))) == dict.fromkeys(CLAIMS, False)


def test_noise_alone_supports_almost_nothing() -> None:
    supported = 0
    for number in range(100):
        draw = random.Random(number)
        runs = {
            arm: {seed: result(seed, draw.gauss(90, 3), draw.gauss(90, 3)) for seed in SEEDS}
            for arm in (BASE, *ARMS)
        }
        supported += sum(agrees is True for agrees in said(runs).values())
    # Of claims without any effect 95% intervals support 1 in 40: 22 of 900, give or take 5.
    assert supported < 22 + 4 * 5


def test_the_four_layer_net_has_a_claim_of_its_own() -> None:
    (arm,) = arms_of("lrn_cifar10")
    runs = {arm: {s: result(s, 13.0 + s, 9) for s in SEEDS}}
    runs[BASE] = {s: result(s, 11.0 + s, 9) for s in SEEDS}
    (measured,) = effect_measurements(effects(runs), Scale.reduced, "tiny", "…")
    assert (measured.claim, measured.agrees) == ("lrn-cifar10", True)
    assert measured.value == f"{arm}: +2.00 (+2.0 to +2.0) points top-1: 15.00 against 13.00"


def test_the_four_layer_net_loses_its_normalisation_and_nothing_else() -> None:
    words = ["experiment=lrn_cifar10/reduced"]
    recipe = compose_config("train", TrainConfig, words)[0].recipe
    without = compose_config("train", TrainConfig, [*words, "ablation=no_lrn_cifar10"])[0].recipe
    for conv in (recipe.conv1, recipe.conv2):
        assert conv.after.pop() is LayerOp.lrn
    assert recipe == without


def test_a_comparison_shows_the_whole_first_and_the_means_at_the_end() -> None:
    runs = sweep({"no_lrn": 2.0})
    for results in runs.values():
        for seed, run in results.items():
            results[seed] = replace(run, settings=SETTINGS[BASE], train_errors=(50.0, 40.0 + seed))
    arms = ablation({"no_lrn": runs["no_lrn"], BASE: runs[BASE]}, "lrn", "LRN", "…")["arms"]
    assert [arm["label"] for arm in arms] == [BASE, "no_lrn"]
    assert [arm["train_error_pct"] for arm in arms] == [[50.0, 42.0]] * 2
    assert arms[1]["top1_error_pct"] - arms[0]["top1_error_pct"] == pytest.approx(2, abs=0.5)


def test_one_layer_that_can_be_spared_is_enough_to_doubt_depth() -> None:
    shift = {**dict.fromkeys(ARMS, 1.0), "no_conv4": 0.0}
    assert said(sweep(shift))["depth"] is None
    assert said(sweep({**shift, "no_conv4": -2.0}))["depth"] is False


def test_seeds_are_paired_and_unpaired_ones_left_out() -> None:
    runs = sweep({"no_lrn": 2.0})
    runs["no_lrn"][7] = result(7, 99.0, 99.0)
    lrn = next(e for e in effects(runs) if e["arm"] == "no_lrn")
    assert lrn["seeds"] == list(SEEDS)
    low, high = lrn["interval_points"] or (0, 0)
    assert 1 < low < 2 < high < 3  # although the seeds themselves are ten points apart


def test_a_single_seed_says_nothing() -> None:
    runs = {BASE: {0: result(0, 40, 40)}, "no_lrn": {0: result(0, 60, 60)}}
    found = effects(runs)
    assert [supports(effect) for effect in found] == [None] * 3
    assert {effect["interval_points"] for effect in found} == {None}
    assert effect_table(found).row_count == 1


def test_runs_of_other_settings_are_not_compared(tmp_path: Path) -> None:
    write_run(tmp_path, BASE, 0, 40.0)
    schedule = {**SETTINGS[BASE]["schedule"], "epochs": 7}
    write_run(tmp_path, "no_lrn", 0, 41.0, schedule=schedule)
    with pytest.raises(ConfigError, match=r"no_lrn/0 has other settings of `schedule.epochs`"):
        read_sweep(tmp_path)


def test_an_activation_and_another_mesh_are_ablations(tmp_path: Path) -> None:
    for arm in (BASE, "tanh", "one_gpu"):
        write_run(tmp_path, arm, 0, 40.0)
    assert read_sweep(tmp_path).keys() == {BASE, "tanh", "one_gpu"}


def test_a_sweep_without_its_base_is_refused(tmp_path: Path) -> None:
    write_run(tmp_path, "no_lrn", 0, 40.0)
    with pytest.raises(ConfigError, match="ablation=none"):
        read_sweep(tmp_path)
