"""Faults injected into real processes: the diagnosis, and that no process is left."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import socket
import time
from collections.abc import Callable
from pathlib import Path

import faults
import faulty
import pytest
import torch
from attackers import OLD_ADDRESS, Sockets, assert_on_loopback, attack, on_a_renamed_machine
from documented import printed
from programs import TINY, TORCHRUN_SCRIPT, finish, start, torchrun_rank
from ranks import run_ranks
from torch import Tensor

from alexnet2012 import init_mesh
from alexnet2012.checkpoint import manifest
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, RunError, TrainConfig
from alexnet2012.data import augmentation
from alexnet2012.data.store import Store
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.watchdog.failure_report import read_failures
from alexnet2012.distributed.watchdog.watchdog import RECORDS
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.train import _check_restarts
from alexnet2012.training import trainer

pytestmark = pytest.mark.usefixtures("launched_soon")


def error_of(fault: str, folder: Path, train: Callable[[str, str], None] = faulty.train) -> str:
    """The launcher's error message; no process may be left."""
    with pytest.raises(RunError) as error:
        launch(train, 2, fault, str(folder))
    for rank in range(2):
        assert not Path("/proc", (folder / f"{rank}.pid").read_text()).exists()
    return str(error.value)


@pytest.mark.parametrize("fault", ["killed", "stopped", "slow", "skips"])
def test_a_fault_of_one_rank_ends_all_with_this_diagnosis(fault: str, tmp_path: Path) -> None:
    assert error_of(fault, tmp_path) == faults.FAULTS[fault].outcome
    records = json.loads((tmp_path / RECORDS).read_text())
    lasts = [records["exchanges"][rank][-1] for rank in ("0", "1")]
    if fault == "skips":
        assert [last["layer"] for last in lasts] == ["fc7", "fc8"]
        assert lasts[0]["number"] == lasts[1]["number"]
    else:
        assert [(last["layer"], last["direction"], last["step"]) for last in lasts] == [
            ("conv3", "forward", faulty.FAULT_STEP),
            ("conv3", "backward", faulty.FAULT_STEP - 1),
        ]
        assert lasts[0]["ended"] == 0 < lasts[1]["ended"]


@pytest.mark.parametrize("fault", ["killed", "stopped", "slow"])
def test_a_fault_within_a_replayed_step_names_the_exchange(fault: str, tmp_path: Path) -> None:
    began = time.monotonic()
    error = error_of(fault, tmp_path, faulty.train_replayed)
    assert time.monotonic() - began < 30
    assert error == faults.FAULTS[f"{fault} in a replay"].outcome
    records = json.loads((tmp_path / RECORDS).read_text())
    for rank in ("0", "1"):  # each replay is one entry
        entries = [(e["layer"], e["direction"], e["step"]) for e in records["exchanges"][rank]]
        assert entries[-2:] == [("step", "replay", step) for step in (5, 6)]
    assert (records["last"]["0"]["layer"], records["last"]["0"]["step"]) == ("fc7", 6)


def test_a_rank_that_stands_still_within_a_replay_is_named(tmp_path: Path) -> None:
    last = error_of("slow", tmp_path, faulty.hang_in_a_replay).splitlines()[-1]
    assert last.startswith("rank 1 is alive but has not reached all-gather fc7 forward (step 0); ")


def test_a_rank_that_fails_is_reported_with_its_traceback(tmp_path: Path) -> None:
    *above, last = error_of("crashed", tmp_path).splitlines()
    assert last == faults.FAULTS["crashed"].outcome
    assert above[0].startswith("rank 1: Traceback")
    assert above[-1] == "ValueError: a bug in the code"


