"""launch/slurm.sbatch with fakes of Slurm's two commands: both nodes are this machine.

Everything else is real: each node runs torchrun.sh and one rank, which connect over TCP.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from programs import REPOSITORY, run, succeed
from test_train import overrides, train_ranks

from alexnet2012.data.store import Store

SCRIPT = str(REPOSITORY / "launch" / "slurm.sbatch")
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames two[1-2]" ] && printf 'localhost\\nelsewhere\\n'
"""
# Each node has one core: convolutions' gradients depend on the number of threads.
FIRST_CORE, LAST_CORE = min(os.sched_getaffinity(0)), max(os.sched_getaffinity(0))
SRUN = f"""#!/bin/sh
[ "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=3" ] || exit 9
shift 2
taskset --cpu-list {FIRST_CORE} "$@" & one=$!
taskset --cpu-list {LAST_CORE} "$@" || exit $?
wait $one
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    tools = tmp_path / "bin"
    tools.mkdir()
    for name, text in (("scontrol", SCONTROL), ("srun", SRUN)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SLURM_JOB_NODELIST", "two[1-2]")
    monkeypatch.setenv("SLURM_JOB_NUM_NODES", "2")
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "1")
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "3")
    monkeypatch.setenv("SLURM_JOB_ID", "41")
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(REPOSITORY))
    monkeypatch.setenv("PORT", str(port))
    return tmp_path


def test_towers_on_two_nodes_train_like_two_on_one(slurm: Path, photos_store: Store) -> None:
    one, two = slurm / "one", slurm / "two"
    few = ("schedule.epochs=1", "data.limit=4")
    train_ranks(2, photos_store, one, *few)
    succeed(["bash", SCRIPT, *overrides(photos_store, two, *few)], slurm)
    assert (one / "metrics.jsonl").read_bytes() == (two / "metrics.jsonl").read_bytes()


def test_a_script_that_cannot_find_the_repository_names_the_variable_to_set(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(slurm))
    ended = run(["bash", SCRIPT], slurm)
    assert ended.code == 2
    assert "set ALEXNET2012 to it" in ended.err
