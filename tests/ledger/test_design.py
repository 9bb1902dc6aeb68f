"""``alexnet2012 ledger design``: the power of a sweep before it runs."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from test_effects import write_run

from alexnet2012.ledger.command import main
from alexnet2012.ledger.design import Pilot, plan_sweep, read_pilot
from alexnet2012.ledger.statistics import expected_level, joint_power
from alexnet2012.ledger.sweeps import arms_of


def printed(words: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    main(["design", *words])
    return capsys.readouterr().out


def power_pct(text: str, claim: str) -> int:
    row = next(line for line in text.splitlines() if f" {claim} " in line)
    found = re.search(r"(\d+)%", row)
    assert found
    return int(found[1])


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")


def test_more_seeds_and_less_noise_give_more_power(capsys: pytest.CaptureFixture[str]) -> None:
    few = printed(["ablations/reduced", "sd=1.2", "seeds=5", "minutes=4"], capsys)
    many = printed(["ablations/reduced", "sd=1.2", "seeds=20", "minutes=4"], capsys)
    quiet = printed(["ablations/reduced", "sd=0.3", "seeds=5"], capsys)
    assert power_pct(few, "lrn") < power_pct(many, "lrn")
    assert power_pct(few, "lrn") < power_pct(quiet, "lrn")
    assert power_pct(few, "overlap") < power_pct(few, "two-gpu")  # 0.4 and 1.7 points
    arms = len(arms_of("ablations"))
    control = round(5 * arms**0.5)
    runs = 5 * arms + control
    hours = f"{runs} runs, {runs * 4 / 60:.1f} hours at 4 minutes"
    assert f"{arms} arms of 5 seeds and {control} of `none`: {hours}" in few


def test_images_limit_the_power_whatever_the_seeds(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(["ablations/reduced", "sd=0.3", "seeds=500", "image_se=1"], capsys)
    assert power_pct(text, "overlap") < 20
    assert " – " in next(line for line in text.splitlines() if " overlap " in line)


def test_a_pilot_gives_the_standard_deviations_and_minutes(tmp_path: Path) -> None:
    for seed in range(4):
        write_run(tmp_path, "none", seed, 40.0 + 2 * (seed % 2))
        write_run(tmp_path, "no_lrn", seed, 42.0 + 4 * (seed % 2))
    pilot = read_pilot(tmp_path, "ablations")
    # Variances 4/3 and 16/3 of four seeds each, pooled.
    assert pilot.seed_sd["top1_error_pct"] == pytest.approx(((4 / 3 + 16 / 3) / 2) ** 0.5)
    assert pilot.minutes == pytest.approx(0, abs=0.1)
    (lrn,) = (p for p in plan_sweep("ablations", 6, 20, pilot) if p.claim == "lrn")
    assert (lrn.designs[0].seeds, lrn.designs[0].control_seeds, lrn.size) == (6, 20, 1.4)


def test_claims_of_several_arms_need_all_of_them() -> None:
    pilot = Pilot({"top1_error_pct": 1.2, "train_error_pct": 1.2})
    planned = {p.claim: p for p in plan_sweep("ablations", 8, 24, pilot)}
    level = expected_level([(p.designs, p.size) for p in planned.values()])
    depth, one = planned["depth"], planned["depth"].designs[:1]
    assert len(depth.designs) == 3
    assert joint_power(depth.designs, 2.0, level) < joint_power(one, 2.0, level)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["ablations/reduced"], "pilot=: is missing"),
        (["relu/quick", "sd=1"], "EXPERIMENT=relu/quick: has no claims about ablations"),
        (["ablations/reduced", "sd=much"], "sd=much: must be a number"),
        (["ablations/reduced", "sd=1", "seeds=2"], "seeds=2: must be at least 3"),
        (["ablations/reduced", "sd=1", "runs=9"], "runs=9: must be one of seeds, control"),
        (["ablations/reduced", "pilot=nowhere"], "pilot=nowhere: contains no arm"),
    ],
)
def test_a_mistake_is_answered_in_one_line(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["design", *words])
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
