"""Files that survive a crash: on the disk before they get their name, and checked afterwards."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """A new file whose bytes are on the disk when the context ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def forget(file: IO[bytes]) -> None:
    """What was written goes to the disk, and the memory that held it may be used again.

    So a large file neither takes fresh memory nor drives out what others read again, as pictures.
    """
    file.flush()
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """What was created, renamed or removed there is on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """The file holds its old text or the new, whatever happens."""
    writing = path.with_name(f".{path.name}.writing")
    with synced(writing) as file:
        file.write(text.encode("utf-8"))
    writing.replace(path)
    sync_folder(path.parent)


def checksum_lines(folder: Path, names: Sequence[str]) -> list[str]:
    """The lines of files that are there."""
    lines = []
    for name in names:
        digest = hashlib.sha256()
        with open(folder / name, "rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
        lines.append(checksum_line(digest.hexdigest(), name))
    return lines


def checksum_line(digest: str, name: str) -> str:
    """``SHA-256  name``, as sha256sum prints and reads it."""
    return f"{digest}  {name}\n"
