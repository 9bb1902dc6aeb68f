"""Mutual exclusion between processes on one machine, by lock files."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from alexnet2012.utils.text import printable_lines


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file ``path``, removed on release; not reentrant.

    Prints a line if it has to wait. The kernel releases the lock of a process that ends in any way.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # No soft locks: one left by a killed process would block every later one.
    lock = FileLock(path, fallback_to_soft=False)
    try:
        lock.acquire(blocking=False)
    except Timeout:
        sys.stderr.write(
            printable_lines(f"waiting for another process that holds the lock {path}\n")
        )
        sys.stderr.flush()
        lock.acquire()
    try:
        yield
    finally:
        # Before the release: a waiting FileLock that then locks the removed file starts over.
        path.unlink(missing_ok=True)
        lock.release()
