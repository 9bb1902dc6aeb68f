"""Runs are listed from their directories, and two can be compared."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Sequence
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from alexnet2012 import runs
from alexnet2012.checkpoint import run_dir
from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import WandbMode
from alexnet2012.config.schema import TrackingConfig, TrainConfig
from alexnet2012.tracking.run_index import RunState, read_run
from alexnet2012.tracking.tracker import Tracker
from alexnet2012.utils.intervals import error_interval_pct

Say = Callable[..., str]


@pytest.fixture
def say(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Say:
    """Run the program and return its output."""

    def said(*words: object) -> str:
        monkeypatch.setattr(sys, "argv", ["runs", *map(str, words)])
        monkeypatch.setenv("COLUMNS", "80")
        runs.main()
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return said


def listed(say: Say, *words: object) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(say(*words, "--json"))["runs"]
    return found


@cache
def settings_of(*overrides: str) -> dict[str, Any]:
    return to_plain(compose_config("train", TrainConfig, overrides)[0])


def make_run(
    folder: Path,
    overrides: Sequence[str] = (),
    *,
    step: int = 6,
    finished: bool = True,
    top1_errors: int = 30,
    begun_s: int = 1_800_000_000,
    hydra: bool = True,
    images_per_s: float = 100.0,
) -> Path:
    """The directory of a run as training leaves it, without its checkpoints."""
    given = dict(word.split("=", 1) for word in overrides)
    seed = int(given.pop("seed", 0))
    settings = settings_of(*(f"{key}={value}" for key, value in given.items())) | {"seed": seed}
    with run_dir.lock_run_dir(folder):
        run_dir.init_run_dir(folder, settings, None)
    if hydra:
        (folder / ".hydra").mkdir()
        (folder / ".hydra" / "config.yaml").write_text(
            OmegaConf.to_yaml(
                OmegaConf.create(settings | {"data": settings["data"] | {"store": None}})
            )
        )
        (folder / ".hydra" / "overrides.yaml").write_text(json.dumps(list(overrides)))
    errors = {"top1_error_pct": 100 * top1_errors / 48, "top5_error_pct": 12.5, "pictures": 48}
    with Tracker(TrackingConfig(wandb=WandbMode.disabled), folder, {}) as tracker:
        tracker.started(0, unix_s=begun_s, total_steps=6)
        tracker.metrics("train", step, loss=2.5, epoch=0)
        tracker.timings("pace", step, images_per_s=images_per_s)
        tracker.metrics("epoch", step, train_error_pct=40.0, loss=2.4)
        tracker.metrics("validation", step, loss=2.6, **errors)
        tracker.timings("throughput", step, images_per_s=images_per_s, input_wait_pct=1.0)
    if finished:
        summary = {
            **errors, "top1_errors": top1_errors, "top5_errors": 6.0, "steps": step,
            "images_per_s": images_per_s, "commit": "abc", "device": "cpu", "world_size": 2,
        }  # fmt: skip
        (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def test_a_run_is_listed_with_its_recipe_changes_state_errors_and_speed(
    tmp_path: Path, say: Say
) -> None:
    make_run(tmp_path / "runs" / "one", ["recipe=code145", "model=small", "seed=3"])
    (found,) = listed(say, tmp_path)
    assert found.pop("begun").startswith("2027-01-15T")
    assert found == {
        "run": f"{tmp_path}/runs/one",
        "state": "finished",
        "step": 6,
        "total_steps": 6,
        "recipe": "code145",
        "changed": ["model=small", "seed=3"],
        "top1_error_pct": 62.5,
        "top5_error_pct": 12.5,
        "pictures": 48,
        "images_per_s": 100.0,
        "band": None,
        "problem": None,
    }


def test_without_its_recorded_overrides_a_run_is_listed_with_its_changed_values(
    tmp_path: Path,
) -> None:
    """As under torchrun; and if the recorded overrides are of another, later command."""
    overrides = ["model=small", "seed=3"]
    values = ("seed=3", "model.width=0.25", "model.input_size=112", "data.store_size=128")
    assert read_run(make_run(tmp_path / "torchrun", overrides, hydra=False)).changed == values
    other = make_run(tmp_path / "other", overrides)
    assert read_run(other).changed == tuple(overrides)
    later = make_run(tmp_path / "later", ["seed=4"])
    (other / ".hydra").rename(tmp_path / "aside")
    (later / ".hydra").rename(other / ".hydra")
    assert read_run(other).changed == values
    assert read_run(make_run(tmp_path / "plain", ["mesh=one_process"], hydra=False)).changed == ()


def test_the_states_of_runs_are_listed(tmp_path: Path, say: Say) -> None:
    make_run(tmp_path / "a", finished=True)
    make_run(tmp_path / "b", step=4, finished=False)
    c = make_run(tmp_path / "c", step=4, finished=False)
    with run_dir.lock_run_dir(c):
        states = {run["run"][-1]: (run["state"], run["step"]) for run in listed(say, tmp_path)}
        assert states == {"a": ("finished", 6), "b": ("interrupted", 4), "c": ("running", 4)}
        table = say(tmp_path)
    assert {"running 66%", "interrupted 66%"} <= {*re.findall(r"\w+ \d+%", table)}
    assert "3 runs: 1 running, 1 interrupted, 1 finished" in table
    assert read_run(c).state is RunState.interrupted
    with run_dir.lock_run_dir(c):  # listing a run does not lock it
        pass


def test_an_incomplete_last_record_is_ignored(tmp_path: Path) -> None:
    folder = make_run(tmp_path, step=4, finished=False)
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "train", "st')
    found = read_run(folder)
    assert (found.state, found.step, found.problem) == (RunState.interrupted, 4, None)


@pytest.mark.parametrize(
    ("file", "text", "problem"),
    [
        ("config.yaml", None, "has no config.yaml"),
        ("config.yaml", "a: [", "config.yaml cannot be read (while parsing"),
        ("config.yaml", "a: 1", "config.yaml does not belong to a training run"),
        ("config.yaml", "recipe: {towers: 2}", "config.yaml does not name a recipe"),
        ("summary.json", "{", "summary.json cannot be read (Expecting"),
        ("summary.json", "[]", "summary.json does not belong to a training run"),
        ("metrics.jsonl", "?\n", "metrics.jsonl cannot be read (Expecting value"),
        ("timings.jsonl", "[1]\n", "timings.jsonl cannot be read (list indices"),
    ],
)
def test_a_damaged_run_is_listed_with_its_problem_next_to_the_others(
    tmp_path: Path, say: Say, file: str, text: str | None, problem: str
) -> None:
    make_run(tmp_path / "good")
    bad = make_run(tmp_path / "bad")
    (bad / file).unlink()
    if text is not None:
        (bad / file).write_text(text)
    found = {Path(run["run"]).name: run for run in listed(say, tmp_path)}
    assert found["good"]["state"] == "finished"
    assert found["bad"]["state"] == "damaged"
    assert found["bad"]["problem"].startswith(problem)
    assert "1 finished, 1 damaged" in say(tmp_path)


def test_folders_without_a_run_are_listed_and_a_store_is_not_searched(
    tmp_path: Path, say: Say
) -> None:
    make_run(tmp_path / "deep" / "er" / "run")
    (tmp_path / "notes").mkdir()
    (tmp_path / "store" / "train" / "cat").mkdir(parents=True)
    (tmp_path / "store" / "manifest.json").write_text("{}")
    said = say(tmp_path)
    assert f"{tmp_path}/notes: contains no run" in said
    assert f"{tmp_path}/store: is a store of images" in said
    assert "cat" not in said
    assert say(tmp_path / "notes") == f"0 runs\n{tmp_path}/notes: contains no run\n"


def test_runs_are_sorted_by_the_given_key(tmp_path: Path, say: Say) -> None:
    make_run(tmp_path / "a", ["recipe=paper"], begun_s=3_000, top1_errors=20, images_per_s=3)
    make_run(tmp_path / "b", ["recipe=code145"], begun_s=1_000, top1_errors=10, images_per_s=1)
    make_run(tmp_path / "c", ["recipe=code146"], begun_s=2_000, top1_errors=30, images_per_s=2,
             finished=False)  # fmt: skip
    (make_run(tmp_path / "d") / "config.yaml").unlink()

    def order(*words: str) -> str:
        return "".join(run["run"][-1] for run in listed(say, tmp_path, *words))

    assert order() == "bcad"
    assert order("--sort", "run") == "abcd"
    assert order("--sort", "recipe") == "bcad"
    assert order("--sort", "state") == "cabd"
    assert order("--sort", "error") == "bacd"
    assert order("--sort", "speed") == "acbd"


def test_the_table_fits_80_columns_for_any_run_name(tmp_path: Path, say: Say) -> None:
    long = tmp_path / ("long" * 30)
    make_run(long, ["recipe=code145", "model=small"], images_per_s=1_234_567.0)
    odd = make_run(tmp_path / "odd[/red]\x1b[31m", ["seed=1"], step=4, finished=False)
    assert odd.is_dir()
    said = say(long, odd)
    assert max(map(len, said.splitlines())) <= 80
    assert "\x1b" not in said
    folded = "".join(line.split(" ")[0] for line in said.splitlines())
    assert "odd[/red]\\x1b[31m" in folded
    assert "1,234,567" in said


def make_sweep(folder: Path, ablations: Sequence[str], seeds: int, numbered: bool) -> list[Path]:
    runs = []
    for number, (ablation, seed) in enumerate(product(ablations, range(seeds))):
        path = str(number) if numbered else f"{ablation}/{seed}"
        words = ["experiment=ablations/quick", f"ablation={ablation}", f"seed={seed}"]
        runs.append(make_run(folder / path, words))
    return runs


@pytest.mark.parametrize("numbered", [False, True], ids=["by name", "numbered"])
def test_a_sweep_is_a_line_per_run_with_what_differs(
    tmp_path: Path, say: Say, numbered: bool
) -> None:
    """41 runs in at most 60 lines of 80 columns."""
    runs = make_sweep(tmp_path, ("none", "no_crosslinks_wide", "no_lrn"), 2, numbered)
    said = say(tmp_path, "--sort", "run").splitlines()
    assert max(map(len, said)) <= 80
    head = said.index(next(line for line in said if line.startswith("run")))
    assert " ".join(said[:head]).split()[-2:] == ["recipe=code145", "experiment=ablations/quick"]
    rows = said[head + 1 : -1]
    assert len(rows) - len(runs) <= (2 if numbered else 0)  # the longest name takes two lines
    assert head + 1 + len(rows) / len(runs) * 41 + 1 <= 60
    if numbered:
        assert [row.split()[:3] for row in rows if "no_lrn" in row] == [
            ["4", "ablation=no_lrn", "seed=0"],
            ["5", "ablation=no_lrn", "seed=1"],
        ]
    else:
        assert said[head].startswith("run (ablation, seed) ")
        names = [f"{name}/{seed}" for name in ("no_crosslinks_wide", "no_lrn", "none")
                 for seed in (0, 1)]  # fmt: skip
        assert [row.split()[0] for row in rows] == names
        assert [row.split()[-3:] for row in rows] == [["62.50", "12.50", "100"]] * 6


def test_there_is_no_top5_error_of_fewer_than_six_classes(tmp_path: Path, say: Say) -> None:
    folder = make_run(tmp_path / "run")
    summary = json.loads((folder / "summary.json").read_text())
    assert "12.50" in say(tmp_path)
    (folder / "summary.json").write_text(json.dumps(summary | {"classes": 5}))
    assert "12.50" not in say(tmp_path)
    (found,) = listed(say, tmp_path)
    assert (found["top1_error_pct"], found["top5_error_pct"]) == (62.5, None)


def test_a_missing_folder_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in ([], ["compare", "A", "B"]):
        monkeypatch.setattr(sys, "argv", ["runs", *words])
        with pytest.raises(SystemExit) as ending:
            runs.main()
        assert ending.value.code == 2
        err = capsys.readouterr().err
        assert ("DIR=runs: no such folder; give the folder of your runs" in err) or (
            "A=A: has no config.yaml" in err
        )


def test_two_runs_are_compared_setting_by_setting_and_number_by_number(
    tmp_path: Path, say: Say
) -> None:
    a = make_run(tmp_path / "a", ["recipe=paper", "seed=0"], top1_errors=10)
    b = make_run(tmp_path / "b", ["recipe=paper", "seed=1"], top1_errors=40, images_per_s=50.0)
    found = json.loads(say("compare", a, b, "--json"))
    assert found["made_differently"] == [{"key": "seed", "first": "0", "second": "1"}]
    measured = {row["name"]: row for row in found["measured"]}
    for side, errors in (("first", 10), ("second", 40)):
        low, high = error_interval_pct(errors, 48)
        want = f"{100 * errors / 48:.2f} ({low:.2f} – {high:.2f})"
        assert measured["top-1 error, %"][side] == want
    outcomes = {name: row["outcome"] for name, row in measured.items()}
    assert outcomes == {
        "steps": "the same",
        "training loss, last": "the same",
        "training error, last epoch, %": "the same",
        "validation loss, last": "the same",
        "top-1 error, %": "intervals apart",
        "top-5 error, %": "the same",
        "images/s": "different value",
        "waiting for input, %": "the same",
    }
    said = say("compare", a, b)
    assert max(map(len, said.splitlines())) <= 80
    assert "conditions that differ" in said
    assert "measurements" in said
    assert "intervals apart" in " ".join(said.split())


def test_errors_with_overlapping_intervals_are_not_reported_as_different(
    tmp_path: Path, say: Say
) -> None:
    a = make_run(tmp_path / "a", top1_errors=24)
    b = make_run(tmp_path / "b", top1_errors=25, finished=False, step=4)
    rows = json.loads(say("compare", a, b, "--json"))["measured"]
    measured = {row["name"]: row for row in rows}
    assert measured["top-1 error, %"]["outcome"] == "intervals overlap"
    assert measured["steps"]["second"] == "4 of 6, interrupted"
    assert measured["images/s"]["outcome"] == "the same"
