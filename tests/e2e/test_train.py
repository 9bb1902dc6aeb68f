"""Training as a user starts it: real processes, real pictures, a net of a few kernels."""

from __future__ import annotations

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from programs import (
    ON_ONE_CORE,
    TINY,
    TORCHRUN_SCRIPT,
    finish,
    module,
    run,
    start,
    succeed,
    with_rank,
)
from ranks import run_ranks

from alexnet2012 import checkpoint
from alexnet2012.choices import Device
from alexnet2012.config import EvaluateConfig, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.evaluate import evaluate_checkpoints
from alexnet2012.launcher import compose_config
from alexnet2012.mesh import init_mesh, single_process
from alexnet2012.metrics import error_interval_pct
from alexnet2012.tracking import read_records
from alexnet2012.trained import load_trained
from alexnet2012.trainer import DivergedError, Trainer

STEPS_PER_EPOCH = 3  # 96 pictures in batches of 32
VALIDATION_PICTURES = 48


def overrides(store: Store, run_dir: Path, *more: str) -> list[str]:
    data = [f"data.store={store.root}"]
    return [*TINY, *data, f"hydra.run.dir={run_dir}", *more]


def records(run_dir: Path, kind: str) -> list[dict[str, Any]]:
    return [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == kind]


def summary(run_dir: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run_dir / "summary.json").read_text())
    return found


def train_here(store: Store, run_dir: Path, *more: str) -> dict[str, Any]:
    """The same in this process, at once; two epochs unless told otherwise."""
    run_dir.mkdir(exist_ok=True)
    arguments = overrides(store, run_dir, "mesh=one_process", "schedule.epochs=2", *more)
    config, _ = compose_config("train", TrainConfig, arguments)
    return Trainer(config, single_process(Device.cpu), run_dir).run()


def train_rank(arguments: list[str], run_dir: str) -> None:
    config, _ = compose_config("train", TrainConfig, arguments)
    Trainer(config, init_mesh(2, device="cpu"), Path(run_dir)).run()


def train_ranks(processes: int, store: Store, run_dir: Path, *more: str) -> None:
    """The same in processes that need not load everything first."""
    arguments = overrides(store, run_dir, f"mesh.processes={processes}", *more)
    run_ranks(processes, train_rank, arguments, str(run_dir))


def net_of(run_dir: Path) -> dict[str, torch.Tensor]:
    newest = load_trained(run_dir, Device.cpu)
    return newest.model.full_state_dict()


