"""launch/slurm.sbatch, with stand-ins for Slurm's two commands: two nodes that are one machine.

Everything below them is real: on each node torchrun.sh and one rank, which meet over TCP.
"""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest
from documented import printed
from programs import REPOSITORY, TINY, run, succeed

from alexnet2012.data.store import Store

SCRIPT = str(REPOSITORY / "launch" / "slurm.sbatch")
SCONTROL = """#!/bin/sh
[ "$*" = "show hostnames two[1-2]" ] && printf 'localhost\\nelsewhere\\n'
"""
SRUN = """#!/bin/sh
[ "$1 $2" = "--kill-on-bad-exit=1 --cpus-per-task=3" ] || exit 9
shift 2
"$@" & one=$!
"$@" || exit $?
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
    words = [f"data.store={photos_store.root}", "schedule.epochs=1", "data.limit=4"]
    (script,) = printed("launch/cpu.sh")
    given = ("schedule=", "data.batch_size=", "mesh.device=")  # in the script
    small = [word for word in TINY if not word.startswith(given)]
    one, two = (f"hydra.run.dir={slurm / name}" for name in ("one", "two"))
    succeed([str(REPOSITORY / script), *words, *small, one], slurm)
    succeed(["bash", SCRIPT, *words, *TINY, "recipe=code145", two], slurm)
    one, two = ((slurm / name / "metrics.jsonl").read_bytes() for name in ("one", "two"))
    assert one == two


def test_a_script_that_cannot_find_the_others_says_what_to_set(
    slurm: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_SUBMIT_DIR", str(slurm))
    ended = run(["bash", SCRIPT], slurm)
    assert ended.code == 2
    assert "set ALEXNET2012 to it" in ended.err
