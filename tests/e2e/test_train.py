"""Training as a user starts it: real processes, real pictures, a net of a few kernels."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from documented import printed
from programs import (
    ON_ONE_CORE,
    REPOSITORY,
    TINY,
    TORCHRUN_SCRIPT,
    finish,
    module,
    start,
    succeed,
    with_rank,
)
from ranks import run_ranks
from safetensors.torch import load_file

from alexnet2012 import evaluate
from alexnet2012.checkpoint import manifest, run_dir
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, EvaluateConfig, RunError, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import init_mesh, single_process
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.tracking.tracker import read_records
from alexnet2012.training.divergence import DivergedError
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.interrupt import InterruptError, raise_signals
from alexnet2012.utils.intervals import error_interval_pct

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
    (script,) = printed("launch/cpu.sh")
    given = ("schedule=", "data.batch_size=", "mesh.device=")  # in the script
    words = [w for w in overrides(photos_store, run_dir) if not w.startswith(given)]
    ended = succeed([str(REPOSITORY / script), *words, "schedule.epochs=2"], run_dir.parent)
    first, *_, directory, last = ended.out.splitlines()
    assert first == f"starting 2 processes for {run_dir}"
    assert directory == f"run directory: {run_dir}"
    assert last == "next: alexnet2012 evaluate checkpoint=run"
    assert ended.err == ""
    return run_dir


def test_a_run_directory_holds_what_a_run_was_and_what_it_found(
    trained: Path, photos_store: Store
) -> None:
    names = {path.name for path in trained.iterdir()} - {".hydra", ".lock"}
    files = {"config.yaml", "metrics.jsonl", "timings.jsonl", "summary.json", "image_errors.npz"}
    assert names == files | {"checkpoints"}
    config = yaml.safe_load((trained / "config.yaml").read_text())
    assert config["recipe"]["name"] == "code145"
    assert config["data"]["store"] == str(photos_store.root)
    assert [p.name for p in sorted((trained / "checkpoints").iterdir())] == [
        "step-0000003",
        "step-0000006",
    ]
    progress = manifest.read_progress(trained / "checkpoints" / "step-0000006")
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
    # Of each rank: more than its libraries take, less than any machine has.
    assert [1e8 < peak < 1e12 for peak in found["peak_memory_bytes"]] == [True, True]
    assert "mfu_pct" not in found  # of a CPU, whose peak rate is not known
    crossed = found["exchange_bytes_per_image"]
    assert set(crossed) == {"conv3", "fc6", "fc7", "fc8", "logits"}
    for layer in ("conv3", "fc6", "fc7", "fc8"):
        assert crossed[layer]["forward"] == crossed[layer]["backward"] > 0
    assert crossed["logits"] == {"forward": 4.0 * 16}  # sixteen classes, eight from each tower


def test_a_run_taken_up_again_has_the_metrics_of_an_undisturbed_one(
    trained: Path, photos_store: Store, tmp_path: Path
) -> None:
    # Records every two steps of epochs of three: one covers the end of an epoch and the next.
    run_dir = tmp_path / "run"
    for epochs in (1, 2):
        train_ranks(2, photos_store, run_dir, "recipe=code145", f"schedule.epochs={epochs}")
        assert summary(run_dir)["epochs"] == epochs
    want = read_records(trained / "metrics.jsonl")
    assert read_records(run_dir / "metrics.jsonl") == want


@pytest.mark.parametrize(
    ("cut", "every"),  # steps that a record covers; epochs have three
    [
        ("schedule.epochs=1", 5),
        ("max_steps=4", 2),
    ],
)
def test_wherever_a_run_stopped_it_goes_on_as_if_nothing_had_happened(
    photos_store: Store, tmp_path: Path, cut: str, every: int
) -> None:
    logging = f"tracking.log_every_steps={every}"
    train_here(photos_store, tmp_path / "whole", logging)
    train_here(photos_store, tmp_path / "cut", logging, cut)
    train_here(photos_store, tmp_path / "cut", logging)
    whole, resumed = tmp_path / "whole", tmp_path / "cut"
    last = (records(directory, "validation")[-1] for directory in (whole, resumed))
    assert next(last) == next(last)
    weights = [net_of(directory) for directory in (whole, resumed)]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    if cut == "schedule.epochs=1":  # within an epoch a cut leaves an early record of its own
        assert read_records(resumed / "metrics.jsonl") == read_records(whole / "metrics.jsonl")


def test_a_warm_up_goes_on_where_it_stopped_with_any_micro_batch(
    photos_store: Store, tmp_path: Path
) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    warmup = ("schedule.warmup_epochs=1", "tracking.log_every_steps=1")
    train_here(photos_store, whole, *warmup)
    train_here(photos_store, cut, *warmup, "max_steps=2")
    train_here(photos_store, cut, *warmup, "data.micro_batch=5")
    rates = [record["rate"] for record in records(whole, "train")]
    full = 0.01
    assert rates == pytest.approx([full / 3, 2 * full / 3, full, full, full, full], rel=1e-12)
    assert [record["rate"] for record in records(cut, "train")] == rates
    for mine, other in zip(records(cut, "train"), records(whole, "train"), strict=True):
        # float32 and six steps: sums of gradients in another order
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)


class KilledError(Exception):
    """In place of SIGKILL: nothing is caught, nothing saved."""


@contextmanager
def end_at(step: int, how: signal.Signals | None) -> Iterator[None]:
    """What ends any training here right after a step: a signal, or at once without one."""
    whole_step = Trainer._after_step

    def last_step(trainer: Trainer, *args: Any) -> None:
        whole_step(trainer, *args)
        if trainer.progress.step == step:
            if how is None:
                trainer._checkpoints.wait()
                raise KilledError
            signal.raise_signal(how)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "_after_step", last_step)
        yield


@pytest.fixture(scope="module")
def whole(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole")
    train_here(photos_store, run_dir, *OFTEN)
    return run_dir


OFTEN = ("checkpoint.every_steps=2", "tracking.log_every_steps=2")


@pytest.mark.parametrize(
    ("step", "how"),  # of two epochs of three; 3 is met while validating
    [(1, signal.SIGTERM), (3, signal.SIGINT), (3, None), (5, None)],
)
def test_a_run_that_was_ended_anywhere_goes_on_bit_for_bit_without_gaps_or_repeats(
    photos_store: Store, tmp_path: Path, whole: Path, step: int, how: signal.Signals | None
) -> None:
    with end_at(step, how), pytest.raises(KilledError if how is None else InterruptError):
        train_here(photos_store, tmp_path, *OFTEN)
    newest = manifest.latest(tmp_path)
    if how is None:  # the last that was due
        assert (newest and manifest.checkpoint_step(newest)) == {3: 2, 5: 4}[step]
    else:
        assert newest is not None
        assert manifest.checkpoint_step(newest) == step
    train_here(photos_store, tmp_path, *OFTEN)
    assert (tmp_path / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert state_of(tmp_path) == state_of(whole)


def state_of(run_dir: Path) -> dict[str, bytes]:
    """Weights, momenta and streams of the newest checkpoint."""
    (file,) = manifest.find_valid(run_dir, single_process()).glob("*.safetensors")
    return {name: tensor.numpy().tobytes() for name, tensor in load_file(file).items()}


def test_a_damaged_checkpoint_is_passed_over_in_one_line_and_set_aside(
    photos_store: Store, tmp_path: Path, whole: Path, caplog: pytest.LogCaptureFixture
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    (run_dir / "summary.json").unlink()
    folder = run_dir / "checkpoints" / "step-0000006"
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    train_here(photos_store, run_dir, *OFTEN)
    told = [r.getMessage() for r in caplog.records if r.name == "alexnet2012"]
    lines = [line for line in told if "is damaged" in line]
    assert len(lines) == 1
    assert f"{folder}: is damaged (checksum of {file.name} does not match)" in lines[0]
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert state_of(run_dir) == state_of(whole)
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {"step-0000003", "step-0000004", "step-0000006", "step-0000006.damaged"}


def test_a_checkpoint_that_cannot_be_written_ends_the_run_and_the_same_command_goes_on(
    photos_store: Store, tmp_path: Path, whole: Path
) -> None:
    run_dir, longer = tmp_path / "run", (*OFTEN, "schedule.epochs=3")
    shutil.copytree(whole, run_dir)
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limit[1]))
    try:
        with pytest.raises(RunError, match=r"step-0000008: cannot be written \(File too large\)"):
            train_here(photos_store, run_dir, *longer)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    names = {path.name for path in (run_dir / "checkpoints").iterdir()}
    assert names == {path.name for path in (whole / "checkpoints").iterdir()}
    train_here(photos_store, run_dir, *longer)
    assert summary(run_dir)["steps"] == 9


def test_checkpoints_are_saved_by_the_clock(photos_store: Store, tmp_path: Path) -> None:
    often = ("checkpoint.every_minutes=1e-9", "checkpoint.keep_last=null")
    train_here(photos_store, tmp_path, *often)
    found = [manifest.checkpoint_step(folder) for folder in manifest.list_checkpoints(tmp_path)]
    assert {3, 6} < set(found)


@pytest.mark.parametrize(
    ("where", "setting"),
    [
        ("_after_step", "checkpoint={every_epochs: null, every_minutes: null}"),
        ("_before_step", "seed=0"),  # the first step
    ],
)
def test_a_run_with_nothing_to_save_ends_at_once_on_a_signal(
    photos_store: Store,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    setting: str,
) -> None:
    monkeypatch.setattr(Trainer, where, lambda *_: signal.raise_signal(signal.SIGTERM))
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    raise_signals()  # as a command does
    try:
        with pytest.raises(InterruptError):
            train_here(photos_store, tmp_path, setting)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert not (tmp_path / "checkpoints").exists()


def test_a_finished_run_is_known_by_its_summary_and_by_its_last_checkpoint(
    photos_store: Store, tmp_path: Path, whole: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    train_here(photos_store, run_dir, *OFTEN)
    assert summary(run_dir) == summary(whole)
    (run_dir / "summary.json").unlink()  # killed between the two
    train_here(photos_store, run_dir, *OFTEN)
    assert summary(run_dir) == summary(whole)
    assert (run_dir / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_a_longer_run_that_was_ended_is_not_taken_for_the_shorter_one_before(
    photos_store: Store, tmp_path: Path, whole: Path
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    with end_at(7, None), pytest.raises(KilledError):
        train_here(photos_store, run_dir, *OFTEN, "schedule.epochs=3")
    assert not (run_dir / "summary.json").exists()
    train_here(photos_store, run_dir, *OFTEN, "schedule.epochs=3")
    assert summary(run_dir)["epochs"] == 3


def test_a_directory_that_another_process_trains_in_is_refused(
    photos_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_dir, "LOCK_TIMEOUT_S", 0.0)
    with (
        run_dir.lock_run_dir(tmp_path),
        pytest.raises(ConfigError, match=r"is in use by another process"),
    ):
        train_here(photos_store, tmp_path)
    train_here(photos_store, tmp_path, "schedule.epochs=1")


def test_a_loss_that_is_no_number_ends_the_run_before_it_is_saved(
    photos_store: Store, tmp_path: Path
) -> None:
    more = ("schedule.rate=1e6", "tracking.log_every_steps=1", "checkpoint.every_steps=1")
    told = r"step \d: loss is (nan|inf); first non-finite: .*; .* schedule.rate below 1000000\.0"
    with pytest.raises(RunError, match=f"{told}|is not finite"):
        train_here(photos_store, tmp_path, *more)
    assert not (tmp_path / "summary.json").exists()
    for record in read_records(tmp_path / "metrics.jsonl"):
        json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("poisoned", "told"),
    [
        ("conv3.weight", "parameters of conv3"),
        ("fc7.bias", "parameters of fc7"),
        (None, "output of conv4"),
    ],
)
def test_the_layer_where_it_first_appeared_and_the_checkpoint_before_are_named(
    photos_store: Store, tmp_path: Path, whole: Path, poisoned: str | None, told: str
) -> None:
    run_dir = tmp_path / "run"
    shutil.copytree(whole, run_dir)
    arguments = overrides(photos_store, run_dir, "mesh=one_process", "schedule.epochs=3")
    config, _ = compose_config("train", TrainConfig, arguments)
    trainer = Trainer(config, single_process(Device.cpu), run_dir)
    with torch.no_grad():
        if poisoned is not None:
            trainer.model.get_parameter(poisoned)[0] = float("nan")
        else:  # finite weights, but too large a sum
            trainer.model.get_parameter("conv4.weight").fill_(3e38)
    with pytest.raises(DivergedError) as error:
        trainer.run()
    assert str(error.value).startswith("step 7: loss is ")
    checkpoint = run_dir / "checkpoints" / "step-0000006"
    assert f"first non-finite: {told}; last checkpoint: {checkpoint};" in str(error.value)


@pytest.mark.parametrize("views", [1, 10])
def test_evaluate_finds_the_errors_that_training_reported(trained: Path, views: int) -> None:
    config = EvaluateConfig(checkpoint=str(trained), views=views, device=Device.cpu)
    errors = evaluate_checkpoints(config)
    assert errors.pictures == VALIDATION_PICTURES
    if views == 1:  # in one process instead of two: sums in another order
        last = summary(trained)
        assert errors.top1_error_pct == pytest.approx(last["top1_error_pct"], abs=1e-9)
        assert errors.loss == pytest.approx(last["loss"], rel=1e-5)


def test_evaluate_prints_both_errors_with_their_intervals(
    trained: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["evaluate", f"checkpoint={trained}", "views=1", "device=cpu"])
    evaluate.main()
    ended, found = capsys.readouterr(), summary(trained)
    for count in (found["top1_errors"], found["top5_errors"]):
        low, high = error_interval_pct(count, VALIDATION_PICTURES)
        assert f"{100 * count / VALIDATION_PICTURES:.2f}" in ended.out
        assert f"{low:.2f} – {high:.2f}" in ended.out
    evaluating = f"evaluating {VALIDATION_PICTURES} images, 1 view each"
    assert ended.err.splitlines() == ["loading the model", evaluating]
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
    train_ranks(4, photos_store, tmp_path / "run", "recipe=code145", "schedule.epochs=2")
    assert summary(tmp_path / "run")["world_size"] == 4
    for mine, other in zip(
        records(tmp_path / "run", "train"), records(trained, "train"), strict=True
    ):
        # float32 and six steps: sums of gradients in another order
        assert mine["loss"] == pytest.approx(other["loss"], rel=1e-4)
    crossed = summary(tmp_path / "run")["exchange_bytes_per_image"]
    assert crossed == summary(trained)["exchange_bytes_per_image"]


def until_it_trains(run_dir: Path) -> None:
    waiting_until = time.monotonic() + 120
    while not read_records(run_dir / "metrics.jsonl") and time.monotonic() < waiting_until:
        time.sleep(0.1)


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
    ("number", "code", "told"),
    [
        (signal.SIGINT, 130, "group"),  # by a terminal, and then by the launcher once more
        (signal.SIGTERM, 143, "launcher"),
        (signal.SIGTERM, 143, "rank 1"),
        (signal.SIGTERM, 1, "torchrun"),  # which has no code of its own for it
    ],
    ids=["Ctrl-C", "kill", "kill a rank", "kill torchrun"],
)
def test_a_run_that_is_interrupted_is_saved_and_leaves_no_process(
    photos_store: Store, tmp_path: Path, number: signal.Signals, code: int, told: str
) -> None:
    run_dir = tmp_path / "run"
    words = overrides(photos_store, run_dir, "schedule.epochs=10000")
    command = [TORCHRUN_SCRIPT, *words] if told == "torchrun" else module("train", *words)
    program, mark = start(command, tmp_path)
    until_it_trains(run_dir)
    if told == "group":
        os.killpg(program.pid, number)
    else:
        os.kill(with_rank(mark, 1) if told == "rank 1" else program.pid, number)
    ended = finish(program, mark)
    assert ended.left == []
    assert ended.code == code
    newest = manifest.find_valid(run_dir, single_process())
    step = manifest.checkpoint_step(newest)
    if told != "torchrun":  # it prints much of its own
        saved = f"checkpoint saved at step {step}; repeat the command to resume"
        assert ended.err == f"{saved}\nalexnet2012: interrupted\n"
    assert step - read_records(run_dir / "metrics.jsonl")[-1]["step"] < 2
