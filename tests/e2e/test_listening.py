"""Processes of one machine listen on loopback only, and need no host name."""

from __future__ import annotations

import ipaddress
import sys
from pathlib import Path

import pytest
import torch.distributed as dist
from attackers import (
    WITHOUT_A_NAME,
    assert_ranks_on_loopback,
    is_a_store,
    listeners,
    on_a_renamed_machine,
)
from programs import module

COMMANDS = {
    "doctor": module("doctor", "mesh.device=cpu"),
    "plan": module("plan", "mesh.device=cpu", "model=small", "batch=8"),
}


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_listens_on_loopback_only_and_no_store_behind_a_port_answers_an_attacker(
    name: str, tmp_path: Path
) -> None:
    """Training is tested in test_process_env.py. The machine's own name does not resolve."""
    renamed = on_a_renamed_machine(tmp_path, WITHOUT_A_NAME)
    assert_ranks_on_loopback(listeners([*renamed, *COMMANDS[name]], tmp_path))


def test_a_socket_on_all_interfaces_is_detected(tmp_path: Path) -> None:
    code = "import socket, time; s = socket.create_server(('', 0)); time.sleep(1)"
    ((_, address, _),) = listeners([sys.executable, "-c", code], tmp_path)
    assert not ipaddress.ip_address(address).is_loopback


def test_a_store_is_recognised() -> None:
    store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    assert is_a_store(store.port)
