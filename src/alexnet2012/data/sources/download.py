"""Published files, fetched once: resumed where the connection drops, checked before use.

Beside ``NAME`` stand ``NAME.part`` while it arrives, ``NAME.lock`` for processes that want it at
once, and ``NAME.verified``: the digest that held, with the size and time of the file it held for.
A file without a matching ``NAME.verified``, for one put there by hand, is verified first.
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

PAUSES_S = (1.0, 2.0, 4.0, 8.0)  # between tries that bring nothing; one more such try gives up
TIMEOUTS_S = (10.0, 30.0)  # to connect, to wait for more
_CHUNK_BYTES = 1 << 16


@dataclass(frozen=True)
class Published:
    """A file that somebody has published, and how to know it."""

    url: str
    algorithm: str  # sha256 or md5, as published
    digest: str  # hexadecimal, lower case
    size: int | None = None  # bytes, where known

    @property
    def name(self) -> str:
        return urlsplit(self.url).path.rpartition("/")[2]


_FASTAI = "https://s3.amazonaws.com/fast-ai-imageclas"
PUBLISHED = {
    "cifar10": Published(
        "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz",
        "sha256",
        "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd",
        170_052_171,
    ),
    "imagenette": Published(
        f"{_FASTAI}/imagenette2-320.tgz", "md5", "3df6f0d01a2c9592104656642f5e78a3"
    ),
    "imagenette160": Published(
        f"{_FASTAI}/imagenette2-160.tgz", "md5", "e793b78cc4c9e9a4ccc0c1155377a412"
    ),
    "imagenettefull": Published(
        f"{_FASTAI}/imagenette2.tgz", "md5", "fe2fc210e6bb7c5664d602c3cd71e612"
    ),
}


def fetch(file: Published, folder: Path, progress: bool = True) -> Path:
    """The path of the file in ``folder``, downloaded where it is not there yet.

    It gets its name only after its checksum held. What has arrived stays over errors and
    interruptions, and the next call goes on from there.

    Raises:
        RunError: the server refuses, the connection brings nothing any more, the checksum does
            not hold, or the folder cannot be written; the message says what to do.
    """
    path = folder / file.name
    marker, part = (folder / f"{file.name}.{suffix}" for suffix in ("verified", "part"))
    try:
        if path.exists() and marker.exists() and marker.read_bytes() == _stamp(file, path):
            return path
        with locked(folder / f"{file.name}.lock"):
            if not path.exists():
                _download(file, part, progress)
                if (found := _digest(part, file.algorithm)) != file.digest:
                    part.unlink()
                    raise RunError(_another(file, file.url, found) + "; what arrived is removed")
                os.replace(part, path)
            elif (found := _digest(path, file.algorithm)) != file.digest:
                remedy = f"remove it, and the same command downloads {file.url}"
                raise RunError(f"{_another(file, path, found)}; {remedy}")
            marker.write_bytes(_stamp(file, path))
    except OSError as error:  # a full disk, a folder of somebody else
        raise RunError(f"{file.name} cannot be kept in {folder}: {error}") from error
    return path


class _Dropped(Exception):
    """The server gave less than it should; worth another try."""


def _download(file: Published, part: Path, progress: bool) -> None:
    """Fill ``part``, in as many tries as it takes while each brings something new."""
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    columns = (*Progress.get_default_columns(), DownloadColumn())
    furthest, fruitless, total = _arrived(part), 0, file.size
    with Progress(*columns, console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task(file.name, total=total)
        while True:
            try:
                for have, total in _receive(file, part):
                    bar.update(task, completed=have, total=total)
                return
            except (requests.RequestException, HTTPError, _Dropped) as error:
                # Not what this try brought: a server that always starts over brings nothing new.
                have = _arrived(part)
                fruitless = 0 if have > furthest else fruitless + 1
                furthest = max(furthest, have)
                if fruitless > len(PAUSES_S):
                    raise RunError(_gave_up(file, part, total, error)) from error
                time.sleep(PAUSES_S[max(fruitless - 1, 0)])


def _receive(file: Published, part: Path) -> Iterator[tuple[int, int | None]]:
    """One try; yields how many bytes are there and, where known, how many there will be."""
    have = _arrived(part)
    if have == file.size:
        return
    # Not compressed on the way: lengths and positions are those of the file.
    headers = {"Accept-Encoding": "identity"} | ({"Range": f"bytes={have}-"} if have else {})
    with requests.get(file.url, headers=headers, stream=True, timeout=TIMEOUTS_S) as response:
        status, span = response.status_code, response.headers.get("Content-Range", "")
        if status == 416 and have:
            if span == f"bytes */{have}":
                return  # it was all there, only the size was not known
            part.unlink()
            raise _Dropped("the server has less than has arrived before")
        if status == 429 or status >= 500:
            raise _Dropped(f"the server answers {status} {response.reason}")
        if status == 206 and span.startswith(f"bytes {have}-"):
            length = span.rpartition("/")[2]
        elif status == 200:  # also where Range is ignored
            have, length = 0, response.headers.get("Content-Length", "")
        else:
            raise RunError(f"{file.url}: the server answers {status} {response.reason}")
        total = int(length) if length.isdigit() else file.size
        if file.size not in (None, total):
            raise RunError(f"{file.url}: has {total} bytes, not the {file.size} of this file")
        with part.open("ab" if have else "wb") as out:
            yield have, total
            # read1, not read: what came before a reset is kept.
            while chunk := response.raw.read1(_CHUNK_BYTES, decode_content=False):
                # A server that sends more than it should is not listened to any longer.
                have += out.write(chunk if total is None else chunk[: total - have])
                yield have, total
                if have == total:
                    return
    if total is not None and have < total:
        raise _Dropped("the connection ended too early")


def _gave_up(file: Published, part: Path, total: int | None, error: Exception) -> str:
    reason = str(error)
    if isinstance(error, requests.ConnectionError):
        cause = getattr((*error.args, error)[0], "reason", error)  # without the URL once more
        reason = f"no network, or {urlsplit(file.url).hostname} cannot be reached ({cause})"
    there = f"{_arrived(part)} of {'?' if total is None else total} bytes are in {part}"
    remedy = "the same command goes on from there; or fetch the file elsewhere and put it at"
    return f"{file.url}: {reason}; {there}, and {remedy} {part.with_suffix('')}"


def _another(file: Published, where: str | Path, found: str) -> str:
    return f"{where}: has the {file.algorithm} {found}, not {file.digest}"


def _arrived(part: Path) -> int:
    return part.stat().st_size if part.exists() else 0


def _digest(path: Path, algorithm: str) -> str:
    digest = hashlib.new(algorithm, usedforsecurity=False)
    with path.open("rb") as content:
        while chunk := content.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def _stamp(file: Published, path: Path) -> bytes:
    """What is verified: replaced or changed, the file is looked at again."""
    stat = path.stat()
    return f"{file.algorithm} {file.digest} {stat.st_size} {stat.st_mtime_ns}\n".encode()
