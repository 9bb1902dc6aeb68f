"""Work on daemon threads: unlike an executor's, they do not keep a process from exiting."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from queue import Empty, SimpleQueue
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


def in_background(work: Callable[[], Result], name: str) -> Future[Result]:
    """Run ``work`` on a new daemon thread."""
    future: Future[Result] = Future()

    def run() -> None:
        try:
            future.set_result(work())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, name=name, daemon=True).start()
    return future


def map_in_background(
    work: Callable[[Item], Result], items: Sequence[Item], threads: int
) -> Iterator[Result]:
    """Yield ``work(item)`` for each item, in order. Whoever stops reading waits for no thread."""
    futures: list[Future[Result]] = [Future() for _ in items]
    jobs: SimpleQueue[tuple[Future[Result], Item]] = SimpleQueue()
    for job in zip(futures, items, strict=True):
        jobs.put(job)

    def run() -> None:
        while True:
            try:
                future, item = jobs.get_nowait()
            except Empty:
                return
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(work(item))
            except BaseException as error:
                future.set_exception(error)

    for number in range(min(threads, len(items))):
        threading.Thread(target=run, name=f"worker {number}", daemon=True).start()
    try:
        for future in futures:
            yield future.result()
    finally:
        for future in futures:
            future.cancel()
