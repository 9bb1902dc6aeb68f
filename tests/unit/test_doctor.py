"""The doctor: what is wrong is found, with a remedy, and nothing else is."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path

import numpy as np
import pytest
import torch
from documented import printed
from programs import run

from alexnet2012 import doctor
from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.store import Store
from alexnet2012.diagnostics import machine_checks
from alexnet2012.diagnostics.machine_checks import GIB, Finding, Severity
from alexnet2012.distributed.mesh import _leave_alone, single_process, uses_gpus
from alexnet2012.distributed.process_env import TORCHRUN, rank_env
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.optim import PaperSGD

TORCHRUN_0 = {TORCHRUN: "id", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}
Usage = namedtuple("Usage", "total used free")


def test_the_tested_versions_are_ok_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check().level is Severity.ok for check in machine_checks.versions())
    for here, level in (("2.12.1", Severity.wrong), ("2.14.0+cu130", Severity.warning)):
        monkeypatch.setattr(machine_checks, "version", lambda _, here=here: here)
        found = machine_checks.installed("torch")
        assert (found.level, found.said) == (level, here)
        assert "pip install" in found.remedy


def test_a_pipeline_of_dali_really_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = single_process()
    assert machine_checks.dali(mesh).level is Severity.ok
    monkeypatch.setattr(
        machine_checks, "decode_jpeg", lambda encoded: 0
    )  # another decoder's opinion
    assert machine_checks.dali(mesh).level is Severity.wrong


def test_its_help_says_what_it_takes(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["doctor", "--help"])
    doctor.main()
    assert "Settings: python -m alexnet2012.train --help" in capsys.readouterr().out


def test_normalisation_is_tried_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = single_process()
    assert machine_checks.normalisation(mesh).level is Severity.ok

    def without_a_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(machine_checks, "local_response_norm", without_a_compiler)
    found = machine_checks.normalisation(mesh)
    assert (found.level, found.said) == (Severity.wrong, "Failed to find C compiler")
    assert "python3-dev" in found.remedy


@pytest.mark.parametrize(
    ("kind", "gpus", "processes", "used"),
    [
        ("auto", 0, 2, False),
        ("auto", 1, 2, False),
        ("auto", 2, 2, True),
        ("auto", 1, 1, True),
        ("cpu", 2, 2, False),
        ("cuda", 2, 2, True),
        ("cuda", 1, 2, None),
    ],
)
def test_all_processes_of_a_machine_use_gpus_or_none_does(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kind: str,
    gpus: int,
    processes: int,
    used: bool | None,
) -> None:
    with_gpus(monkeypatch, gpus)
    if used is None:
        with pytest.raises(ConfigError, match="2 processes need a GPU each and 1 are visible"):
            uses_gpus(Device(kind), processes)
        return
    assert uses_gpus(Device(kind), processes) is used
    left_alone = kind == "auto" and 0 < gpus < processes
    assert ("GPUs are left alone: 1 for 2 processes" in caplog.text) == left_alone


@pytest.mark.parametrize(
    ("process", "times"),
    [
        ({}, 1),  # which starts the ranks
        ({**rank_env(0, 2, "file"), FAILURES_DIR: "folder"}, 0),  # one of them
        (TORCHRUN_0, 1),  # of torchrun's
        ({**TORCHRUN_0, "RANK": "1"}, 0),
        ({"RANK": "1"}, 1),  # left by a job system
    ],
)
def test_one_process_of_a_run_says_once_that_gpus_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    process: dict[str, str],
    times: int,
) -> None:
    with_gpus(monkeypatch, 1)
    for key, value in process.items():
        monkeypatch.setenv(key, value)
    for _ in range(2):
        assert not uses_gpus(Device.auto, 2)
    assert caplog.text.count("GPUs are left alone") == times


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A machine of so many, on which nothing was said yet."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    _leave_alone.cache_clear()


@pytest.mark.parametrize(
    ("free", "level"),
    [(100 * GIB, Severity.ok), (2 * GIB, Severity.warning), (1000, Severity.wrong)],
)
def test_room_is_weighed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, level: Severity
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    found = machine_checks.disk(tmp_path / "runs" / "not there yet")
    assert found.level is level
    assert bool(found.remedy) == (level is not Severity.ok)


def test_a_folder_that_cannot_be_written_is_wrong() -> None:
    found = machine_checks.disk(Path("/proc/runs"))
    assert found.level is Severity.wrong
    assert "hydra.run.dir" in found.remedy


def test_a_store_is_counted_and_a_changed_file_is_found(
    photos_store: Store, tmp_path: Path
) -> None:
    found = machine_checks.store(photos_store.root)
    assert (found.level, found.said.split(";")[0]) == (
        Severity.ok,
        "96 train and 48 val pictures of 16 classes",
    )
    assert machine_checks.store(tmp_path / "none").level is Severity.warning
    root = tmp_path / "store"
    shutil.copytree(photos_store.root, root)
    victim = Path(Store.open(root).split("train").paths[0])
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    assert str(victim) in machine_checks.store(root).said
    (root / "train.tsv").write_text("")
    assert "do not belong together" in machine_checks.store(root).remedy


def test_a_checkpoint_is_read_and_one_that_is_cut_short_is_found(tmp_path: Path) -> None:
    net = AlexNet("paper", 2, model=ModelConfig(width=1 / 24, input_size=64))
    folder = tmp_path / "run" / "checkpoints" / "step-0000003"
    optimizer = PaperSGD(net, load_recipe("paper").optimizer)
    mean = np.zeros((8, 8, 3), np.float32)
    checkpoint.save(folder, TrainingState.of(net, optimizer, Progress(3, 1), mean), net.mesh)
    assert (
        machine_checks.saved(tmp_path / "run").said == "step-0000003: step 3, all as it was written"
    )
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert f"checksum of {file.name} does not match" in machine_checks.saved(folder).said
    assert machine_checks.saved(tmp_path).level is Severity.wrong


def test_a_check_that_cannot_be_made_has_found_something() -> None:
    def broken() -> Finding:
        raise OSError("no such luck")

    found = machine_checks.found(broken)
    assert (found.level, found.said) == (Severity.wrong, "no such luck")


def test_the_doctor_tells_every_check_and_ends_with_1_if_something_is_wrong(
    photos_store: Store, tmp_path: Path
) -> None:
    command = printed("python -m alexnet2012.doctor data=store data.store=STORE checkpoint=RUN")
    places = {"data.store=STORE": f"data.store={photos_store.root}"}
    places["checkpoint=RUN"] = f"checkpoint={tmp_path}"
    words = [places.get(word, word) for word in command]
    ended = run([*words, "mesh.device=cpu", "--json"], tmp_path)
    assert (ended.code, ended.err, ended.left) == (1, "", [])
    found = {row["check"]: row for row in json.loads(ended.out)}
    wrong = [name for name, row in found.items() if row["level"] == "wrong"]
    assert wrong == ["checkpoint"]
    assert {"device", "torch", "DALI", "store", "disk", "commit", "exchange of conv3"} <= set(found)
    assert "MB/s" in found["exchange of conv3"]["said"]
    assert list(tmp_path.iterdir()) == []
