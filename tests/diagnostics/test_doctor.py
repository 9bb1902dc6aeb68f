"""The checks of the doctor find faults, and name a remedy for each."""

from __future__ import annotations

import json
import os
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
from alexnet2012.distributed import devices
from alexnet2012.distributed.devices import _warn_on_cpu, uses_gpus
from alexnet2012.distributed.mesh import single_process
from alexnet2012.distributed.process_env import TORCHRUN_KEYS, rank_env
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.optim import PaperSGD

TORCHRUN_0 = dict.fromkeys(TORCHRUN_KEYS, "0") | {"WORLD_SIZE": "2"}
Usage = namedtuple("Usage", "total used free")


def test_the_tested_versions_are_ok_and_others_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    assert all(check().level is Severity.ok for check in machine_checks.package_versions())
    for installed, level in (("2.12.1", Severity.wrong), ("2.14.0+cu130", Severity.warning)):
        monkeypatch.setattr(machine_checks, "version", lambda _, installed=installed: installed)
        finding = machine_checks.package_version("torch")
        assert (finding.level, finding.message) == (level, installed)
        assert "pip install" in finding.remedy


def test_the_dali_check_compares_with_another_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = single_process()
    assert machine_checks.dali(mesh).level is Severity.ok
    monkeypatch.setattr(machine_checks, "decode_jpeg", lambda encoded: 0)  # a different result
    assert machine_checks.dali(mesh).level is Severity.wrong


def test_help_refers_to_the_settings_of_train(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["doctor", "--help"])
    doctor.main()
    assert "Settings: python -m alexnet2012.train --help" in capsys.readouterr().out


def test_the_normalisation_check_runs_forward_and_backward(monkeypatch: pytest.MonkeyPatch) -> None:
    mesh = single_process()
    assert machine_checks.normalisation(mesh).level is Severity.ok

    def without_a_compiler(*_: object) -> None:
        raise RuntimeError("Failed to find C compiler")

    monkeypatch.setattr(machine_checks, "local_response_norm", without_a_compiler)
    finding = machine_checks.normalisation(mesh)
    assert (finding.level, finding.message) == (Severity.wrong, "Failed to find C compiler")
    assert "python3-dev" in finding.remedy


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
        with pytest.raises(ConfigError, match="2 processes need 2 GPUs, 1 is visible; use cpu"):
            uses_gpus(Device(kind), processes)
        return
    assert uses_gpus(Device(kind), processes) is used
    on_cpu = kind == "auto" and 0 < gpus < processes
    assert ("running on the CPU: 2 processes need 2 GPUs, 1 is visible" in caplog.text) == on_cpu


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
def test_one_process_of_a_run_warns_once_that_it_runs_on_the_cpu(
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
    assert caplog.text.count("running on the CPU") == times


def with_gpus(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    """A machine with a driver and so many GPUs, on which no warning was printed yet."""
    monkeypatch.setattr(devices, "GPU_FILES", (os.devnull,))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    _warn_on_cpu.cache_clear()


@pytest.mark.parametrize(
    ("free", "level"),
    [(100 * GIB, Severity.ok), (2 * GIB, Severity.warning), (1000, Severity.wrong)],
)
def test_free_disk_space_decides_the_severity(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, free: int, level: Severity
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(free, 0, free))
    finding = machine_checks.disk(tmp_path / "runs" / "not there yet")
    assert finding.level is level
    assert bool(finding.remedy) == (level is not Severity.ok)


def test_an_unwritable_folder_is_wrong() -> None:
    finding = machine_checks.disk(Path("/proc/runs"))
    assert finding.level is Severity.wrong
    assert "hydra.run.dir" in finding.remedy


def test_a_store_is_verified_and_a_changed_file_is_found(
    photos_store: Store, tmp_path: Path
) -> None:
    finding = machine_checks.store(photos_store.root)
    assert (finding.level, finding.message.split(";")[0]) == (
        Severity.ok,
        "96 train and 48 val images of 16 classes",
    )
    assert machine_checks.store(tmp_path / "none").level is Severity.warning
    root = tmp_path / "store"
    shutil.copytree(photos_store.root, root)
    victim = Path(Store.open(root).split("train").paths[0])
    data = bytearray(victim.read_bytes())
    data[-3] ^= 1
    victim.write_bytes(data)
    assert str(victim) in machine_checks.store(root).message
    (root / "train.tsv").write_text("")
    assert "do not match their checksums" in machine_checks.store(root).remedy


def test_a_checkpoint_is_verified_and_a_truncated_one_is_found(tmp_path: Path) -> None:
    net = AlexNet("paper", 2, model=ModelConfig(width=1 / 24, input_size=64))
    folder = tmp_path / "run" / "checkpoints" / "step-0000003"
    optimizer = PaperSGD(net, load_recipe("paper").optimizer)
    mean = np.zeros((8, 8, 3), np.float32)
    checkpoint.save(folder, TrainingState.of(net, optimizer, Progress(3, 1), mean), net.mesh)
    assert (
        machine_checks.checkpoint(tmp_path / "run").message
        == "step-0000003: step 3, checksums verified"
    )
    (file,) = folder.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    assert f"checksum of {file.name} does not match" in machine_checks.checkpoint(folder).message
    assert machine_checks.checkpoint(tmp_path).level is Severity.wrong


def test_an_exception_in_a_check_is_a_finding() -> None:
    def broken() -> Finding:
        raise OSError("disk on fire")

    finding = machine_checks.run_check(broken)
    assert (finding.level, finding.message) == (Severity.wrong, "disk on fire")


def test_the_doctor_reports_every_check_and_exits_with_1_on_a_fault(
    photos_store: Store, tmp_path: Path
) -> None:
    command = printed("python -m alexnet2012.doctor data=store data.store=STORE checkpoint=RUN")
    places = {"data.store=STORE": f"data.store={photos_store.root}"}
    places["checkpoint=RUN"] = f"checkpoint={tmp_path}"
    words = [places.get(word, word) for word in command]
    ended = run([*words, "mesh.device=cpu", "--json"], tmp_path)
    said = "checking this machine\n"
    assert (ended.code, ended.err, ended.left) == (1, said, [])
    by_check = {row["check"]: row for row in json.loads(ended.out)}
    wrong = [name for name, row in by_check.items() if row["level"] == "wrong"]
    assert wrong == ["checkpoint"]
    assert {"device", "torch", "DALI", "store", "disk", "commit", "exchange of conv3"} <= {
        *by_check
    }
    assert "MB/s" in by_check["exchange of conv3"]["said"]
    assert list(tmp_path.iterdir()) == []
