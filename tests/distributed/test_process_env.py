"""Variables that a job system sets in every container do not make a process a rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from programs import TINY, finish, module, run, start, succeed

from alexnet2012 import init_mesh
from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.store import Store
from alexnet2012.distributed import rendezvous
from alexnet2012.distributed.process_env import (
    LOCAL_PROCESSES,
    TORCHRUN,
    ProcessInfo,
    current_process,
    launched_process,
    local_processes,
    rank_env,
    under_torchrun,
)

JOB_ENV = {
    "RANK": "1",
    "LOCAL_RANK": "1",
    "WORLD_SIZE": "4",
    "LOCAL_WORLD_SIZE": "4",
    "MASTER_ADDR": "127.0.0.1",
    "MASTER_PORT": "1",  # no process listens on it
}


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    for key in (*JOB_ENV, *rank_env(0, 2, ""), TORCHRUN):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def job_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job's container."""
    for key, value in JOB_ENV.items():
        monkeypatch.setenv(key, value)


@pytest.mark.usefixtures("job_env")
def test_rank_variables_count_only_with_the_variable_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (launched_process(), current_process(), under_torchrun()) == (None, ProcessInfo(), False)
    assert local_processes(2) == 2
    monkeypatch.setenv(LOCAL_PROCESSES, "3")
    assert local_processes(2) == 3
    with monkeypatch.context() as patch:
        patch.setenv(TORCHRUN, "id")
        assert current_process() == ProcessInfo(
            rank=1, world_size=4, local_rank=1, local_world_size=4
        )
        assert under_torchrun()
        assert local_processes(2) == 4
    for key, value in rank_env(0, 2, "file").items():
        monkeypatch.setenv(key, value)
    assert current_process() == ProcessInfo(rank=0, world_size=2, local_rank=0, local_world_size=2)
    assert not under_torchrun()


@pytest.mark.parametrize(
    ("launcher", "rank", "times"),
    [({}, "1", 1), ({TORCHRUN: "i"}, "0", 1), ({TORCHRUN: "i"}, "1", 0)],
)
def test_a_user_error_is_printed_once(
    launcher: dict[str, str],
    rank: str,
    times: int,
    job_env: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for key, value in {**launcher, "RANK": rank}.items():
        monkeypatch.setenv(key, value)

    def application() -> None:
        raise ConfigError("foo", "bar", "no such key")

    with pytest.raises(SystemExit) as ending:
        exit_on_error(application)
    assert ending.value.code == 2
    assert capfd.readouterr().err == "alexnet2012: foo=bar: no such key\n" * times


@pytest.mark.usefixtures("job_env")
@pytest.mark.parametrize("name", ["train", "prepare", "predict", "doctor", "plan", "reproduce"])
def test_every_command_prints_its_errors_in_a_container_of_a_job(
    name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("programs.UNDER_A_LAUNCHER", ())
    ended = run(module(name, "foo=bar"), tmp_path)
    assert ended.code == 2
    assert ended.err.startswith("alexnet2012: foo: no such key")


@pytest.mark.usefixtures("job_env")
@pytest.mark.parametrize("mesh", ["one_process", "two_towers"])
def test_a_run_in_a_container_of_a_job_starts_its_own_processes(
    mesh: str, monkeypatch: pytest.MonkeyPatch, photos_store: Store, tmp_path: Path
) -> None:
    monkeypatch.setattr("programs.UNDER_A_LAUNCHER", ())
    overrides = (
        f"mesh={mesh}",
        f"data.store={photos_store.root}",
        f"hydra.run.dir={tmp_path / 'run'}",
    )
    succeed(module("train", *TINY, "max_steps=1", *overrides), tmp_path)


@pytest.mark.usefixtures("job_env")
def test_joining_ranks_that_do_not_exist_fails_soon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendezvous, "NO_LAUNCHER_TIMEOUT_S", 1)
    began = time.monotonic()
    message = r"^rank 1 of 4 could not connect to the other ranks at MASTER_ADDR=127"
    with pytest.raises(RunError, match=message):
        init_mesh(2, device="cpu")
    assert time.monotonic() - began < 10
    monkeypatch.delenv("MASTER_ADDR")
    with pytest.raises(
        ConfigError, match="MASTER_ADDR=None: must be set together with WORLD_SIZE=4"
    ):
        init_mesh(2, device="cpu")


@pytest.mark.usefixtures("job_env")
def test_a_process_that_waits_for_other_ranks_handles_signals(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("programs.UNDER_A_LAUNCHER", ())
    code = """
from alexnet2012 import init_mesh
from alexnet2012.cli.errors import exit_on_error
def join():
    print("joins", flush=True)
    init_mesh(2, device="cpu")
exit_on_error(join)
"""
    program, mark = start([sys.executable, "-c", code], tmp_path)
    assert program.stdout is not None
    assert program.stdout.readline() == "joins\n"
    time.sleep(2)  # until it waits
    os.kill(program.pid, signal.SIGTERM)
    began = time.monotonic()
    ended = finish(program, mark)
    assert (ended.code, ended.err) == (128 + signal.SIGTERM, "alexnet2012: interrupted\n")
    assert time.monotonic() - began < 10
