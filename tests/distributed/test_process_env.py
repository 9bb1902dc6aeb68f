"""Variables that a job system sets in every container do not make a process a rank."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest
from attackers import (
    OLD_ADDRESS,
    assert_ranks_on_loopback,
    listeners,
    on_a_renamed_machine,
)
from programs import TINY, finish, module, run, start, succeed

from alexnet2012 import init_mesh
from alexnet2012.cli.errors import EVERY_RANK_REPORTS, exit_on_error
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.store import Store
from alexnet2012.distributed import rendezvous
from alexnet2012.distributed.process_env import (
    LOCAL_PROCESSES,
    TORCHRUN,
    TORCHRUN_KEYS,
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
# What launchers and job systems set in the processes that they start, here the second of four.
JOB_SYSTEMS = {
    "any": JOB_ENV,
    "Slurm": {
        "SLURM_JOB_ID": "7",
        "SLURM_PROCID": "1",
        "SLURM_LOCALID": "1",
        "SLURM_NODEID": "0",
        "SLURM_NTASKS": "4",
        "SLURM_JOB_NUM_NODES": "2",
        "SLURM_JOB_NODELIST": "gone[1-2]",
        "SLURM_STEP_ID": "0",
    },
    "Open MPI": {
        "OMPI_COMM_WORLD_RANK": "1",
        "OMPI_COMM_WORLD_SIZE": "4",
        "OMPI_COMM_WORLD_LOCAL_RANK": "1",
        "OMPI_COMM_WORLD_LOCAL_SIZE": "4",
    },
    "MPICH, Intel MPI": {
        "PMI_RANK": "1",
        "PMI_SIZE": "4",
        "PMI_FD": "5",
        "MPI_LOCALRANKID": "1",
        "MPI_LOCALNRANKS": "4",
    },
    "PMIx": {"PMIX_RANK": "1", "PMIX_NAMESPACE": "7.0", "PMIX_SIZE": "4"},
    "MVAPICH": {"MV2_COMM_WORLD_RANK": "1", "MV2_COMM_WORLD_SIZE": "4"},
    "PBS": {"PBS_JOBID": "7", "PBS_NODENUM": "1", "PBS_TASKNUM": "2", "NCPUS": "1"},
    "Grid Engine": {"JOB_ID": "7", "SGE_TASK_ID": "2", "NSLOTS": "1"},
    "LSF": {"LSB_JOBID": "7", "LSF_PM_TASKID": "2", "LSB_HOSTS": "gone1 gone2"},
    "Kubeflow": JOB_ENV | {"PET_NNODES": "2", "PET_NODE_RANK": "1", "PET_NPROC_PER_NODE": "2"},
    "SageMaker": JOB_ENV | {"SM_HOSTS": '["a","b"]', "SM_CURRENT_HOST": "b", "SM_NUM_GPUS": "2"},
    "Azure": JOB_ENV | {"AZ_BATCHAI_TASK_INDEX": "1", "NODE_RANK": "1", "CROSS_RANK": "1"},
    # Left over in a shell from torchrun.
    "torchrun without its run": JOB_ENV | {"GROUP_RANK": "0", "TORCHELASTIC_MAX_RESTARTS": "3"},
    "torchrun's run alone": JOB_ENV | {TORCHRUN: "gone"},
}
AS_TORCHRUN = dict.fromkeys(TORCHRUN_KEYS, "0") | JOB_ENV
# Of machines with several networks.
ODD = "#1 (a=b) [数据]~"
NETWORKS = {"GLOO_SOCKET_IFNAME": "gone0", "NCCL_SOCKET_IFNAME": "gone0", "LC_ALL": "C"}


@pytest.fixture(autouse=True)
def _no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    systems = {key for variables in JOB_SYSTEMS.values() for key in variables}
    for key in (*systems, *rank_env(0, 2, ""), *TORCHRUN_KEYS):
        monkeypatch.delenv(key, raising=False)


@pytest.fixture
def job_env(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of a job's container."""
    for key, value in JOB_ENV.items():
        monkeypatch.setenv(key, value)


