"""Downloads of published files: cached, resumed after a dropped connection, verified before use.

Files next to ``NAME``: ``NAME.part`` during the download; ``NAME.lock``, so that only one process
downloads; ``NAME.verified``, the verified digest with the file's size and modification time.
A file without a matching ``NAME.verified``, such as one copied there by hand, is verified first.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import requests
from rich.console import Console
from rich.progress import DownloadColumn, Progress
from urllib3.exceptions import HTTPError

from alexnet2012.config.schema import RunError
from alexnet2012.utils.locks import locked

PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between attempts without progress; one more is the last
TIMEOUTS_S = (10.0, 30.0)  # to connect, to wait for data
SLOW_S, SLOW_BYTES = 60.0, 60 << 10  # a slower transfer is given up
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class RemoteFile:
    url: str
    algorithm: str  # sha256 or md5, as published
    digest: str  # hexadecimal, lower case
    size: int | None = None  # bytes, if known

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
REMOTE_FILES = {
    "cifar10": RemoteFile(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
    "imagenette": RemoteFile(
        f"{_FASTAI}/imagenette2-320.tgz", "md5", "3df6f0d01a2c9592104656642f5e78a3"
    ),
    "imagenette160": RemoteFile(
        f"{_FASTAI}/imagenette2-160.tgz", "md5", "e793b78cc4c9e9a4ccc0c1155377a412"
    ),
    "imagenettefull": RemoteFile(
        f"{_FASTAI}/imagenette2.tgz", "md5", "fe2fc210e6bb7c5664d602c3cd71e612"
    ),
    "tinyimagenet": RemoteFile(
        "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
        "md5",
        "90528d7ca1a48142e341f4ef8d21d0de",
        248_100_043,
    ),
}


def fetch(file: RemoteFile, folder: Path, progress: bool = True) -> Path:
    """The path of the file in ``folder``; downloads it unless it is there already.

    The file gets its name only after its checksum has been verified. Partial downloads are kept
    after errors and interruptions, and the next call resumes them.

    Raises:
        RunError: the server refuses, the connection makes no progress, the checksum does not
            match, or the folder is not writable; the message says what to do.
    """
    path = folder / file.name
    marker, part = (folder / f"{file.name}.{suffix}" for suffix in ("verified", "part"))
    try:
        if path.exists() and marker.exists() and marker.read_bytes() == _stamp(file, path):
            return path
        with locked(folder / f"{file.name}.lock"):
            if not path.exists():
                _download(file, part, progress)
                if (digest := _digest(part, file.algorithm)) != file.digest:
                    part.unlink()
                    message = _digest_mismatch(file, file.url, digest)
                    raise RunError(f"{message}; the download was removed")
                os.replace(part, path)
            elif (digest := _digest(path, file.algorithm)) != file.digest:
                remedy = f"remove it and run the same command again to download {file.url}"
                raise RunError(f"{_digest_mismatch(file, path, digest)}; {remedy}")
            marker.write_bytes(_stamp(file, path))
    except OSError as error:  # a full disk, another user's folder
        raise RunError(f"{file.name} cannot be written to {folder}: {error}") from error
    return path


class _TransferError(Exception):
    """A failed transfer that is worth another attempt."""


class _SlowError(_TransferError):
    """A server that sends almost nothing, which is no progress."""


def _download(file: RemoteFile, part: Path, progress: bool) -> None:
    """Download to ``part``, with as many attempts as needed while each makes progress."""
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    furthest, failures, total = _size_bytes(part), 0, file.size
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(file.name, total=total)
        while True:
            try:
                for have, total in _receive(file, part):
                    bar.update(task, completed=have, total=total)
                return
            except (requests.RequestException, HTTPError, _TransferError) as error:
                # Progress is a new maximum: a server that always starts over makes none.
                have = _size_bytes(part)
                advanced = have > furthest and not isinstance(error, _SlowError)
                failures = 0 if advanced else failures + 1
                furthest = max(furthest, have)
                if failures > len(PAUSES_S):
                    raise RunError(_failure_message(file, part, total, error)) from error
                time.sleep(PAUSES_S[max(failures - 1, 0)])


def _receive(file: RemoteFile, part: Path) -> Iterator[tuple[int, int | None]]:
    """One attempt; yields the number of bytes received so far and, if known, in total."""
    have = _size_bytes(part)
    if have == file.size:
        return
    # Without transfer compression, lengths and offsets are those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
        status, span = response.status_code, response.headers.get("Content-Range", "")
        if status == 416 and have:
            if span == f"bytes */{have}":
                return  # complete; only the size was unknown
            part.unlink()
            raise _TransferError("the server's file is shorter than the partial download")
        if status == 429 or status >= 500:
            raise _TransferError(f"the server responded {status} {response.reason}")
        if status == 206 and span.startswith(f"bytes {have}-"):
            length = span.rpartition("/")[2]
        elif status == 200:  # also from a server that ignores Range
            have, length = 0, response.headers.get("Content-Length", "")
        else:
            raise RunError(f"{file.url}: the server responded {status} {response.reason}")
        total = int(length) if length.isdecimal() else file.size
        if file.size not in (None, total):
            raise RunError(f"{file.url}: the file has {total} bytes, expected {file.size}")
        since_s, since_bytes = time.monotonic(), have
        with part.open("ab" if have else "wb") as out:
            yield have, total
            # read1, not read: keeps the data received before a connection reset.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                # Ignore data beyond the announced size.
                have += out.write(chunk if total is None else chunk[: total - have])
                yield have, total
                if have == total:
                    return
                if time.monotonic() - since_s > SLOW_S:
                    if have - since_bytes < SLOW_BYTES:
                        raise _SlowError(f"less than {SLOW_BYTES:,} bytes in {SLOW_S:.0f} s")
                    since_s, since_bytes = time.monotonic(), have
    if total is not None and have < total:
        raise _TransferError("the connection was closed early")


def _failure_message(file: RemoteFile, part: Path, total: int | None, error: Exception) -> str:
    reason = str(error)
    if isinstance(error, requests.ConnectionError):
        cause = getattr((*error.args, error)[0], "reason", error)  # does not repeat the URL
        reason = f"no network, or {urlsplit(file.url).hostname} cannot be reached ({cause})"
    received = f"{_size_bytes(part)} of {'?' if total is None else total} bytes are in {part}"
    remedy = "run the same command again to resume, or download the file elsewhere and put it at"
    return f"{file.url}: {reason}; {received}; {remedy} {part.with_suffix('')}"


def _digest_mismatch(file: RemoteFile, where: str | Path, digest: str) -> str:
    return f"{where}: {file.algorithm} is {digest}, expected {file.digest}"


def _size_bytes(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _digest(path: Path, algorithm: str) -> str:
    with path.open("rb") as content:
        new = hashlib.file_digest(content, lambda: hashlib.new(algorithm, usedforsecurity=False))
        return new.hexdigest()


def _stamp(file: RemoteFile, path: Path) -> bytes:
    """Content of ``NAME.verified``; does not match once the file is replaced or modified."""
    stat = path.stat()
    return f"{file.algorithm} {file.digest} {stat.st_size} {stat.st_mtime_ns}\n".encode()
