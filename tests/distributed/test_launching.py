"""The processes that a command launches, and the process that launches them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from alexnet2012 import init_mesh
from alexnet2012.distributed.launch import launch


def count_threads(folder: Path) -> None:
    Path(folder, os.environ["RANK"]).write_text(str(torch.get_num_threads()))


@pytest.mark.usefixtures("launched_soon")
def test_processes_share_the_cores_between_them(tmp_path: Path) -> None:
    """Two processes with a thread on every core each wait for each other in every loop."""
    launch(count_threads, 2, tmp_path)
    each = max(1, len(os.sched_getaffinity(0)) // 2)
    assert [Path(tmp_path, str(rank)).read_text() for rank in range(2)] == [str(each)] * 2


def close_mesh(folder: Path) -> None:
    mesh = init_mesh(2, device="cpu")
    store = mesh.watchdog._store
    assert store is not None
    check, within = type(store).check, threading.Event()

    def slow(self: object, keys: list[str]) -> bool:
        within.set()
        time.sleep(0.5)
        return check(self, keys)  # type: ignore[arg-type]

    type(store).check = slow  # type: ignore[method-assign]
    within.clear()
    assert within.wait(20)  # the thread is in the store's code
    watching = [thread.name for thread in threading.enumerate()]
    mesh.close()
    left = [thread.name for thread in threading.enumerate()]
    Path(folder, os.environ["RANK"]).write_text(f"{watching.count('watchdog')} {left}")


@pytest.mark.usefixtures("launched_soon")
def test_closing_a_mesh_ends_the_thread_of_its_watchdog(tmp_path: Path) -> None:
    """Within torch's C++ code at the interpreter's exit, it would abort the process."""
    launch(close_mesh, 2, tmp_path)
    for rank in range(2):
        text = Path(tmp_path, str(rank)).read_text()
        assert text.startswith("1 ") and "watchdog" not in text, text


def test_a_launching_process_imports_neither_torch_nor_dali() -> None:
    """Its ranks do, once; together with them it would double the time until the first step."""
    code = "import sys, alexnet2012.train; print({'torch', 'nvidia.dali'} & {*sys.modules})"
    printed = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True).stdout
    assert printed.strip() == b"set()"


SERVER = """
import time
from multiprocessing import forkserver
from alexnet2012.distributed.launch import start_fork_server
start_fork_server(["slow_to_import"])
print(forkserver._forkserver._forkserver_pid, flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_a_fork_server_that_is_importing_ends_with_its_launcher_silently(
    tmp_path: Path, number: signal.Signals
) -> None:
    started = tmp_path / "started"
    slow = f"import pathlib, time; pathlib.Path({str(started)!r}).touch(); time.sleep(60)"
    (tmp_path / "slow_to_import.py").write_text(slow)
    environ = os.environ | {"PYTHONPATH": f"{tmp_path}:{os.environ.get('PYTHONPATH', '')}"}
    with subprocess.Popen(
        [sys.executable, "-c", SERVER],
        env=environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as launcher:
        assert launcher.stdout is not None
        server = int(launcher.stdout.readline())
        wait_until(started.exists)
        os.killpg(launcher.pid, number) if number == signal.SIGINT else launcher.kill()
        printed = launcher.communicate(timeout=30)[1]
    wait_until(lambda: not Path(f"/proc/{server}").exists())
    assert "slow_to_import" not in printed


def wait_until(condition: Callable[[], bool], timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)