@pytest.mark.parametrize("fault", ["crashed", "slow"])
def test_a_rank_that_waits_in_a_collective_that_never_fails_is_ended(
    fault: str, tmp_path: Path
) -> None:
    began = time.monotonic()
    last = error_of(fault, tmp_path, faulty.wait_as_in_nccl).splitlines()[-1]
    assert time.monotonic() - began < 25  # torch's launcher kills after 30 s
    starts = {
        "crashed": "rank 1 exited with code 1: it did not reach",
        "slow": "rank 1 is alive but has not reached",
    }
    waits = "all-gather conv3 forward (step 0); rank 0 is waiting; rank 1 had run no collective"
    assert last.startswith(f"{starts[fault]} {waits}")


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_fault_on_another_machine_has_the_same_diagnosis(fault: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    ranks = [
        context.Process(
            target=faulty.train_on_another_machine, args=(rank, port, fault, str(tmp_path))
        )
        for rank in range(2)
    ]
    try:
        for process in ranks:
            process.start()
        ranks[0].join(60)
        (failure,) = read_failures(tmp_path)
        expected = faults.FAULTS[fault].outcome.replace("was killed by SIGKILL", "exited")
        assert failure.text == expected
        assert (failure.rank, failure.lost) == (0, [1])
        assert ranks[1].is_alive() == (fault == "stopped")  # no process of this machine can end it
    finally:
        for process in ranks:
            process.kill()
            process.join()


def overrides(store: str, run_dir: str, *more: str) -> list[str]:
    return [*TINY, f"data.store={store}", f"hydra.run.dir={run_dir}", *more]


def diverging(fault: str, store: str, run_dir: str) -> str:
    mesh = init_mesh(2, device="cpu")
    other = mesh.rank == 1
    seed = f"seed={int(fault == 'seed' and other)}"
    run_overrides = overrides(store, run_dir, seed, "data.feed=duplicate")
    config, folder = compose_config("train", TrainConfig, run_overrides)
    with pytest.MonkeyPatch.context() as patch:
        if other and fault in ("code", "torch"):
            changed = trainer.versions() | {fault: "1.2.3"}
            patch.setattr(trainer, "versions", lambda: changed)
        if other and fault == "batch":
            unpatched = augmentation.epoch_order
            patch.setattr(
                augmentation,
                "epoch_order",
                lambda n, seed, *rest: unpatched(n, seed + 1, *rest),
            )
        try:
            trainer.Trainer(config, mesh, folder).run()
        except RunError as error:
            return str(error)
    return ""


def diverge_in_turn(store: str, run_dir: str, names: list[str]) -> list[str]:
    return [diverging(name, store, run_dir) for name in names]


def test_ranks_that_diverge_are_refused_with_this_message(
    photos_store: Store, tmp_path: Path
) -> None:
    names = ["seed", "code", "torch", "batch"]
    messages = run_ranks(2, diverge_in_turn, str(photos_store.root), str(tmp_path / "run"), names)
    assert messages[0] == messages[1]
    versions = trainer.versions()
    for name, text in zip(names, messages[0], strict=True):
        text = text.replace(versions["code"], "…").replace(versions["torch"], "…")
        if name == "batch":
            text = re.sub(r"[0-9a-f]{8,}", "…", text)
        assert text == faults.FAULTS[name].outcome


def train_uninterrupted(store: str, run_dir: str, more: list[str]) -> None:
    mesh = init_mesh(2, device="cpu")
    config, folder = compose_config("train", TrainConfig, overrides(store, run_dir, *more))
    trainer.Trainer(config, mesh, folder).run()


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_trained(run_dir, Device.cpu).model.full_state_dict()


def test_torchrun_restarts_a_run_with_a_killed_rank_without_loss_and_listens_on_loopback_only(
    photos_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole, cut = str(photos_store.root), tmp_path / "whole", tmp_path / "cut"
    more = ["schedule.epochs=8", "checkpoint.every_epochs=2"]
    run_ranks(2, train_uninterrupted, store, str(whole), [*more, "recipe=code145"])
    monkeypatch.setenv("MAX_RESTARTS", "1")
    renamed = on_a_renamed_machine(tmp_path, OLD_ADDRESS)
    _, *words = printed("launch/torchrun.sh recipe=code145")
    words += overrides(store, str(cut), *more)
    program, mark = start([*renamed, TORCHRUN_SCRIPT, *words], tmp_path)
    wait_until(lambda: manifest.latest(cut) is not None)
    os.kill(torchrun_rank(mark, 1), signal.SIGKILL)
    sockets: Sockets = set()  # attacks take seconds: those of the first start would miss the kill
    while program.poll() is None:
        attack(mark, sockets)
        time.sleep(0.05)
    ended = finish(program, mark)
    assert_on_loopback(sockets)
    assert (ended.code, ended.left) == (0, [])
    assert "alexnet2012: rank 1 exited: it" in ended.err
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    restarted, expected = weights(cut), weights(whole)
    assert all(torch.equal(restarted[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("shared", "command", "message"),
    [
        ("True", ["hydra.run.dir=run"], "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=0: must be 1"),
        ("False", [], "hydra.run.dir=None: must be set, because restarts resume"),
    ],
)
def test_restarts_that_would_hang_or_start_from_scratch_are_refused(
    monkeypatch: pytest.MonkeyPatch, shared: str, command: list[str], message: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    _check_restarts(command)  # without restarts anything goes
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match=message):
        _check_restarts(command)


def wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_the_docs_show_the_tables_of_tested_faults_and_environments() -> None:
    page = faults.PAGE.read_text(encoding="utf-8")
    assert page == faults.with_tables(page), "run: python tests/faults.py"
    for fault in (row for _, rows in faults.TABLES.values() for row in rows):
        assert fault.test in faults.tests_of(fault.file), fault.test
