"""Faults, each made on purpose in real processes: who is named, in which words, what is left."""

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


def end_of(fault: str, folder: Path, train: Callable[[str, str], None] = faulty.train) -> str:
    """What the launcher says in the end; no process may be left."""
    with pytest.raises(RunError) as found:
        launch(train, 2, fault, str(folder))
    for rank in range(2):
        assert not Path("/proc", (folder / f"{rank}.pid").read_text()).exists()
    return str(found.value)


@pytest.mark.parametrize("fault", ["killed", "stopped", "slow", "skips"])
def test_a_fault_of_one_rank_ends_the_other_in_these_words(fault: str, tmp_path: Path) -> None:
    assert end_of(fault, tmp_path) == faults.FAULTS[fault].then
    written = json.loads((tmp_path / RECORDS).read_text())
    lasts = [written["exchanges"][rank][-1] for rank in ("0", "1")]
    if fault == "skips":
        assert [last["layer"] for last in lasts] == ["fc7", "fc8"]
        assert lasts[0]["number"] == lasts[1]["number"]
    else:
        assert [(last["layer"], last["direction"], last["step"]) for last in lasts] == [
            ("conv3", "forward", faulty.FAULT_STEP),
            ("conv3", "backward", faulty.FAULT_STEP - 1),
        ]
        assert lasts[0]["ended"] == 0 < lasts[1]["ended"]


def test_a_rank_that_fails_is_told_with_its_traceback(tmp_path: Path) -> None:
    *above, last = end_of("crashed", tmp_path).splitlines()
    assert last == faults.FAULTS["crashed"].then
    assert above[0].startswith("rank 1: Traceback")
    assert above[-1] == "ValueError: a mistake in the code"


@pytest.mark.parametrize("fault", ["crashed", "slow"])
def test_a_rank_whose_exchange_never_fails_is_ended_too(fault: str, tmp_path: Path) -> None:
    began = time.monotonic()
    last = end_of(fault, tmp_path, faulty.wait_out_of_reach).splitlines()[-1]
    assert time.monotonic() - began < 25  # torch's launcher kills after 30 s
    ways = {
        "crashed": "rank 1 ended by exit code 1: it",
        "slow": "rank 1 lives and lets others wait: it",
    }
    waits = "did not come to conv3 forward (step 0), where rank 0 waits; it had made no exchange"
    assert last.startswith(f"{ways[fault]} {waits}")


@pytest.mark.parametrize("fault", ["killed", "stopped"])
def test_a_fault_on_another_machine_is_told_in_the_same_words(fault: str, tmp_path: Path) -> None:
    context = multiprocessing.get_context("forkserver")
    with socket.create_server(("localhost", 0)) as free:
        port = free.getsockname()[1]
    ranks = [
        context.Process(target=faulty.elsewhere, args=(rank, port, fault, str(tmp_path)))
        for rank in range(2)
    ]
    try:
        for process in ranks:
            process.start()
        ranks[0].join(60)
        (cause,) = read_failures(tmp_path)
        assert cause.text == faults.FAULTS[fault].then.replace(" by SIGKILL", "")
        assert (cause.rank, cause.lost) == (0, [1])
        assert ranks[1].is_alive() == (fault == "stopped")  # nobody here can end it
    finally:
        for process in ranks:
            process.kill()
            process.join()


def tiny(store: str, run_dir: str, *more: str) -> list[str]:
    return [*TINY, f"data.store={store}", f"hydra.run.dir={run_dir}", *more]


def diverging(fault: str, store: str, run_dir: str) -> str:
    mesh = init_mesh(2, device="cpu")
    other = mesh.rank == 1
    seed = f"seed={int(fault == 'seed' and other)}"
    words = tiny(store, run_dir, seed, "data.feed=duplicate")
    config, folder = compose_config("train", TrainConfig, words)
    with pytest.MonkeyPatch.context() as patch:
        if other and fault in ("code", "torch"):
            known = trainer.versions() | {fault: "another"}
            patch.setattr(trainer, "versions", lambda: known)
        if other and fault == "batch":
            as_ever = augmentation.epoch_order
            patch.setattr(
                augmentation, "epoch_order", lambda n, seed, epoch: as_ever(n, seed + 1, epoch)
            )
        try:
            trainer.Trainer(config, mesh, folder).run()
        except RunError as error:
            return str(error)
    return ""


def one_after_another(store: str, run_dir: str, names: list[str]) -> list[str]:
    return [diverging(name, store, run_dir) for name in names]


def test_a_rank_that_diverges_is_refused_by_all_in_these_words(
    photos_store: Store, tmp_path: Path
) -> None:
    names = ["seed", "code", "torch", "batch"]
    said = run_ranks(2, one_after_another, str(photos_store.root), str(tmp_path / "run"), names)
    assert said[0] == said[1]
    versions = trainer.versions()
    for name, text in zip(names, said[0], strict=True):
        text = text.replace(versions["code"], "…").replace(versions["torch"], "…")
        if name == "batch":
            text = re.sub(r"\d{5,}", "…", text)
        assert text == faults.FAULTS[name].then


def undisturbed(store: str, run_dir: str, more: list[str]) -> None:
    mesh = init_mesh(2, device="cpu")
    config, folder = compose_config("train", TrainConfig, tiny(store, run_dir, *more))
    trainer.Trainer(config, mesh, folder).run()


def weights(run_dir: Path) -> dict[str, Tensor]:
    return load_trained(run_dir, Device.cpu).model.full_state_dict()


def test_a_rank_killed_under_torchrun_starts_again_and_nothing_is_lost(
    photos_store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, whole, cut = str(photos_store.root), tmp_path / "whole", tmp_path / "cut"
    more = ["schedule.epochs=10", "checkpoint.every_epochs=2"]
    run_ranks(2, undisturbed, store, str(whole), more)
    monkeypatch.setenv("MAX_RESTARTS", "1")
    program, mark = start([TORCHRUN_SCRIPT, *tiny(store, str(cut), *more)], tmp_path)
    until(lambda: manifest.latest(cut) is not None)
    os.kill(torchrun_rank(mark, 1), signal.SIGKILL)
    ended = finish(program, mark)
    assert (ended.code, ended.left) == (0, [])
    assert "alexnet2012: rank 1 ended: it" in ended.err
    assert (cut / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    found, expected = weights(cut), weights(whole)
    assert all(torch.equal(found[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("shared", "words", "said"),
    [
        ("True", ["hydra.run.dir=run"], "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=0: must be 1"),
        ("False", [], "hydra.run.dir=None: restarts resume"),
    ],
)
def test_restarts_that_would_hang_or_begin_anew_are_refused(
    monkeypatch: pytest.MonkeyPatch, shared: str, words: list[str], said: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", shared)
    _check_restarts(words)  # without restarts anything goes
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    with pytest.raises(ConfigError, match=said):
        _check_restarts(words)


def until(happened: Callable[[], bool]) -> None:
    waiting_until = time.monotonic() + 100
    while not happened():
        assert time.monotonic() < waiting_until
        time.sleep(0.05)


def test_the_docs_show_the_table_of_what_is_tried_here() -> None:
    page = faults.PAGE.read_text(encoding="utf-8")
    assert page == faults.written(page), "run: python tests/faults.py"
    for fault in faults.FAULTS.values():
        assert fault.test in faults.tests_of(fault.where), fault.test
