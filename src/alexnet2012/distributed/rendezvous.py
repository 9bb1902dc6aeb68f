"""Rendezvous: how the ranks of a run find each other before their first collective.

Ranks of one machine share a file in a private folder, which opens no port and resolves no name.
Ranks of several machines connect over the network, to the address given by torchrun or MASTER_ADDR.
"""

from __future__ import annotations

import os
from concurrent.futures import wait
from datetime import timedelta

import torch.distributed as dist

from alexnet2012.config.schema import RunError
from alexnet2012.distributed.process_env import (
    RENDEZVOUS_FILE,
    ProcessInfo,
    launched_process,
    require_env,
)
from alexnet2012.utils.threads import in_background

# Limit without a launcher: the variables may be left over from another job.
NO_LAUNCHER_TIMEOUT_S = 60


def join_store(process: ProcessInfo, timeout_s: float) -> dist.Store:
    """The store that all ranks share; RunError if a rank does not join within ``timeout_s``.

    Joins on a thread: torch's wait ignores signals and may exceed its timeout.
    """
    limit_s = timeout_s if launched_process() else min(timeout_s, NO_LAUNCHER_TIMEOUT_S)
    where = "on this machine"
    if RENDEZVOUS_FILE not in os.environ:
        address, port = (f"{key}={require_env(key)}" for key in ("MASTER_ADDR", "MASTER_PORT"))
        where = f"at {address}, {port}"
    joining = in_background(lambda: _store(process, timedelta(seconds=limit_s)), "rendezvous")
    done, _ = wait([joining], limit_s)
    error = joining.exception() if done else None
    if done and error is None:
        joining.result().set_timeout(timedelta(seconds=timeout_s))
        return joining.result()
    message = f"rank {process.rank} of {process.world_size} could not connect to the other ranks"
    why = f" within {limit_s:.0f} s" if error is None else f": {str(error).splitlines()[0]}"
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
