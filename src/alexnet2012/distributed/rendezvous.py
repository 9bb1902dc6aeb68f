"""Rendezvous: how the ranks of a run find each other before their first collective.

Ranks of one machine share a file in a private folder, which opens no port and resolves no name.
Ranks of several machines connect over the network, to the address given by torchrun or MASTER_ADDR.
"""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import torch.distributed as dist

from alexnet2012.config.schema import RunError
from alexnet2012.distributed.process_env import (
    RENDEZVOUS_FILE,
    ProcessInfo,
    launched_process,
    require_env,
)

# Limit without a launcher: the variables may be left over from another job.
NO_LAUNCHER_TIMEOUT_S = 60


def join_store(process: ProcessInfo, timeout_s: float) -> dist.Store:
    """The store that all ranks share; returns once every rank has joined.

    Joins on a thread: torch's wait ignores signals and may exceed its timeout.

    Raises:
        RunError: a rank did not join within ``timeout_s``, or within
            :data:`NO_LAUNCHER_TIMEOUT_S` if no launcher started this process.
    """
    limit_s = timeout_s if launched_process() else min(timeout_s, NO_LAUNCHER_TIMEOUT_S)
    if RENDEZVOUS_FILE in os.environ:
        where = "on this machine"
    else:
        where = (
            f"at MASTER_ADDR={require_env('MASTER_ADDR')}, MASTER_PORT={require_env('MASTER_PORT')}"
        )
    results: list[dist.Store | Exception] = []

    def join() -> None:
        try:
            results.append(_store(process, timedelta(seconds=limit_s)))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=join, name="rendezvous", daemon=True)
    thread.start()
    thread.join(limit_s)
    result = results[0] if results else None
    if isinstance(result, dist.Store):
        result.set_timeout(timedelta(seconds=timeout_s))
        return result
    message = f"rank {process.rank} of {process.world_size} could not connect to the other ranks"
    why = f" within {limit_s:.0f} s" if result is None else f": {str(result).splitlines()[0]}"
    remedy = "" if launched_process() else "; unset WORLD_SIZE to run one process"
    raise RunError(f"{message} {where}{why}{remedy}")


def _store(process: ProcessInfo, timeout: timedelta) -> dist.Store:
    if file := os.environ.get(RENDEZVOUS_FILE):
        # torchrun's restarts use the same file.
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store: dist.Store = dist.PrefixStore(f"start{restarts}", dist.FileStore(file))
        store.set_timeout(timeout)
    else:
        rendezvous = dist.rendezvous("env://", process.rank, process.world_size, timeout=timeout)
        store = dist.PrefixStore("ranks", next(rendezvous)[0])
    store.set(f"present{process.rank}", "")
    store.wait([f"present{rank}" for rank in range(process.world_size)], timeout)
    return store
