"""Crash-safe file writing (fsync, atomic rename) and checksums."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing; its bytes are on the disk when the context ends."""
    with open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def forget(file: IO[bytes]) -> None:
    """Flush a file and drop it from the page cache, so that it does not evict others, as images."""
    file.flush()
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def sync_folder(folder: Path) -> None:
    """Flush the creation, renaming and removal of files in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically: after a crash it has either the old or the new text."""
    writing = path.with_name(f".{path.name}.writing")
    with synced(writing) as file:
        file.write(text.encode("utf-8"))
    writing.replace(path)
    sync_folder(path.parent)


def checksum_lines(folder: Path, names: Sequence[str]) -> list[str]:
    """Checksum lines of files in a folder; see :func:`checksum_line`."""
    lines = []
    for name in names:
        with open(folder / name, "rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(checksum_line(digest, name))
    return lines


def checksum_line(digest: str, name: str) -> str:
    """``SHA-256  name``, the format of sha256sum."""
    return f"{digest}  {name}\n"
