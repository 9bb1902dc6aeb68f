"""Processes of one machine listen on loopback only, and need no host name."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from datetime import timedelta
from pathlib import Path

import pytest
import torch.distributed as dist
from programs import TINY, TORCHRUN_SCRIPT, finish, listening, module, start, succeed

from alexnet2012.data.store import Store

ONE_STEP = (*TINY, "max_steps=1")
WITHOUT_A_NAME = ["unshare", "-u", "bash", "-c", 'hostname no-such-host-xyz && exec "$@"', "-"]
COMMANDS = {
    "train": module("train", *ONE_STEP),
    "torchrun": [TORCHRUN_SCRIPT, *ONE_STEP],
    "doctor": module("doctor", "mesh.device=cpu"),
    "plan": module("plan", "mesh.device=cpu", "model=small", "batch=8"),
}


def command(name: str, store: Store, run_dir: Path) -> list[str]:
    more = [f"data.store={store.root}", f"hydra.run.dir={run_dir}"]
    return [*COMMANDS[name], *(more if name in ("train", "torchrun") else [])]


def listeners(command_line: list[str], cwd: Path) -> set[tuple[str, str, int]]:
    """Sockets that listened at any time during a command: command line, address, port."""
    program, mark = start(command_line, cwd)
    sockets = set()
    while program.poll() is None:
        sockets |= listening(mark)
        time.sleep(0.02)
    ended = finish(program, mark)
    assert ended.code == 0, ended.err
    return sockets


@pytest.mark.parametrize("name", COMMANDS)
def test_the_processes_of_a_command_listen_on_loopback_only(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    """They are ranks, connected by gloo; a TCP store of torch would unpickle what it receives."""
    sockets = listeners(command(name, photos_store, tmp_path / "run"), tmp_path)
    assert len(sockets) >= 1  # the ranks: the test can see them
    assert all(ipaddress.ip_address(address).is_loopback for _, address, _ in sockets), sockets
    if name != "torchrun":
        assert all(line.startswith("rank ") for line, _, _ in sockets), sockets


def test_a_socket_on_all_interfaces_is_detected(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"
    ((_, address, _),) = listeners([sys.executable, "-c", code], tmp_path)
    assert not ipaddress.ip_address(address).is_loopback


def is_a_store(port: int) -> bool:
    """Whether torch's key-value store answers there: its rendezvous unpickles what is set in it."""
    try:
        dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1))
    except (RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", ["train", "torchrun"])
def test_an_attacker_finds_no_store_behind_any_port_and_the_run_survives(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    steps = [*command(name, photos_store, tmp_path / "run"), "max_steps=12", "schedule.epochs=12"]
    program, mark = start(steps, tmp_path)
    tried: set[int] = set()
    while program.poll() is None:
        for _, _, port in listening(mark):
            if port not in tried:
                tried.add(port)
                assert not is_a_store(port)
        time.sleep(0.02)
    ended = finish(program, mark)
    assert tried
    assert ended.code == 0, ended.err


def test_a_store_is_recognised() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert is_a_store(store.port)


@pytest.mark.parametrize("name", ["train", "torchrun", "doctor"])
def test_a_machine_whose_host_name_does_not_resolve_can_train(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    if subprocess.run([*WITHOUT_A_NAME, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not set the host name of a process")
    succeed([*WITHOUT_A_NAME, *command(name, photos_store, tmp_path / "run")], tmp_path)
