"""One process at a time, on one machine."""

from __future__ import annotations

import fcntl
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file ``path``, made with its folder where missing; says so if it must wait.

    A process that ends in any way lets go of its lock. Not reentrant: a second ``locked`` of the
    same path inside the first waits forever.

    Raises:
        OSError: the lock file cannot be made, or its file system has no locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _held(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while it is held: see _held
        # Closing alone would not do: a child forked meanwhile has the file open too.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _held(path: Path) -> IO[str]:
    told = False
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not told:
                sys.stderr.write(f"waiting for another process that holds {path}\n")
                sys.stderr.flush()
                told = True
            fcntl.flock(file, fcntl.LOCK_EX)
        # Whoever held it has removed it: a newcomer may hold another file of this name by now.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
