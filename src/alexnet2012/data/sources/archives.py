"""Archives read where they lie: tars of class folders, and CIFAR-10's binary batches.

Nothing is unpacked to disk. Of a plain tar the workers read each picture at its place; what is
compressed is read in passing. No name of a member becomes a path.
"""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zlib
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

import numpy as np

from alexnet2012.data.sources.base import (
    MAX_FILE_BYTES,
    Entry,
    ImageSource,
    check_classes,
    is_picture,
    source_error,
)
from alexnet2012.data.sources.folders import VAL_NAMES

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg"
CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2  # bytes: the label, then red, green and blue planes
_CIFAR_TRAIN = tuple(f"data_batch_{number}.bin" for number in range(1, 6))
_CIFAR_FILES = {"train": _CIFAR_TRAIN, "val": ("test_batch.bin",)}
_CIFAR_NAMES = "batches.meta.txt"
CIFAR10_FILES = (_CIFAR_NAMES, *_CIFAR_TRAIN, "test_batch.bin")
AGAIN = "get it again from where it is published"


@contextmanager
def readable(path: Path | str) -> Iterator[None]:
    """Turn what a damaged archive raises into a user's error that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        what = " ".join(str(error).split())
        remedy = f"cannot be read to its end ({what}); {AGAIN}"
        raise source_error(path, remedy) from error


class _StrictInfo(tarfile.TarInfo):
    """A broken header is an error; tarfile takes it for the end of the archive."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tar)
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
            tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
        ) as error:
            raise tarfile.ReadError(f"broken header at byte {tar.offset}: {error}") from error


def open_tar(path: Path | str, file: Any = None) -> tarfile.TarFile:
    """A tar to read, packed or not; ``file`` where it is a part of another, and not packed."""
    return tarfile.open(path, "r:" if file else "r", fileobj=file, tarinfo=_StrictInfo)


def members(
    tar: tarfile.TarFile, path: Path | str, hidden: list[str] | None = None
) -> Iterator[tarfile.TarInfo]:
    """The files of an archive, without keeping a list of them, to its proper end.

    Hidden ones are passed over; those among them that are called like a picture go to ``hidden``.

    Raises:
        ConfigError: a member that is a link or a device, is absolute, or climbs out. Nothing here
            would follow it, but an archive of pictures has no use for it.
        ConfigError: something stands after the end: a header was wiped out.
    """
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile keeps every header that it has met
        parts = PurePosixPath(member.name).parts
        if member.isdir():
            continue
        if parts and parts[-1].startswith("."):  # ._1.jpg is a Mac's note
            if hidden is not None and is_picture(parts[-1]):
                hidden.append(member.name)
            continue
        if member.name.startswith("/") or ".." in parts:
            raise source_error(path, f"member {member.name!r} lies outside of it; do not use it")
        if not member.isreg() or member.issparse() or member.size < 0:
            raise source_error(path, f"member {member.name!r} is no plain file; do not use it")
        yield member
    assert tar.fileobj is not None
    while rest := tar.fileobj.read(1 << 20):  # to the end, where packed ones have their checksum
        if rest.strip(b"\0"):
            raise source_error(path, f"goes on after its end; {AGAIN}")


def is_packed(tar: tarfile.TarFile) -> bool:
    """Whether the tar is compressed, whatever it is called: its members are at no place of it."""
    return isinstance(tar.fileobj, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile)


def open_archive(path: Path) -> ImageSource:
    """The pictures of a tar of ``train/CLASS/`` and ``val/CLASS/``, in one top folder or in none.

    Raises:
        ConfigError: it cannot be read, or has another layout.
    """
    found: dict[str, set[str]] = defaultdict(set)
    strays: list[str] = []
    total = 0
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path, hidden=strays):
            place = _place(member.name)
            if place is None:
                strays.append(member.name)
                continue
            found[place[0]].add(place[1])
            total += member.size
    if not found:
        raise source_error(path, f"holds no pictures under {LAYOUT}")
    folders = {"train": "train", "val": next((n for n in VAL_NAMES if n in found), "val")}
    check_classes(path, found["train"], found[folders["val"]], "classes under train/")
    classes = tuple(sorted(found["train"]))
    labels = {name: label for label, name in enumerate(classes)}

    def entries(split: str) -> Iterator[Entry]:
        with readable(path), open_tar(path) as tar:
            for member in members(tar, path):
                place = _place(member.name)
                if place is not None and place[0] == folders[split]:
                    yield entry(tar, path, member, labels[place[1]])

    return ImageSource(
        where=str(path),
        classes=classes,
        entries=entries,
        total_bytes=total,
        description=f"Pictures of the archive {path.name}.",
        strays=tuple(strays),
    )


