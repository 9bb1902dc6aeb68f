"""Who listens while a command runs, and whether an attacker gets in, on machines with odd names."""

from __future__ import annotations

import ipaddress
import subprocess
import time
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist
from programs import finish, listening, start

Sockets = set[tuple[str, str, int]]  # command line, address, port

WITHOUT_A_NAME = ["unshare", "-u", "bash", "-c", 'hostname no-such-host-xyz && exec "$@"', "-"]
# The address of another machine, as after a machine has moved: it answers to nobody.
OLD_ADDRESS = [
    *("unshare", "-u", "-m", "bash", "-c"),
    'hostname no-such-host-xyz && cat /etc/hosts - > hosts <<< "10.9.9.9 no-such-host-xyz" && '
    'mount --bind hosts /etc/hosts && exec "$@"',
    "-",
]


def on_a_renamed_machine(cwd: Path, renamed: list[str]) -> list[str]:
    """What goes before a command; nothing where the user may not name the machine."""
    tried = subprocess.run([*renamed, "true"], cwd=cwd, capture_output=True)
    return renamed if tried.returncode == 0 else []


def listeners(command_line: list[str], cwd: Path) -> Sockets:
    """Sockets that listened at any time during a command.

    Each port is attacked as soon as it listens; the command must survive that.
    """
    program, mark = start(command_line, cwd)
    sockets: Sockets = set()
    while program.poll() is None:
        attack(mark, sockets)
        time.sleep(0.02)
    ended = finish(program, mark)
    assert ended.code == 0, ended.err
    return sockets


def attack(mark: str, sockets: Sockets) -> None:
    """Add the sockets that listen and are not in the set, each of which is attacked."""
    for socket in listening(mark) - sockets:
        sockets.add(socket)
        assert not is_a_store(socket[2]), socket


def is_a_store(port: int) -> bool:
    """Whether torch's key-value store answers there: its rendezvous unpickles what is set in it."""
    try:
        dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=1))
    except (RuntimeError, ValueError):
        return False
    return True


def assert_ranks_on_loopback(sockets: Sockets) -> None:
    """Ranks listen, connected by gloo, and nothing else does."""
    assert_on_loopback(sockets)
    assert all(line.startswith("rank ") for line, _, _ in sockets), sockets


def assert_on_loopback(sockets: set[tuple[str, str, int]]) -> None:
    assert len(sockets) >= 1  # the ranks: the test can see them
    assert all(ipaddress.ip_address(address).is_loopback for _, address, _ in sockets), sockets
