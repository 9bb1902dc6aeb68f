"""An ordered map over worker processes that fails cleanly when a worker dies.

Not concurrent.futures: its workers share a pipe and a lock, so a worker killed while sending a
result makes the other workers and the program hang. These workers have one pipe each.
"""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import contextmanager
from itertools import cycle
from multiprocessing import get_context, resource_tracker
from multiprocessing.connection import Connection
from queue import SimpleQueue
from typing import Any, TypeVar

from alexnet2012.config.schema import RunError

Job = TypeVar("Job")
Result = TypeVar("Result")


def ordered_map(
    function: Callable[[Job], Result], jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Result], None, None]:
    """Yield ``(job, function(job))`` for each job, in order; one worker means this process.

    ``function`` must be importable from a module; its exceptions are raised by this generator.
    Workers end with the generator, or with this process however it ends. They ignore Ctrl-C.

    Raises:
        RunError: a worker was killed.
    """
    if workers == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    # Not fork: the caller may have threads of torch or DALI, which do not survive a fork.
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    connections, processes = [], []
    resource_tracker.ensure_running()  # now, because its start unblocks interrupts
    try:
        with _interrupts_deferred():
            for _ in range(workers):
                connection, worker_end = context.Pipe()
                connections.append(connection)
                process = context.Process(target=_serve, args=(worker_end, function), daemon=True)
                process.start()
                processes.append(process)
                worker_end.close()  # so that it closes when the worker ends
        waiting: deque[tuple[Job, Connection]] = deque()
        for job, connection in zip(jobs, cycle(connections)):
            if len(waiting) == 2 * workers:  # of each, one in progress and one queued
                yield _receive_result(*waiting.popleft())
            _communicate(connection.send, job)
            waiting.append((job, connection))
        while waiting:
            yield _receive_result(*waiting.popleft())
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def _receive_result(job: Job, connection: Connection) -> tuple[Job, Any]:
    succeeded, result = _communicate(connection.recv)
    if not succeeded:
        raise result
    return job, result


def _communicate(send_or_receive: Callable[..., Any], *message: object) -> Any:
    try:
        return send_or_receive(*message)
    except (EOFError, OSError) as error:
        cause = "a worker was killed, possibly because memory ran out; use fewer workers"
        raise RunError(f"{cause}; run the same command again to resume") from error


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """Main loop of a worker; a thread receives jobs, so the parent never blocks on sending."""
    jobs: SimpleQueue[Any] = SimpleQueue()

    def receive() -> None:
        try:
            while True:
                jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # the parent has ended

    threading.Thread(target=receive, daemon=True).start()
    while True:
        job = jobs.get()
        try:
            outcome = True, function(job)
        except Exception as error:
            outcome = False, error
        try:
            connection.send(outcome)
        except OSError:
            os._exit(0)


@contextmanager
def _interrupts_deferred() -> Iterator[None]:
    """Defer Ctrl-C until the end; processes started in this context ignore it."""
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread receives Ctrl-C
        return
    received: list[int] = []
    # The signal mask is inherited. Another thread may still receive the signal and pass it on.
    handler = signal.signal(signal.SIGINT, lambda number, _: received.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if received:
            signal.raise_signal(signal.SIGINT)
