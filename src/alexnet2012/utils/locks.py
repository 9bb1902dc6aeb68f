"""Lock files for the processes of one machine."""

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
    """Hold the lock file ``path``, created if missing; prints a line if it has to wait.

    The lock is released when the process exits for any reason. Not reentrant: a second ``locked``
    of the same path inside the first waits forever.

    Raises:
        OSError: the lock file cannot be created, or its file system does not support locks.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path)
    try:
        yield
    finally:
        path.unlink(missing_ok=True)  # while holding the lock: see _acquire
        # Closing alone is not enough: a forked child may have the file open, too.
        fcntl.flock(file, fcntl.LOCK_UN)
        file.close()


def _acquire(path: Path) -> IO[str]:
    notified = False
    while True:
        file = path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if not notified:
                sys.stderr.write(f"waiting for another process that holds {path}\n")
                sys.stderr.flush()
                notified = True
            fcntl.flock(file, fcntl.LOCK_EX)
        # The previous holder removed the file, so another process may hold a new file of this name.
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        file.close()