@pytest.mark.parametrize("name", JOB_SYSTEMS)
def test_what_a_job_system_sets_makes_no_process_a_rank(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for key, value in JOB_SYSTEMS[name].items():
        monkeypatch.setenv(key, value)
    assert (launched_process(), current_process(), under_torchrun()) == (None, ProcessInfo(), False)
    assert local_processes(2) == 2


@pytest.mark.usefixtures("job_env")
def test_rank_variables_count_only_with_the_variable_of_a_launcher(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert (launched_process(), current_process(), under_torchrun()) == (None, ProcessInfo(), False)
    assert local_processes(2) == 2
    monkeypatch.setenv(LOCAL_PROCESSES, "3")
    assert local_processes(2) == 3
    with monkeypatch.context() as patch:
        for key, value in AS_TORCHRUN.items():
            patch.setenv(key, value)
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
    ("variables", "same", "times"),
    [
        ({}, True, 1),
        (AS_TORCHRUN | {"LOCAL_RANK": "0"}, True, 1),  # of each machine
        (AS_TORCHRUN, True, 0),
        (AS_TORCHRUN, False, 1),  # a command that torchrun's ranks run each for itself
        (AS_TORCHRUN | {EVERY_RANK_REPORTS: "1"}, True, 1),
    ],
)
def test_a_user_error_is_printed_once_per_machine(
    variables: dict[str, str],
    same: bool,
    times: int,
    job_env: None,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    for key, value in variables.items():
        monkeypatch.setenv(key, value)

    def application() -> None:
        raise ConfigError("foo", "bar", "no such key")

    with pytest.raises(SystemExit) as ending:
        exit_on_error(application, same_on_all_ranks=same)
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


@pytest.mark.parametrize("mesh", ["one_process", "two_towers"])
def test_a_run_in_a_container_of_a_job_starts_its_own_processes_on_loopback(
    mesh: str, monkeypatch: pytest.MonkeyPatch, photos_store: Store, tmp_path: Path
) -> None:
    """Paths with special characters, relative to where the command is given, are found.

    Two towers listen on loopback only, and the machine's own name has an old address.
    """
    monkeypatch.setattr("programs.UNDER_A_LAUNCHER", ())
    for variables in (*JOB_SYSTEMS.values(), NETWORKS):
        for key, value in variables.items():
            monkeypatch.setenv(key, value)
    (tmp_path / f"store {ODD}").symlink_to(photos_store.root)
    overrides = (
        f"mesh={mesh}",
        f"data.store=store {ODD}",
        f"hydra.run.dir=run {ODD}",
        "hydra.job.chdir=true",
    )
    steps = ("max_steps=12", "schedule.epochs=12")  # time for the attack
    command = module("train", *TINY, *steps, *overrides)
    if mesh == "one_process":
        ended = succeed(command, tmp_path)
        assert f"run directory: {tmp_path}/run {ODD}\n" in ended.out
    else:
        renamed = on_a_renamed_machine(tmp_path, OLD_ADDRESS)
        assert_ranks_on_loopback(listeners([*renamed, *command], tmp_path))
    assert (tmp_path / f"run {ODD}" / "summary.json").is_file()


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
@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("WORLD_SIZE", "four", "WORLD_SIZE=four: must be a number"),
        ("RANK", "-1", "RANK=-1: must be a number"),
        ("LOCAL_RANK", "", "LOCAL_RANK=None: must be set together with WORLD_SIZE=4"),
    ],
)
def test_a_rank_that_is_no_number_is_reported(
    key: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(key, value)
    with pytest.raises(ConfigError, match=f"^{message}"):
        init_mesh(2, device="cpu")
    monkeypatch.setenv("WORLD_SIZE", "")
    assert init_mesh(2, device="cpu").world_size == 1


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
