"""Processes of one machine are reached by that machine alone, and need no name for it."""

from __future__ import annotations

import ipaddress
import subprocess
import sys
import time
from pathlib import Path

import pytest
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


def heard(words: list[str], cwd: Path) -> set[tuple[str, str]]:
    """Whoever took connections at any time of a command that ends well, and where."""
    program, mark = start(words, cwd)
    found = set()
    while program.poll() is None:
        found |= listening(mark)
        time.sleep(0.02)
    ended = finish(program, mark)
    assert ended.code == 0, ended.err
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_nobody_outside_can_reach_what_a_command_starts(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    """All are ranks, whose tensors gloo exchanges; a store of torch's would unpickle what comes."""
    found = heard(command(name, photos_store, tmp_path / "run"), tmp_path)
    assert len(found) >= 1  # the ranks: this test sees them
    assert all(ipaddress.ip_address(address).is_loopback for _, address in found), found
    if name != "torchrun":
        assert all("spawn_main" in line for line, _ in found), found


def test_a_socket_that_all_can_reach_is_seen(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"
    ((_, address),) = heard([sys.executable, "-c", code], tmp_path)
    assert not ipaddress.ip_address(address).is_loopback


@pytest.mark.parametrize("name", ["train", "torchrun", "doctor"])
def test_a_machine_whose_own_name_leads_nowhere_trains_as_any(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    if subprocess.run([*WITHOUT_A_NAME, "true"], capture_output=True).returncode != 0:
        pytest.skip("this user may not give a process another host name")
    succeed([*WITHOUT_A_NAME, *command(name, photos_store, tmp_path / "run")], tmp_path)
