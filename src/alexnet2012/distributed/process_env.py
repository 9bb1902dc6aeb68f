"""What the environment says of this process: whether it is a rank, and which one.

Job systems set RANK and the like in every container, so by themselves they mean nothing: they count
beside the mark of who starts ranks, which is torchrun or our own launcher.
"""

from __future__ import annotations

import os
from dataclasses import dataclass

from alexnet2012.config.schema import ConfigError

TORCHRUN = "TORCHELASTIC_RUN_ID"
MEETING = "ALEXNET2012_MEETING"  # the file through which the ranks of one machine meet
PROCESSES_HERE = "ALEXNET2012_PROCESSES_HERE"  # of a run that is checked before it is started
LOOPBACK = "lo"


@dataclass(frozen=True)
class ProcessInfo:
    """One process among those that were started together; alone by default."""

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 1


def launched_process() -> ProcessInfo | None:
    """The place that torchrun or our launcher gave this process; none of another's."""
    marked = TORCHRUN in os.environ or MEETING in os.environ
    return _place() if marked and "RANK" in os.environ else None


def under_torchrun() -> bool:
    return TORCHRUN in os.environ and launched_process() is not None


def current_process() -> ProcessInfo:
    """The same, and alone where nobody gave one."""
    return launched_process() or ProcessInfo()


def joining_process() -> ProcessInfo:
    """For who asks to join: also as mpirun and the like have it, whoever set the variables.

    Raises:
        ConfigError: there are others, and a variable that says which one this is is missing.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return ProcessInfo()
    for key in ("RANK", "LOCAL_RANK"):
        require_env(key)
    return _place()


def require_env(key: str) -> str:
    """What is set under ``key`` where others are to be met.

    Raises:
        ConfigError: nothing is.
    """
    if value := os.environ.get(key):
        return value
    size = os.environ.get("WORLD_SIZE")
    remedy = f"must be set beside WORLD_SIZE={size}; unset that for one process"
    raise ConfigError(key, None, remedy)


def rank_env(rank: int, processes: int, meeting: str) -> dict[str, str]:
    """The variables of a rank of one machine, where only this machine can reach it."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        MEETING: meeting,
        # By default both listen where the machine's own name leads, which may be nowhere.
        "GLOO_SOCKET_IFNAME": LOOPBACK,
        "NCCL_SOCKET_IFNAME": LOOPBACK,
    }


def local_processes(otherwise: int = 1) -> int:
    """Those of this run on this machine; ``otherwise`` where this process starts them."""
    if (own := launched_process()) is not None:
        return own.local_world_size
    return int(os.environ.get(PROCESSES_HERE, otherwise))


def _place() -> ProcessInfo:
    return ProcessInfo(
        int(os.environ["RANK"]),
        int(os.environ["WORLD_SIZE"]),
        int(os.environ["LOCAL_RANK"]),
        int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
    )
