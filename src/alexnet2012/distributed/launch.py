"""Launches the processes of a run on this machine and reports why one of them failed.

``python -m alexnet2012.train`` composes the configuration and creates the run directory once, then
starts its processes through torch's elastic launcher. Under torchrun this process is already one of
them, and every rank uses rank 0's configuration and run directory.
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
    EXIT_FAILURE,
    FAILURES_DIR,
    PEER_EXIT_DELAY_S,
    RECORD,
    LostPeerError,
    read_failures,
    write_failure,
)
from alexnet2012.distributed.watchdog.flight_recorder import FlightRecord

POLL_S = 0.1  # interval at which exited ranks are looked for
START_METHOD = "spawn"  # CUDA does not support forking a process that has initialized it
LOST_PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)``, a module-level function, in ``processes`` new processes with ranks.

    A single process is the calling one. When one process fails, the others are terminated, and this
    raises its ConfigError, or a RunError that names its rank.
    """
    if processes == 1:
        try:
            worker(*args)
        except (ConfigError, RunError, SignalException):
            raise
        except Exception as error:
            raise RunError("".join(traceback.format_exception(error))) from None
        return
    with tempfile.TemporaryDirectory(prefix="alexnet2012-") as folder:  # mode 0700
        rendezvous_file = str(Path(folder, "rendezvous"))
        ranks = range(processes)
        # Not torchrun's agent: even on one machine it listens on all network interfaces, unpickles
        # what it receives and resolves the host name.
        # torch's failure reports are long and lack the cause, so they are muted; ours follows.
        logging.disable(logging.CRITICAL)
        try:
            context = start_processes(
                "alexnet2012",
                _guarded,
                args=dict.fromkeys(ranks, (worker, folder, *args)),
                envs={rank: rank_env(rank, processes, rendezvous_file) for rank in ranks},
                logs_specs=DefaultLogsSpecs(log_dir=folder),  # torch leaves its default behind
                start_method=START_METHOD,
            )
            codes = _exit_codes(context)
        finally:
            logging.disable(logging.NOTSET)
        interrupted = {128 + signal.SIGTERM, 128 + signal.SIGINT}  # signals sent to ranks only
        if codes and {*codes.values()} <= interrupted:
            raise SignalException("ended", signal.Signals(max(codes.values()) - 128))
        if codes:
            raise _failure(codes, Path(folder))


def _exit_codes(context: PContext) -> dict[int, int]:
    """Exit codes of the failed ranks, once all have exited; signals are forwarded to the ranks."""
    try:
        result = context.wait(period=POLL_S)
    except SignalException as error:
        context.close(error.sigval)
        raise
    finally:
        context.close()
    assert result is not None
    return {rank: failure.exitcode for rank, failure in result.failures.items()}


def _guarded(worker: Callable[..., None], folder: str, *args: Any) -> None:
    """Entry point of a new process: sets its threads, writes a failure report for the parent."""
    os.environ[FAILURES_DIR] = folder
    atexit.register(gc.freeze)  # as in exit_on_error
    exit_with_parent()
    set_threads(local_processes())
    try:
        worker(*args)
    except SignalException as error:  # the worker has saved its state
        sys.stdout.flush()
        os._exit(128 + error.sigval)
    except BaseException as error:
        code = write_failure(error)
        sys.stdout.flush()
        if isinstance(error, LostPeerError):
            time.sleep(PEER_EXIT_DELAY_S)
        # Not sys.exit: it would join threads, and one may be waiting in a collective.
        os._exit(code)


def exit_with_parent() -> None:
    """Have the kernel kill this rank when its launcher dies, which cannot do so if it is killed."""
    die_with_parent()
    parent = multiprocessing.parent_process()  # None under torchrun
    if parent is not None and not parent.is_alive():  # died before the call above
        os._exit(EXIT_FAILURE)


def die_with_parent() -> None:
    """Have the kernel send SIGKILL to this process when its parent dies."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG of sys/prctl.h


def _failure(codes: dict[int, int], folder: Path) -> ConfigError | RunError:
    """The root cause: peers of a failed rank fail as well, in their next collective."""
    failures = read_failures(folder)
    for failure in failures:
        if failure.config_error:
            return ConfigError(*failure.config_error)
    lost = [(failure.text, failure.lost) for failure in failures if failure.lost]
    # A waiting rank may have been terminated before it could write its report.
    diagnosis, ranks = lost[0] if lost else (_diagnosis(folder, list(codes)), list(codes))
    for rank in set(ranks) & set(codes):
        diagnosis = diagnosis.replace(f"rank {rank} exited", f"rank {rank} {_exit(codes[rank])}")
    for failure in failures:
        if not failure.lost and not any(error in failure.text for error in LOST_PEER_ERRORS):
            unexpected = failure.text.startswith("Traceback")
            message = f"rank {failure.rank}: {failure.text}"
            return RunError(f"{message}\n{diagnosis}" if unexpected and diagnosis else message)
    if diagnosis:
        return RunError(diagnosis)
    exits = ", ".join(f"rank {rank} {_exit(code)}" for rank, code in codes.items())
    return RunError(f"{exits} without an error message")


def _diagnosis(folder: Path, failed: Sequence[int]) -> str:
    """Where the failed ranks were, from their flight records; empty if there are none yet."""
    files = sorted(folder.glob(f"*{RECORD}"), key=lambda file: int(file.stem))
    records = [RankRecord(int(file.stem), FlightRecord(file.read_bytes())) for file in files]
    others = [record for record in records if record.rank not in failed]
    lost = [record for record in records if record.rank in failed and others]
    return "; ".join(exited(others[0], record).text for record in lost)


def _exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def set_threads(local_processes: int) -> None:
    """Give torch this process's share of the CPU cores of this machine."""
    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes))


def reuse_memory() -> None:
    """Keep freed memory in the process: by default glibc makes activations pay for fresh pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
