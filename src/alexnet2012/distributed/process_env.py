"""Reads this process's rank and world size from environment variables.

Job systems set RANK and similar variables in every container, so the variables alone do not make a
process a rank: they count only together with the variables that torchrun or our launcher sets.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from alexnet2012.config.schema import ConfigError

TORCHRUN = "TORCHELASTIC_RUN_ID"
# torchrun sets all of these; in the environment of a job, some may be left over or passed on.
TORCHRUN_KEYS = (TORCHRUN, "TORCHELASTIC_RESTART_COUNT", "GROUP_RANK", "RANK", "LOCAL_RANK")
RENDEZVOUS_FILE = "ALEXNET2012_RENDEZVOUS_FILE"  # rendezvous of the ranks of one machine
# Processes per machine of a run that is checked before torchrun starts it.
LOCAL_PROCESSES = "ALEXNET2012_LOCAL_PROCESSES"


@dataclass(frozen=True)
class ProcessInfo:
    """Rank of one process among those launched together; by default a single process."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launched_process() -> ProcessInfo | None:
    """Rank that torchrun or our launcher assigned to this process, or None."""
    ours = RENDEZVOUS_FILE in os.environ and "RANK" in os.environ
    return _from_env() if ours or under_torchrun() else None


def under_torchrun() -> bool:
    return all(key in os.environ for key in TORCHRUN_KEYS)


def current_process() -> ProcessInfo:
    """As :func:`launched_process`, but a single process instead of None."""
    return launched_process() or ProcessInfo()


def joining_process() -> ProcessInfo:
    """Rank of a process that joins explicitly: any launcher may have set the variables (mpirun)."""
    return ProcessInfo() if _number("WORLD_SIZE", "1") == 1 else _from_env()


def require_env(key: str) -> str:
    """Value of an environment variable that a process group needs; ConfigError if not set."""
    if value := os.environ.get(key):
        return value
    size = os.environ.get("WORLD_SIZE")
    remedy = f"must be set together with WORLD_SIZE={size}; unset WORLD_SIZE to run one process"
    raise ConfigError(key, None, remedy)


def _number(key: str, default: str | None = None) -> int:
    text = os.environ.get(key) or default or require_env(key)
    if not text.isdecimal():
        raise ConfigError(key, text, "must be a number; unset WORLD_SIZE to run one process")
    return int(text)


def rank_env(rank: int, processes: int, rendezvous_file: str) -> dict[str, str]:
    """Environment variables of a rank on one machine, reachable from this machine only."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        RENDEZVOUS_FILE: rendezvous_file,
        # By default both bind to the address of the host name, which may not resolve.
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
    }


def local_processes(default: int = 1) -> int:
    """Processes of this run on this machine; ``default`` if they are not launched yet."""
    if (process := launched_process()) is not None:
        return process.local_world_size
    return _number(LOCAL_PROCESSES, str(default))


def _from_env() -> ProcessInfo:
    return ProcessInfo(
        _number("RANK"),
        _number("WORLD_SIZE"),
        _number("LOCAL_RANK"),
        _number("LOCAL_WORLD_SIZE", "1"),
    )
