"""Processes of one machine listen on loopback only, and need no host name."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from attackers import (
    OLD_ADDRESS,
    WITHOUT_A_NAME,
    assert_on_loopback,
    is_a_store,
    listeners,
    on_a_renamed_machine,
)
from programs import TINY, module

from alexnet2012.data.store import Store

COMMANDS = {
    "train": module("train", *TINY, "max_steps=12", "schedule.epochs=12"),  # time for the attack
    "doctor": module("doctor", "mesh.device=cpu"),
    "plan": module("plan", "mesh.device=cpu", "model=small", "batch=8"),
}


def command(name: str, store: Store, run_dir: Path) -> list[str]:
    more = [f"data.store={store.root}", f"hydra.run.dir={run_dir}"]
    return [*COMMANDS[name], *(more if name == "train" else [])]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_listens_on_loopback_only_and_no_store_behind_a_port_answers_an_attacker(
    name: str, photos_store: Store, tmp_path: Path
) -> None:
    """Its ranks do, connected by gloo; a TCP store of torch would unpickle what it receives.

    The machine's own name does not resolve, or to an old address, where the user may set it.
    """
    renamed = on_a_renamed_machine(tmp_path, OLD_ADDRESS if name == "train" else WITHOUT_A_NAME)
    sockets = listeners([*renamed, *command(name, photos_store, tmp_path / "run")], tmp_path)
    assert_on_loopback(sockets)
    assert all(line.startswith("rank ") for line, _, _ in sockets), sockets


def test_a_socket_on_all_interfaces_is_detected(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"
    ((_, address, _),) = listeners([sys.executable, "-c", code], tmp_path)
    assert not ipaddress.ip_address(address).is_loopback


def test_a_store_is_recognised() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert is_a_store(store.port)
