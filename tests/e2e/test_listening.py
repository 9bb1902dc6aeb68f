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
from programs import TINY, Ended, finish, listening, module, start

from alexnet2012.data.store import Store

WITHOUT_A_NAME = ["unshare", "-u", "bash", "-c", 'hostname no-such-host-xyz && exec "$@"', "-"]
# The address of another machine, as after a machine has moved: it answers to nobody.
OLD_ADDRESS = [
    *("unshare", "-u", "-m", "bash", "-c"),
    'hostname no-such-host-xyz && cat /etc/hosts - > hosts <<< "10.9.9.9 no-such-host-xyz" && '
    'mount --bind hosts /etc/hosts && exec "$@"',
    "-",
]
COMMANDS = {
    "train": module("train", *TINY, "max_steps=12", "schedule.epochs=12"),  # time for the attack
    "doctor": module("doctor", "mesh.device=cpu"),
    "plan": module("plan", "mesh.device=cpu", "model=small", "batch=8"),
}


def on_a_renamed_machine(cwd: Path, renamed: list[str]) -> list[str]:
    """What goes before a command; nothing where the user may not name the machine."""
    tried = subprocess.run([*renamed, "true"], cwd=cwd, capture_output=True)
    return renamed if tried.returncode == 0 else []


def command(name: str, store: Store, run_dir: Path) -> list[str]:
    more = [f"data.store={store.root}", f"hydra.run.dir={run_dir}"]
    return [*COMMANDS[name], *(more if name == "train" else [])]


def listeners(command_line: list[str], cwd: Path) -> tuple[set[tuple[str, str, int]], Ended]:
    """Sockets that listened at any time during a command: command line, address, port.

    Each port is attacked as soon as it listens; the command must survive that.
    """
    program, mark = start(command_line, cwd)
    sockets: set[tuple[str, str, int]] = set()
    while program.poll() is None:
        for socket in listening(mark) - sockets:
            sockets.add(socket)
            assert not is_a_store(socket[2]), socket
        time.sleep(0.02)
    ended = finish(program, mark)
    assert ended.code == 0, ended.err
    return sockets, ended


def is_a_store(port: int) -> bool:
    """Whether torch's key-value store answers there: its rendezvous unpickles what is set in it."""
    try:
        dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1))
    except (RuntimeError, ValueError):
        return False
    return True


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_listens_on_loopback_only_and_no_store_behind_a_port_answers_an_attacker(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    """Its ranks do, connected by gloo; a TCP store of torch would unpickle what it receives.

    The machine's own name does not resolve, or to an old address, where the user may set it.
    """
    renamed = on_a_renamed_machine(tmp_path, OLD_ADDRESS if name == "train" else WITHOUT_A_NAME)
    sockets, _ = listeners([*renamed, *command(name, photos_store, tmp_path / "run")], tmp_path)
    assert_on_loopback(sockets)
    assert all(line.startswith("rank ") for line, _, _ in sockets), sockets


def assert_on_loopback(sockets: set[tuple[str, str, int]]) -> None:
    assert len(sockets) >= 1  # the ranks: the test can see them
    assert all(ipaddress.ip_address(address).is_loopback for _, address, _ in sockets), sockets


def test_a_socket_on_all_interfaces_is_detected(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"
    ((_, address, _),), _ = listeners([sys.executable, "-c", code], tmp_path)
    assert not ipaddress.ip_address(address).is_loopback


def test_a_store_is_recognised() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert is_a_store(store.port)
