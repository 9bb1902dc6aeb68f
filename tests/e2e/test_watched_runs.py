"""Logging does not change results; terminal output fits 80 columns and has no warnings."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from documented import made_small, printed
from programs import in_terminal, module
from test_train import KilledError, end_at, net_of, summary, train_here, train_ranks

from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.tracking.tracker import read_records

RECORDED, VALIDATED = [2, 3, 4, 6], [3, 6]  # steps of two epochs
LAYERS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def shown(run_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], dict[str, list[int]]]:
    """Step and value by name, and the steps of images."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    tags = events.Tags()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in tags["scalars"]}
    return scalars, {name: [e.step for e in events.Images(name)] for name in tags["images"]}


@pytest.fixture(scope="module")
def watched(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two epochs in two processes, with all statistics."""
    run_dir = tmp_path_factory.mktemp("watched") / "run"
    train_ranks(2, photos_store, run_dir, "schedule.epochs=2", "tracking.tensorboard=true")
    return run_dir


def test_logging_changes_no_result_of_a_run(
    watched: Path, photos_store: Store, tmp_path: Path
) -> None:
    plain = tmp_path / "run"
    train_ranks(2, photos_store, plain, "schedule.epochs=2", "tracking.watch=false")
    assert (plain / "metrics.jsonl").read_bytes() == (watched / "metrics.jsonl").read_bytes()
    weights, others = net_of(plain), net_of(watched)
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    key = "exchange_bytes_per_image"
    assert summary(plain)[key] == summary(watched)[key]
    assert not (plain / "pictures").exists()
    assert not (plain / "watched.jsonl").exists()


def test_a_logger_shows_everything_in_the_run_directory(watched: Path) -> None:
    scalars, pictures = shown(watched)
    for layer in LAYERS:
        assert [step for step, _ in scalars[f"update_ratio/{layer}"]] == RECORDED
        assert all(0 < value < 1 for _, value in scalars[f"update_ratio/{layer}"])
    for name in ("step_time_ms", "input_wait_ms", "exchange_ms", "images_per_s"):
        assert [step for step, _ in scalars[f"pace/{name}"]] == RECORDED
    assert all(value > 0 for _, value in scalars["pace/exchange_ms"])
    want = [r["loss"] for r in read_records(watched / "metrics.jsonl") if r["kind"] == "train"]
    assert [value for _, value in scalars["train/loss"]] == pytest.approx(want, rel=1e-6)
    names = ("kernels-tower0", "kernels-tower1", "wrong-guesses")
    assert pictures == dict.fromkeys(names, VALIDATED)
    files = {f"{name}-{step:07d}.png" for name in names[:2] for step in VALIDATED}
    assert {file.name for file in (watched / "pictures").iterdir()} == {
        *files,
        "wrong-guesses-0000006.png",
    }


def test_a_killed_and_resumed_run_logs_the_same_as_an_undisturbed_one(
    watched: Path, photos_store: Store, tmp_path: Path
) -> None:
    more = ("tracking.tensorboard=true", "checkpoint.every_steps=3")
    train_here(photos_store, tmp_path / "whole", *more)
    with end_at(5, None), pytest.raises(KilledError):
        train_here(photos_store, tmp_path / "cut", *more)
    before = len(read_records(tmp_path / "cut" / "watched.jsonl"))
    assert before == 3  # the record of step 4 is dropped and repeated
    train_here(photos_store, tmp_path / "cut", *more)
    (scalars, pictures), (others, other_pictures) = (
        shown(tmp_path / name) for name in ("whole", "cut")
    )
    assert pictures == other_pictures
    assert scalars.keys() == others.keys()
    for name, found in scalars.items():
        steps = [step for step, _ in found]
        assert [step for step, _ in others[name]] == steps
        if not name.startswith(("pace", "throughput")):
            assert others[name] == found


def test_two_runs_of_one_seed_have_the_same_ratios(photos_store: Store, tmp_path: Path) -> None:
    for name in ("a", "b"):
        train_here(photos_store, tmp_path / name, "tracking.tensorboard=true")
    a, b = ((tmp_path / name / "watched.jsonl").read_bytes() for name in ("a", "b"))
    assert a == b


def lines_of(drawn: list[str], folder: Path) -> list[str]:
    """The lines without the path of the folder, whose length varies."""
    return [line.replace(str(folder), "") for line in drawn]


def test_training_in_a_terminal_fits_80_columns_without_warnings(
    photos_store: Store, tmp_path: Path
) -> None:
    words = printed("python -m alexnet2012.train recipe=code145 model=small schedule=constant")
    views = ("tracking.wandb=offline", "tracking.tensorboard=true")
    where = (f"data.store={photos_store.root}", f"hydra.run.dir={tmp_path / 'run'}")
    drawn = in_terminal(made_small(words, "schedule.epochs=2", *views, *where), tmp_path)
    lines = lines_of(drawn, tmp_path)
    assert max(map(len, lines)) <= 80
    assert any("validating" in line for line in lines)
    assert any(line.strip().startswith("epoch 1: validation error ") for line in lines)
    assert lines[-2].strip() == "run directory: /run"
    assert lines[-1].strip() == "next: alexnet2012 evaluate checkpoint=run"
    text = " ".join(lines).lower()
    assert [word for word in ("warn", "deprecat", "error:", "traceback") if word in text] == []
    evaluation = module("evaluate", f"checkpoint={tmp_path / 'run'}", "views=10", "device=cpu")
    lines = lines_of(in_terminal(evaluation, tmp_path), tmp_path)
    assert lines[0] == "loading the model"
    assert "48 validation images, average of 10 views" in lines
    assert max(map(len, lines)) <= 80
    assert "warn" not in " ".join(lines).lower()


def test_warnings_in_a_terminal_are_detected(tmp_path: Path) -> None:
    program = "import warnings; print('x' * 90); warnings.warn('old')"
    drawn = in_terminal([*module("train")[:1], "-c", program], tmp_path)
    assert max(map(len, drawn)) == 90
    assert "UserWarning: old" in " ".join(drawn)


def test_the_start_and_end_of_a_run_are_recorded(watched: Path) -> None:
    (begun,) = [r for r in read_records(watched / "timings.jsonl") if r["kind"] == "begun"]
    assert (begun["step"], begun["total_steps"]) == (0, 6)
    assert begun["unix_s"] <= (watched / "summary.json").stat().st_mtime


def test_the_tracking_groups_set_every_setting() -> None:
    keys: list[dict[str, Any]] = []
    for group in ("wandb", "tensorboard", "none"):
        config, _ = compose_config("train", TrainConfig, [f"tracking={group}"])
        keys.append(vars(config.tracking))
    assert [(k["wandb"].value, k["tensorboard"], k["watch"]) for k in keys] == [
        ("offline", False, True),
        ("disabled", True, True),
        ("disabled", False, False),
    ]
    assert json.dumps([sorted(k) for k in keys]).count("log_every_steps") == 3
