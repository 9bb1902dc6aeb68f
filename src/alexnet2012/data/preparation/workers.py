"""Work in other processes, with results in order, and an end to it when one of them dies.

Not concurrent.futures: its workers share a pipe and a lock, and one that is killed while it sends
leaves the others and the program waiting for ever. Here each has a pipe of its own.
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
Done = TypeVar("Done")

JOBS_AHEAD = 2  # of each worker: one under way, one waiting


def in_order(
    function: Callable[[Job], Done], jobs: Iterable[Job], workers: int
) -> Generator[tuple[Job, Done], None, None]:
    """Each job with ``function(job)``, in order; a single worker is this process itself.

    ``function`` must be a module's. What it raises is raised here. Workers end with the generator,
    or with this process, however it ends; Ctrl-C is left to this process.

    Raises:
        RunError: a worker was killed.
    """
    if workers == 1:
        yield from ((job, function(job)) for job in jobs)
        return
    # Not fork: the caller may have threads, of torch or of DALI, which a fork would cut off.
    context = get_context("forkserver")
    context.set_forkserver_preload([function.__module__])
    connections, processes = [], []
    resource_tracker.ensure_running()  # not later: as it starts it lets interrupts through again
    try:
        with _interrupts_held_back():
            for _ in range(workers):
                connection, theirs = context.Pipe()
                connections.append(connection)
                process = context.Process(target=_serve, args=(theirs, function), daemon=True)
                process.start()
                processes.append(process)
                theirs.close()  # so that their end closes when they end
        waiting: deque[tuple[Job, Connection]] = deque()
        for job, connection in zip(jobs, cycle(connections)):
            if len(waiting) == JOBS_AHEAD * workers:
                yield _answer(*waiting.popleft())
            _told(connection.send, job)
            waiting.append((job, connection))
        while waiting:
            yield _answer(*waiting.popleft())
    finally:
        for connection in connections:
            connection.close()
        for process in processes:
            process.join()


def _answer(job: Job, connection: Connection) -> tuple[Job, Any]:
    good, result = _told(connection.recv)
    if not good:
        raise result
    return job, result


def _told(exchange: Callable[..., Any], *what: object) -> Any:
    try:
        return exchange(*what)
    except (EOFError, OSError) as error:
        remedy = "a worker was killed, for want of memory perhaps; lower workers"
        raise RunError(f"{remedy}; the same command goes on from where it was") from error


def _serve(connection: Connection, function: Callable[[Any], Any]) -> None:
    """A worker; jobs are taken in as they come, so that neither side waits for the other."""
    jobs: SimpleQueue[Any] = SimpleQueue()

    def receive() -> None:
        try:
            while True:
                jobs.put(connection.recv())
        except (EOFError, OSError):
            os._exit(0)  # nobody is there who wants more

    threading.Thread(target=receive, daemon=True).start()
    while True:
        job = jobs.get()
        try:
            answer = True, function(job)
        except Exception as error:
            answer = False, error
        try:
            connection.send(answer)
        except OSError:
            os._exit(0)


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """Processes started within leave Ctrl-C to this one, which is answered at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield  # where Ctrl-C never arrives
        return
    came: list[int] = []
    # What is blocked is inherited; another thread may yet take the signal and hand it to this one.
    handler = signal.signal(signal.SIGINT, lambda number, _: came.append(number))
    blocked = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
        signal.signal(signal.SIGINT, handler)
        if came:
            signal.raise_signal(signal.SIGINT)
