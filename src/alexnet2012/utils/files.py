"""Crash-safe file writing (fsync, atomic rename) and checksums."""

from __future__ import annotations

import errno
import hashlib
import io
import os
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, TYPE_CHECKING

from alexnet2012.utils.untrusted import open_regular

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

# Errors of the machine: what may be full, read-only or used up, whatever is being written.
_REMEDIES = {
    errno.ENOSPC: "free disk space, or choose another place",
    errno.EDQUOT: "free some of your disk quota, or choose another place",
    errno.EROFS: "choose a place that is writable",
    errno.EFBIG: "raise the limit on file sizes: ulimit -f unlimited",
    errno.EMFILE: "raise the limit on open files: ulimit -n 4096",
    errno.ENFILE: "close other programs: the machine has too many open files",
    errno.EIO: "check the disk",
}


def os_error_line(error: BaseException) -> str | None:
    """One line for users; None for an error that is neither of a file nor of the machine."""
    if not isinstance(error, OSError):  # torch's C++ code raises RuntimeError with the same words
        code = next((c for c in _REMEDIES if os.strerror(c) in str(error)), None)
        return None if code is None else os_error_line(OSError(code, os.strerror(code)))
    place = error.filename if error.filename is not None else _whose(error)
    if place is None:
        return None
    remedy = _REMEDIES.get(error.errno or 0)
    return f"{place}: {error.strerror}{f'; {remedy}' if remedy else ''}"


def _whose(error: OSError) -> str | None:
    if error.errno in (errno.EMFILE, errno.ENFILE):
        return "this process"
    return f"{Path.cwd()} or {tempfile.gettempdir()}" if error.errno in _REMEDIES else None


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Name the file in errors of writing to it, which Python raises without a name."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


@contextmanager
def synced(path: Path) -> Iterator[IO[bytes]]:
    """Open a new file for writing; its bytes are on the disk when the context ends."""
    with naming(path), open(path, "wb") as file:
        yield file
        file.flush()
        os.fsync(file.fileno())


def forget(file: IO[bytes]) -> None:
    """Flush a file and drop it from the page cache, so that it does not evict others, as images."""
    file.flush()
    os.fdatasync(file.fileno())
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def array_bytes(array: npt.NDArray[np.generic]) -> bytes:
    """An array as a NumPy file. Writing one to disk, NumPy would not say why it fails."""
    import numpy as np  # not when a command starts

    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def sync_folder(folder: Path) -> None:
    """Flush the creation, renaming and removal of files in a folder to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_text(path: Path, text: str) -> None:
    """Replace a text file atomically: after a crash it has either the old or the new text."""
    replace_bytes(path, text.encode("utf-8"))


def replace_bytes(path: Path, data: bytes) -> None:
    """The same for any file; what could not be written is removed."""
    writing = path.with_name(f".{path.name}.writing")
    try:
        with synced(writing) as file:
            file.write(data)
        writing.replace(path)
    except BaseException:
        writing.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def checksum_lines(folder: Path, names: Sequence[str]) -> list[str]:
    """Checksum lines of files in a folder; see :func:`checksum_line`."""
    lines = []
    for name in names:
        with open_regular(folder / name) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        lines.append(checksum_line(digest, name))
    return lines


def checksum_line(digest: str, name: str) -> str:
    """``SHA-256  name``, the format of sha256sum."""
    return f"{digest}  {name}\n"
