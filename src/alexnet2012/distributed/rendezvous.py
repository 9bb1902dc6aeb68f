"""How the ranks of a run find each other before they exchange anything.

Those of one machine meet in a file of a private folder: no port is opened for it, and no name is
looked up. Others meet over the network, where torchrun or MASTER_ADDR say.
"""

from __future__ import annotations

import os
import threading
from datetime import timedelta

import torch.distributed as dist

from alexnet2012.config.schema import RunError
from alexnet2012.distributed.process_env import MEETING, ProcessInfo, launched_process, require_env

BY_HAND_S = 60  # at most, for variables that may have been left by another


def join_store(own: ProcessInfo, timeout_s: float) -> dist.Store:
    """What the ranks share, once all of them are there.

    In a thread: torch waits in a way that no signal interrupts, and longer than it is told.

    Raises:
        RunError: they are not, in ``timeout_s`` or, without a launcher, :data:`BY_HAND_S`.
    """
    limit_s = timeout_s if launched_process() else min(timeout_s, BY_HAND_S)
    if MEETING in os.environ:
        where = "on this machine"
    else:
        where = (
            f"at MASTER_ADDR={require_env('MASTER_ADDR')}, MASTER_PORT={require_env('MASTER_PORT')}"
        )
    found: list[dist.Store | Exception] = []

    def come() -> None:
        try:
            found.append(_store(own, timedelta(seconds=limit_s)))
        except Exception as error:
            found.append(error)

    waiting = threading.Thread(target=come, name="meeting", daemon=True)
    waiting.start()
    waiting.join(limit_s)
    if found and isinstance(found[0], dist.Store):
        found[0].set_timeout(timedelta(seconds=timeout_s))
        return found[0]
    others = f"rank {own.rank} of {own.world_size} did not meet the others {where}"
    why = f": {str(found[0]).splitlines()[0]}" if found else f" in {limit_s:.0f} s"
    remedy = "" if launched_process() else "; unset WORLD_SIZE for one process"
    raise RunError(f"{others}{why}{remedy}")


def _store(own: ProcessInfo, timeout: timedelta) -> dist.Store:
    if file := os.environ.get(MEETING):
        starts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun's, in the same file
        store: dist.Store = dist.PrefixStore(f"start{starts}", dist.FileStore(file))
        store.set_timeout(timeout)
    else:
        meeting = dist.rendezvous("env://", own.rank, own.world_size, timeout=timeout)
        store = dist.PrefixStore("ranks", next(meeting)[0])
    store.set(f"present{own.rank}", "")
    store.wait([f"present{rank}" for rank in range(own.world_size)], timeout)
    return store
