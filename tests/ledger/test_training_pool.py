"""Trainings in child processes: in order, so many at a time, on their share of the cores."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger import training_pool
from alexnet2012.ledger.training_pool import core_shares, run_all

ONE = [frozenset[int]()]  # one at a time, on any core
CORES = sorted(os.sched_getaffinity(0))
TWO = [frozenset(CORES[:1]), frozenset(CORES[1:2])]
needs_two_cores = pytest.mark.skipif(len(CORES) < 2, reason="needs two cores")


@pytest.fixture
def two_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {4, 7})
    monkeypatch.setattr(training_pool, "has_gpu_driver", lambda: False)


def test_cores_are_divided_among_the_jobs(two_cores: None) -> None:
    assert core_shares("1") == [{4, 7}]
    assert core_shares("2") == core_shares("auto") == [{4}, {7}]
    for jobs in ("0", "3", "-1", "many", "1.5", ""):
        with pytest.raises(ConfigError, match=f"jobs={jobs}: must be 1 to 2, the number of cores"):
            core_shares(jobs)


def test_a_gpu_has_one_run_at_a_time(two_cores: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(training_pool, "has_gpu_driver", lambda: True)
    assert core_shares("auto") == [{4, 7}]


def test_children_start_in_order_and_those_that_fail_are_returned(tmp_path: Path) -> None:
    file = tmp_path / "order"
    commands = [["sh", "-c", f"echo {n} >> {file}; exit {int(n == 2)}"] for n in range(4)]
    assert run_all(commands, ONE, tmp_path / "log") == [commands[2]]
    assert file.read_text().split() == ["0", "1", "2", "3"]


@needs_two_cores
def test_each_concurrent_child_may_use_only_its_cores(tmp_path: Path) -> None:
    ask = "import os, sys; open(sys.argv[1], 'w').write(str(sorted(os.sched_getaffinity(0))))"
    files = [tmp_path / str(n) for n in range(2)]
    commands = [[sys.executable, "-c", f"{ask}; print('done')", str(file)] for file in files]
    assert run_all(commands, TWO, tmp_path / "runs" / "log") == []
    assert sorted(file.read_text() for file in files) == sorted(str([*share]) for share in TWO)
    assert (tmp_path / "runs" / "log").read_text() == "done\ndone\n"


@needs_two_cores
def test_two_run_at_once(tmp_path: Path) -> None:
    """Each child ends well only if it sees the other within five seconds."""
    meet = "touch $0; for i in $(seq 100); do [ -e $1 ] && exit 0; sleep .05; done; exit 1"
    files = str(tmp_path / "a"), str(tmp_path / "b")
    commands = [["sh", "-c", meet, *pair] for pair in (files, files[::-1])]
    assert run_all(commands, TWO, tmp_path / "log") == []
    for file in files:
        Path(file).unlink()
    assert run_all(commands, ONE, tmp_path / "log") == [commands[0]]


def test_an_interruption_ends_the_children_after_they_have_saved(tmp_path: Path) -> None:
    program = (
        "import sys, pathlib\n"
        "from alexnet2012.ledger.training_pool import run_all\n"
        "root = pathlib.Path(sys.argv[1])\n"
        "child = f'trap \"echo saved > {root}/saved; exit 1\" TERM; touch {root}/started; '\n"
        "child += 'while :; do sleep .05; done'\n"
        "run_all([['sh', '-c', child]], [frozenset()], root / 'log')\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program, str(tmp_path)])
    give_up_s = time.monotonic() + 20
    while not (tmp_path / "started").exists() and time.monotonic() < give_up_s:
        time.sleep(0.02)
    parent.send_signal(signal.SIGINT)
    assert parent.wait(20) != 0
    assert (tmp_path / "saved").read_text() == "saved\n"


def test_a_training_ends_with_the_reproduction_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    reproduction = os.fork()
    if reproduction == 0:
        command = ["sh", "-c", f"echo $$ > {file}.new; mv {file}.new {file}; sleep 60"]
        run_all([command], ONE, tmp_path / "log")
        os._exit(0)
    while not file.exists():
        time.sleep(0.01)
    os.kill(reproduction, signal.SIGKILL)
    os.waitpid(reproduction, 0)
    training = Path("/proc", file.read_text().strip())
    give_up_s = time.monotonic() + 10
    while training.exists() and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not training.exists()