@pytest.fixture(scope="module")
def trained(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The directory of a run of two epochs, in two processes of its own."""
    run_dir = tmp_path_factory.mktemp("trained") / "run"
    command = module("train", *overrides(photos_store, run_dir, "schedule.epochs=2"))
    ended = succeed(command, run_dir.parent)
    assert f"run directory: {run_dir}" in ended.out
    assert ended.err == ""
    return run_dir


def test_a_run_directory_holds_what_a_run_was_and_what_it_found(
    trained: Path, photos_store: Store
) -> None:
    names = {path.name for path in trained.iterdir()} - {".hydra", "wandb"}
    files = {"config.yaml", "metrics.jsonl", "timings.jsonl", "summary.json", "checkpoints"}
    assert names == files
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["recipe"]["name"] == "paper"
    assert config["data"]["store"] == str(photos_store.root)
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == [
        "step-0000003",
        "step-0000006",
    ]
    progress = checkpoint.read_progress(trained / "checkpoints" / "step-0000006")
    assert (progress.step, progress.epoch) == (2 * STEPS_PER_EPOCH, 2)
    assert progress.store_fingerprint == photos_store.fingerprint
    assert list(trained.parent.iterdir()) == [trained]  # nothing beside it


def test_metrics_hold_every_record_of_training_and_validation(trained: Path) -> None:
    assert [r["step"] for r in records(trained, "train")] == [2, 3, 4, 6]
    assert [(r["step"], r["epoch"]) for r in records(trained, "epoch")] == [(3, 0), (6, 1)]
    validations = records(trained, "validation")
    assert [(r["step"], r["epoch"]) for r in validations] == [(3, 0), (6, 1)]
    assert all(r["pictures"] == VALIDATION_PICTURES for r in validations)
    assert all(0 <= r["top5_error_pct"] <= r["top1_error_pct"] <= 100 for r in validations)


def test_the_summary_tells_the_last_errors_and_the_bytes_that_crossed(trained: Path) -> None:
    found, last = summary(trained), records(trained, "validation")[-1]
    assert found["top1_error_pct"] == last["top1_error_pct"]
    assert found["top5_error_pct"] == last["top5_error_pct"]
    assert (found["steps"], found["world_size"]) == (2 * STEPS_PER_EPOCH, 2)
    assert found["images_per_s"] > 0
    crossed = found["exchange_bytes_per_image"]
    assert set(crossed) == {"conv3", "fc6", "fc7", "fc8", "logits"}
    for layer in ("conv3", "fc6", "fc7", "fc8"):
        assert crossed[layer]["forward"] == crossed[layer]["backward"] > 0
    assert crossed["logits"] == {"forward": 4.0 * 16}  # sixteen classes, eight from each tower


def test_torchrun_gives_the_same_metrics_to_the_bit(
    trained: Path, photos_store: Store, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    command = [TORCHRUN_SCRIPT, *overrides(photos_store, run_dir, "schedule.epochs=2")]
    ended = succeed(command, tmp_path)
    assert f"run directory: {run_dir}" in ended.out
    same = (trained / "metrics.jsonl").read_bytes()
    assert (run_dir / "metrics.jsonl").read_bytes() == same
    config, other = (yaml.safe_load((d / "config.yaml").read_text()) for d in (trained, run_dir))
    assert config == other


def test_a_run_taken_up_again_has_the_metrics_of_an_undisturbed_one(
    trained: Path, photos_store: Store, tmp_path: Path
) -> None:
    # Records every two steps of epochs of three: one covers the end of an epoch and the next.
    run_dir = tmp_path / "run"
    train_ranks(2, photos_store, run_dir, "schedule.epochs=1")
    assert summary(run_dir)["epochs"] == 1
    more = ("schedule.epochs=2", "resume=auto")
    succeed(module("train", *overrides(photos_store, run_dir, *more)), tmp_path)
    assert summary(run_dir)["epochs"] == 2
    want = read_records(trained / "metrics.jsonl")
    assert read_records(run_dir / "metrics.jsonl") == want


@pytest.mark.parametrize(
    ("cut", "every"),  # steps that a record covers; epochs have three
    [
        ("schedule.epochs=1", 1),
        ("schedule.epochs=1", 2),
        ("schedule.epochs=1", 5),
        ("max_steps=2", 2),
        ("max_steps=4", 2),
    ],
)
def test_wherever_a_run_stopped_it_goes_on_as_if_nothing_had_happened(
    photos_store: Store, tmp_path: Path, cut: str, every: int
) -> None:
    logging = f"tracking.log_every_steps={every}"
    train_here(photos_store, tmp_path / "whole", logging)
    train_here(photos_store, tmp_path / "cut", logging, cut)
    train_here(photos_store, tmp_path / "cut", logging, "resume=auto")
    whole, resumed = tmp_path / "whole", tmp_path / "cut"
    last = (records(directory, "validation")[-1] for directory in (whole, resumed))
    assert next(last) == next(last)
    weights = [net_of(directory) for directory in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if cut == "schedule.epochs=1":  # within an epoch a cut leaves an early record of its own
        assert read_records(resumed / "metrics.jsonl") == read_records(whole / "metrics.jsonl")


def test_a_finished_run_that_is_taken_up_again_keeps_its_summary(
    photos_store: Store, tmp_path: Path
) -> None:
    train_here(photos_store, tmp_path)
    before, metrics = summary(tmp_path), (tmp_path / "metrics.jsonl").read_bytes()
    train_here(photos_store, tmp_path, "resume=auto")
    assert (tmp_path / "metrics.jsonl").read_bytes() == metrics
    after = summary(tmp_path)
    assert after["top1_error_pct"] == before["top1_error_pct"]
    assert after["images_per_s"] > 0


@pytest.mark.parametrize("every", [1, 50])  # the end of an epoch must notice too
def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    photos_store: Store, tmp_path: Path, every: int
) -> None:
    more = ("schedule.rate=1e6", f"tracking.log_every_steps={every}")
    with pytest.raises(DivergedError, match=r"lower schedule.rate=1000000\.0"):
        train_here(photos_store, tmp_path, *more)
    assert not (tmp_path / "summary.json").exists()
    assert checkpoint.newest(tmp_path) is None
    for record in read_records(tmp_path / "metrics.jsonl"):
        json.dumps(record, allow_nan=False)


def test_a_sweep_runs_every_job_and_ends_with_the_first_mistake(
    photos_store: Store, tmp_path: Path
) -> None:
    sweep = [
        "seed=-1,0,1",
        "mesh=one_process",
        "schedule.epochs=1",
        f"hydra.sweep.dir={tmp_path}/sweep",
    ]
    command = module("train", "-m", *overrides(photos_store, tmp_path / "unused"), *sweep)
    ended = run([*ON_ONE_CORE, *command], tmp_path)
    assert (ended.code, ended.left) == (2, [])
    assert ended.err == "alexnet2012: seed=-1: must be at least 0\n"
    finished = sorted(path.parent for path in (tmp_path / "sweep").glob("*/summary.json"))
    seeds = [yaml.safe_load((d / "config.yaml").read_text())["seed"] for d in finished]
    assert seeds == [0, 1]
    assert records(finished[0], "train") != records(finished[1], "train")
    # What a sweep made can be named on a command line as it is.
    ensemble = f"checkpoint=[{finished[0]},{finished[1]}]"
    config, _ = compose_config("evaluate", EvaluateConfig, [ensemble, "views=1", "device=cpu"])
    assert evaluate_checkpoints(config).pictures == VALIDATION_PICTURES


@pytest.mark.parametrize("views", [1, 10])
def test_evaluate_finds_the_errors_that_training_reported(trained: Path, views: int) -> None:
    config = EvaluateConfig(checkpoint=str(trained), views=views, device=Device.cpu)
    errors = evaluate_checkpoints(config)
    assert errors.pictures == VALIDATION_PICTURES
    if views == 1:  # in one process instead of two: sums in another order
        last = summary(trained)
        assert errors.top1_error_pct == pytest.approx(last["top1_error_pct"], abs=1e-9)
        assert errors.loss == pytest.approx(last["loss"], rel=1e-5)


def test_evaluate_prints_both_errors_with_their_intervals(trained: Path, tmp_path: Path) -> None:
    ended = succeed(module("evaluate", f"checkpoint={trained}", "views=1", "device=cpu"), tmp_path)
    found = summary(trained)
    for count in (found["top1_errors"], found["top5_errors"]):
        low, high = error_interval_pct(count, VALIDATION_PICTURES)
        assert f"{100 * count / VALIDATION_PICTURES:.2f}" in ended.out
        assert f"{low:.2f} – {high:.2f}" in ended.out
    assert ended.err == ""
    assert list(tmp_path.iterdir()) == []  # an answer leaves no files


def test_an_ensemble_of_a_net_with_itself_is_that_net(trained: Path) -> None:
    def errors(*paths: str) -> Any:
        return evaluate_checkpoints(
            EvaluateConfig(checkpoint=list(paths), views=1, device=Device.cpu)
        )

    assert errors(str(trained), str(trained)) == errors(str(trained))


def test_two_replicas_of_two_towers_train_like_one_replica(
    trained: Path, photos_store: Store, tmp_path: Path
) -> None:
    train_ranks(4, photos_store, tmp_path / "run", "schedule.epochs=2")
    assert summary(tmp_path / "run")["world_size"] == 4
    for mine, other in zip(
        records(tmp_path / "run", "train"), records(trained, "train"), strict=True
    ):
        # float32 and six steps: sums of gradients in another order
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
    crossed = summary(tmp_path / "run")["exchange_bytes_per_image"]
    assert crossed == summary(trained)["exchange_bytes_per_image"]


def until_it_trains(run_dir: Path) -> None:
    waiting_until = time.monotonic() + 60
    while not read_records(run_dir / "metrics.jsonl") and time.monotonic() < waiting_until:
        time.sleep(0.1)


def test_a_rank_that_is_killed_ends_the_others_and_is_named(
    photos_store: Store, tmp_path: Path
) -> None:
    run_dir = tmp_path / "run"
    program, mark = start(
        module("train", *overrides(photos_store, run_dir, "schedule.epochs=10000")), tmp_path
    )
    until_it_trains(run_dir)
    os.kill(with_rank(mark, 1), signal.SIGKILL)
    ended = finish(program, mark)
    assert (ended.code, ended.left) == (1, [])
    assert ended.err.startswith("alexnet2012: rank 1 ended")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "kill"]
)
def test_a_sweep_that_is_interrupted_starts_no_further_run(
    photos_store: Store, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    words = overrides(photos_store, tmp_path / "run", "schedule.epochs=10000", "mesh=one_process")
    where = [f"hydra.sweep.dir={tmp_path}", "hydra.sweep.subdir=run-${seed}", "seed=0,1"]
    command = [*ON_ONE_CORE, *module("train", "-m", *words, *where)]
    program, mark = start(command, tmp_path)
    until_it_trains(tmp_path / "run-0")
    program.send_signal(number)
    ended = finish(program, mark)
    assert (ended.code, ended.left) == (code, [])
    assert ended.err.splitlines()[-1] == "alexnet2012: interrupted"
    assert not (tmp_path / "run-1").exists()


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["Ctrl-C", "kill"]
)
def test_a_run_that_is_interrupted_says_so_and_leaves_no_process(
    photos_store: Store, tmp_path: Path, number: signal.Signals, code: int
) -> None:
    run_dir = tmp_path / "run"
    command = module("train", *overrides(photos_store, run_dir, "schedule.epochs=10000"))
    program, mark = start(command, tmp_path)
    until_it_trains(run_dir)
    if number is signal.SIGINT:
        os.killpg(program.pid, number)  # a terminal tells all of its processes
    else:
        program.send_signal(number)
    ended = finish(program, mark)
    assert ended.left == []
    assert ended.code == code
    assert ended.err == "alexnet2012: interrupted\n"
