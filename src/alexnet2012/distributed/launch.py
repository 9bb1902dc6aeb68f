"""Launches the processes of a run on this machine and reports why one of them failed.

``python -m alexnet2012.train`` composes the configuration and creates the run directory once, then
starts its processes. Under torchrun this process is already one of them, and every rank uses rank
0's configuration and run directory.

Importing torch and DALI takes seconds. A fork server imports them once, for all ranks of this run
and of later runs of the same command (a sweep); the launching process does without them.
"""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing import forkserver, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.devices import has_gpu_driver
from alexnet2012.distributed.process_env import local_processes, rank_env
from alexnet2012.distributed.watchdog.diagnosis import RankRecord, exited
from alexnet2012.distributed.watchdog.failure_report import (
    EXIT_FAILURE,
    FAILURES_DIR,
    PEER_EXIT_DELAY_S,
    RECORD,
    LostPeerError,
    failure_text,
    read_failures,
    write_failure,
)
from alexnet2012.distributed.watchdog.flight_recorder import FlightRecord
from alexnet2012.utils.collector import before_imports
from alexnet2012.utils.interrupt import InterruptError
from alexnet2012.utils.terminal import persistent_output

STOP_TIMEOUT_S = 30.0  # for a rank to save its state after a signal
MAX_SOCKET_FOLDER = 60  # the path of a fork server's socket has 107 characters at most
LOST_PEER_ERRORS = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)``, a module-level function, in ``processes`` new processes with ranks.

    A single process is the calling one. When one process fails, the others are terminated, and this
    raises its ConfigError, or a RunError that names its rank.
    """
    if processes == 1:
        try:
            worker(*args)
        except (ConfigError, RunError):
            raise
        except Exception as error:
            raise RunError(failure_text(error)) from None
        return
    with tempfile.TemporaryDirectory(prefix="alexnet2012-") as folder:  # mode 0700
        rendezvous_file = str(Path(folder, "rendezvous"))
        start_fork_server([worker.__module__])  # unless it is running
        context = multiprocessing.get_context("forkserver" if _can_fork() else "spawn")
        # Not torchrun's agent: even on one machine it listens on all network interfaces, unpickles
        # what it receives and resolves the host name.
        ranks = []
        for rank in range(processes):
            # A fork server has the environment of the time when it was started.
            environ = {**os.environ, **rank_env(rank, processes, rendezvous_file)}
            entry = (environ, folder, worker, *args)
            ranks.append(context.Process(target=_guarded, args=entry))  # type: ignore[attr-defined]
        codes = _run(ranks)
        interrupted = {128 + signal.SIGTERM, 128 + signal.SIGINT}  # signals sent to ranks only
        if codes and {*codes.values()} <= interrupted:
            raise InterruptError(max(codes.values()) - 128)
        if codes:
            raise _failure(codes, Path(folder))


def start_fork_server(modules: Sequence[str]) -> None:
    """Start the process that ranks are forked from; it imports ``modules`` in the background.

    Does nothing if it is running, or if ranks are not forked.
    """
    if not _can_fork():
        return
    multiprocessing.set_forkserver_preload([f"{__package__}.fork_server", *modules])
    resource_tracker.ensure_running()  # the fork server would start it, and unblock SIGINT
    # Ctrl-C reaches the fork server, too; while it imports, it would print a traceback.
    blocked_before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        forkserver.ensure_running()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked_before)


def _can_fork() -> bool:
    """False if there may be a GPU: CUDA does not support forking once it is initialized."""
    return not has_gpu_driver() and len(tempfile.gettempdir()) <= MAX_SOCKET_FOLDER


def _run(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    """Start the processes and wait for them: exit codes of those that failed before being stopped.

    When one fails, the others get SIGTERM. SIGTERM and SIGINT are forwarded.
    """
    number = signal.SIGTERM
    try:
        for process in ranks:
            process.start()
        while not (codes := _failed(ranks)) and any(process.is_alive() for process in ranks):
            wait([process.sentinel for process in ranks if process.is_alive()])
        return codes
    except (InterruptError, KeyboardInterrupt) as error:
        number = error.number if isinstance(error, InterruptError) else signal.SIGINT
        raise InterruptError(number) from None
    finally:
        _stop([process for process in ranks if process.is_alive()], number)


def _failed(ranks: Sequence[BaseProcess]) -> dict[int, int]:
    return {rank: process.exitcode for rank, process in enumerate(ranks) if process.exitcode}


def _stop(processes: Sequence[BaseProcess], number: int) -> None:
    """Send a signal to the processes and wait for them to exit; kill those that do not."""
    try:
        for process in processes:
            assert process.pid is not None
            with suppress(ProcessLookupError):
                os.kill(process.pid, number)
        deadline = time.monotonic() + STOP_TIMEOUT_S
        for process in processes:
            process.join(max(0.0, deadline - time.monotonic()))
    finally:
        for process in processes:
            process.kill()
            process.join()


def _guarded(environ: dict[str, str], folder: str, worker: Callable[..., None], *args: Any) -> None:
    """Entry point of a new process: sets its threads, writes a failure report for the parent."""
    os.environ.update(environ)
    os.environ[FAILURES_DIR] = folder
    before_imports()
    exit_with_parent()
    if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.SIG_DFL)  # until training has something to save
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # blocked in the fork server
    name_process(f"rank {environ['RANK']}")
    set_threads(local_processes())
    persistent_output()
    try:
        worker(*args)
    except InterruptError as error:  # the worker has saved its state
        sys.stdout.flush()
        os._exit(128 + error.number)
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


def name_process(name: str) -> None:
    """Set the name that ``top`` and ``ps -o comm`` show: forked processes share a command line."""
    ctypes.CDLL(None).prctl(15, name.encode())  # PR_SET_NAME


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
    found = [(int(file.stem), file.read_bytes()) for file in files]
    records = [RankRecord(rank, FlightRecord(memory)) for rank, memory in found if memory]
    others = [record for record in records if record.rank not in failed]
    lost = [record for record in records if record.rank in failed and others]
    return "; ".join(exited(others[0], record).text for record in lost)


def _exit(code: int) -> str:
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"exited with code {code}"


def set_threads(local_processes: int) -> None:
    """Give torch this process's share of the CPU cores of this machine."""
    import torch

    torch.set_num_threads(max(1, len(os.sched_getaffinity(0)) // local_processes))


def reuse_memory() -> None:
    """Keep freed memory in the process: by default glibc makes activations pay for fresh pages."""
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):  # glibc
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
