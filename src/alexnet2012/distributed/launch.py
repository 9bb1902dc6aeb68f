"""Hydra outside, processes inside: how every entry point starts.

``python -m alexnet2012.train`` composes one configuration and makes one run directory, then
starts its processes through torch's elastic launcher. Under torchrun this process *is* one of
them: then rank 0's configuration and directory are everyone's.
"""

from __future__ import annotations

import atexit
import ctypes
import gc
import logging
import multiprocessing
import os
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs, start_processes
from torch.distributed.elastic.multiprocessing.api import PContext, SignalException

from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.process_env import local_processes, rank_env
from alexnet2012.distributed.watchdog.diagnosis import RankRecord, exited
from alexnet2012.distributed.watchdog.failure_report import (
    AFTER_S,
    EXIT_FAILURE,
    FAILURES_DIR,
    RECORD,
    LostPeerError,
    read_failures,
    write_failure,
)
from alexnet2012.distributed.watchdog.flight_recorder import FlightRecord

POLL_S = 0.1  # how soon the end of a rank is noticed
START_METHOD = "spawn"  # CUDA stands no fork of a process that has used it
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)`` in ``processes`` new processes that find each other as under torchrun.

    ``worker`` is a module's function; a single one runs right here. When one process fails the
    others are ended.

    Raises:
        ConfigError: a process met a user's mistake.
        RunError: a process failed; names its rank.
    """
    if processes == 1:
        try:
            worker(*args)
        except (ConfigError, RunError, SignalException):
            raise
        except Exception as error:
            raise RunError("".join(traceback.format_exception(error))) from None
        return
    with tempfile.TemporaryDirectory(
        prefix="alexnet2012-"
    ) as folder:  # which nobody else may enter
        meeting = str(Path(folder, "meeting"))
        ranks = range(processes)
        # Less than torch's launcher, whose agents meet over the network even when there is but one:
        # it listens to all the world, unpickles what comes, and looks up the machine's own name.
        # torch's own reports of a failure are long and lack the cause; ours follows.
        logging.disable(logging.CRITICAL)
        try:
            context = start_processes(
                "alexnet2012",
                _guarded,
                args=dict.fromkeys(ranks, (worker, folder, *args)),
                envs={rank: rank_env(rank, processes, meeting) for rank in ranks},
                logs_specs=DefaultLogsSpecs(log_dir=folder),  # torch's own folder would stay
                start_method=START_METHOD,
            )
            codes = _exit_codes(context)
        finally:
            logging.disable(logging.NOTSET)
        sent = {128 + signal.SIGTERM, 128 + signal.SIGINT}  # to the ranks alone
        if codes and {*codes.values()} <= sent:
            raise SignalException("ended", signal.Signals(max(codes.values()) - 128))
        if codes:
            raise _cause(codes, Path(folder))


def _exit_codes(context: PContext) -> dict[int, int]:
    """Of the ranks that failed, once none is left; a signal is passed on."""
    try:
        ended = context.wait(period=POLL_S)
    except SignalException as error:
        context.close(error.sigval)
        raise
    finally:
        context.close()
    assert ended is not None
    return {rank: failure.exitcode for rank, failure in ended.failures.items()}


def _guarded(worker: Callable[..., None], folder: str, *args: Any) -> None:
    """In a new process: a share of the cores, and the cause of a failure where the parent looks."""
    os.environ[FAILURES_DIR] = folder
    atexit.register(gc.freeze)  # as in exit_on_error
    exit_with_parent()
    set_threads(local_processes())
    try:
        worker(*args)
    except SignalException as error:  # it has saved what there was to save
        sys.stdout.flush()
        os._exit(128 + error.sigval)
    except BaseException as error:
        code = write_failure(error)
        sys.stdout.flush()
        if isinstance(error, LostPeerError):
            time.sleep(AFTER_S)
        # Not sys.exit: it would wait for threads, and a peer may be waiting in an exchange.
        os._exit(code)


def exit_with_parent() -> None:
    """A launcher that is killed cannot end its ranks; the system then does."""
    die_with_parent()
    parent = multiprocessing.parent_process()  # none under torchrun
    if parent is not None and not parent.is_alive():  # it has ended already
        os._exit(EXIT_FAILURE)


def die_with_parent() -> None:
    """From now on, whatever ends the parent."""
    set_parent_death_signal = 1  # sys/prctl.h
    ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _cause(codes: dict[int, int], folder: Path) -> ConfigError | RunError:
    """What began it: the peers of a failed rank fail too, in their next exchange."""
    causes = read_failures(folder)
    for cause in causes:
        if cause.mistake:
            key, value, remedy = cause.mistake
            return ConfigError(key, value, remedy)
    lost, ranks = next(((cause.text, cause.lost) for cause in causes if cause.lost), ("", []))
    if not lost:  # whoever waited was ended before it could say so
        lost, ranks = _position(folder, list(codes)), list(codes)
    for rank in set(ranks) & set(codes):
        lost = lost.replace(f"rank {rank} ended", f"rank {rank} ended by {_ending(codes[rank])}")
    for cause in causes:
        if not cause.lost and not any(words in cause.text for words in LOST_PEER):
            unforeseen = cause.text.startswith("Traceback")
            found = f"rank {cause.rank}: {cause.text}"
            return RunError(f"{found}\n{lost}" if unforeseen and lost else found)
    if lost:
        return RunError(lost)
    ends = ", ".join(f"rank {rank} ended by {_ending(code)}" for rank, code in codes.items())
    return RunError(f"{ends} and left no message; was it killed?")


def _position(folder: Path, failed: Sequence[int]) -> str:
    """Where those that failed stood, from the flight records; empty if there were none yet."""
    files = sorted(folder.glob(f"*{RECORD}"), key=lambda file: int(file.stem))
    parties = [RankRecord(int(file.stem), FlightRecord(file.read_bytes())) for file in files]
    others = [party for party in parties if party.rank not in failed]
    texts = [exited(others[0], party).text for party in parties if party.rank in failed and others]
    return "; ".join(texts)


def _ending(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def set_threads(processes_here: int) -> None:
    """Share the cores between the processes of this machine, however they were started."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // processes_here))


def reuse_memory() -> None:
    """Keep freed memory in the process.

    glibc hands large blocks back to the system at once, and every activation then pays for fresh
    pages. Elsewhere than glibc nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