def entry(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo, label: int) -> Entry:
    """A picture of an archive: its place where it can be read there, else its bytes."""
    if not is_packed(tar) or member.size > MAX_FILE_BYTES:  # which is refused when it is to be read
        return Entry(member.name, label, str(path), member.offset_data, member.size)
    return Entry(member.name, label, data=_content(tar, member))


def open_cifar10(path: Path) -> ImageSource:
    """CIFAR-10's binary version: the archive as it is published, or a folder of its files.

    Raises:
        ConfigError: a file is missing, or is no whole number of records.
    """
    sizes: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    for name, file in _cifar_files(path):
        if name == _CIFAR_NAMES:
            classes = tuple(file.read().decode("ascii", "replace").split())
        else:
            sizes[name] = file.seek(0, io.SEEK_END)
    wanted = [name for names in _CIFAR_FILES.values() for name in names]
    for name in wanted:
        if sizes.get(name, 0) == 0 or sizes[name] % _CIFAR_RECORD:
            remedy = f"{name} is not there, or no whole number of {_CIFAR_RECORD} byte records"
            raise source_error(path, remedy)
    if len(set(classes)) != 10 or len(classes) != 10:
        named = f"{len(classes)} classes, {len(set(classes))} of them different"
        raise source_error(path, f"{_CIFAR_NAMES} names {named}; it must be 10")
    check_classes(path, set(classes), set(classes), "classes")
    # Class folders of a store are sorted; CIFAR-10's own order is alphabetical.
    labels = [sorted(classes).index(name) for name in classes]

    def entries(split: str) -> Iterator[Entry]:
        for batch, file in _cifar_files(path):
            if batch not in _CIFAR_FILES[split]:
                continue
            index = 0
            while record := file.read(_CIFAR_RECORD):
                if record[0] >= 10:
                    raise source_error(path, f"{batch}: record {index} has label {record[0]}")
                planes = np.frombuffer(record, np.uint8, offset=1)
                pixels = planes.reshape(3, CIFAR_SIDE, CIFAR_SIDE).transpose(1, 2, 0)
                header = f"P6 {CIFAR_SIDE} {CIFAR_SIDE} 255\n".encode()  # a PPM file
                name = f"{batch}#{index}"
                yield Entry(name, labels[record[0]], data=header + pixels.tobytes())
                index += 1

    return ImageSource(
        where=str(path),
        classes=tuple(sorted(classes)),
        entries=entries,
        total_bytes=sum(sizes[name] for name in wanted),
        description="CIFAR-10, pictures of 32 × 32 pixels in ten classes.",
    )


def is_cifar10(path: Path) -> bool:
    """Whether a folder holds the binary batches."""
    return (path / _CIFAR_NAMES).is_file()


def _cifar_files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file, in order of the names or of the archive."""
    if path.is_dir():
        for name in CIFAR10_FILES:
            if (path / name).is_file():
                with open(path / name, "rb") as file:
                    yield name, file
        return
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path):
            name = PurePosixPath(member.name).name
            if name in CIFAR10_FILES:  # one batch at a time, 30 MB
                yield name, io.BytesIO(_content(tar, member))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, member
    return file.read()


def _place(name: str) -> tuple[str, str] | None:
    """Folder of the split and class of a picture by its path; None for what is no picture."""
    parts = PurePosixPath(name).parts
    for top in (parts, parts[1:]):  # in one top folder or in none
        if len(top) == 3 and top[0] in ("train", *VAL_NAMES):
            return (top[0], top[1]) if is_picture(top[-1]) else None
    return None
