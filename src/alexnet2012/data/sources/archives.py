"""Images in archives: tars of class folders, and CIFAR-10's binary batches.

Nothing is unpacked to disk. Workers read the images of an uncompressed tar by offset; compressed
archives are read sequentially by the main process. Member names never become paths.
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
    has_image_suffix,
    source_error,
)
from alexnet2012.data.sources.folders import VAL_NAMES

ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg"
CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2  # bytes: the label, then red, green and blue planes
_CIFAR_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR_NAMES = "batches.meta.txt"
CIFAR10_FILES = (_CIFAR_NAMES, *_CIFAR_BATCHES)
DOWNLOAD_AGAIN = "download it again"
MAX_HEADER_BYTES = 1 << 20  # of a long name or other extended headers of a member
MAX_SHOWN = 100  # characters of a member's name in a message
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)


@contextmanager
def archive_errors(path: Path | str) -> Iterator[None]:
    """Turn the exceptions of a damaged archive into a ConfigError that names it."""
    try:
        yield
    except (tarfile.TarError, EOFError, zlib.error, lzma.LZMAError, OSError) as error:
        reason = " ".join(str(error).split())
        remedy = f"the archive is damaged ({reason}); {DOWNLOAD_AGAIN}"
        raise source_error(path, remedy) from error


class _StrictInfo(tarfile.TarInfo):
    """Raises on a damaged header, which tarfile would take for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENDED and info.size > MAX_HEADER_BYTES:  # it would be read at once
            size = f"{info.size:,} bytes for the name of one member"
            raise tarfile.ReadError(f"{size}; the limit is {MAX_HEADER_BYTES:,}")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tar)
        except RecursionError:
            raise tarfile.ReadError("extended headers without a member") from None
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
            tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
        ) as error:
            raise tarfile.ReadError(f"damaged header at byte {tar.offset}: {error}") from error


def open_tar(path: Path | str, file: Any = None) -> tarfile.TarFile:
    """Open a tar, compressed or not; ``file`` is an uncompressed tar within a tar."""
    return tarfile.open(path, "r:" if file else "r", fileobj=file, tarinfo=_StrictInfo)


def iter_members(
    tar: tarfile.TarFile, path: Path | str, hidden: list[str] | None = None
) -> Iterator[tarfile.TarInfo]:
    """Iterate over the files of an archive in constant memory; checks that it is complete.

    Hidden files are skipped; the names of those with an image suffix are added to ``hidden``.

    Raises:
        ConfigError: a member is not a regular file, or its path leaves the archive; or data follows
            the end of the archive, so a header was overwritten.
    """
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it reads
        parts = PurePosixPath(member.name).parts
        if member.isdir():
            continue
        problem = ""
        is_hidden = parts[-1:] > () and parts[-1].startswith(".")  # ._1.jpg is macOS metadata
        if member.name.startswith("/") or ".." in parts:
            problem = "has an unsafe path"
        elif is_hidden:
            if hidden is not None and has_image_suffix(parts[-1]):
                hidden.append(member.name)
            continue
        elif not member.isreg() or member.issparse() or member.size < 0:
            problem = "is not a regular file"
        if problem:
            name = f"{member.name[:MAX_SHOWN]}…" if member.name[MAX_SHOWN:] else member.name
            remedy = f"member {name!r} {problem}; do not use this archive"
            raise source_error(path, remedy)
        yield member
    assert tar.fileobj is not None
    # To the end: compressed archives have their checksum there.
    while rest := tar.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise source_error(path, f"has data after its end marker; {DOWNLOAD_AGAIN}")


def is_compressed(tar: tarfile.TarFile) -> bool:
    """Whether the tar is compressed, whatever its suffix, so members cannot be read by offset."""
    return isinstance(tar.fileobj, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile)


def open_archive(path: Path) -> ImageSource:
    """The images of a tar with ``train/CLASS/`` and ``val/CLASS/``, perhaps in one top folder."""
    classes_by_folder: dict[str, set[str]] = defaultdict(set)
    strays: list[str] = []
    total = 0
    with archive_errors(path), open_tar(path) as tar:
        for member in iter_members(tar, path, hidden=strays):
            if location := _split_and_class(member.name):
                classes_by_folder[location[0]].add(location[1])
                total += member.size
            else:
                strays.append(member.name)
    if not classes_by_folder:
        raise source_error(path, f"contains no images; the layout must be {LAYOUT}")
    val_folder = next((name for name in VAL_NAMES if name in classes_by_folder), "val")
    train, val = classes_by_folder["train"], classes_by_folder[val_folder]
    check_classes(path, train, val, "classes in train/")
    classes = tuple(sorted(train))
    labels = {name: label for label, name in enumerate(classes)}

    def entries(split: str) -> Iterator[Entry]:
        folder = "train" if split == "train" else val_folder
        with archive_errors(path), open_tar(path) as tar:
            for member in iter_members(tar, path):
                location = _split_and_class(member.name)
                if location is not None and location[0] == folder:
                    yield make_entry(tar, path, member, labels[location[1]])

    return ImageSource(
        where=str(path),
        classes=classes,
        entries=entries,
        total_bytes=total,
        description=f"Images of the archive {path.name}.",
        strays=tuple(strays),
    )


def make_entry(tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo, label: int) -> Entry:
    """An image of an archive: its offset in an uncompressed archive, else its bytes."""
    if not is_compressed(tar) or member.size > MAX_FILE_BYTES:  # Entry.read rejects it
        return Entry(member.name, label, str(path), member.offset_data, member.size)
    return Entry(member.name, label, data=read_member(tar, member))


def open_cifar10(path: Path) -> ImageSource:
    """The binary version of CIFAR-10: the published archive, or a folder with its files."""
    sizes: dict[str, int] = {}
    classes: tuple[str, ...] = ()
    for name, file in _cifar_files(path):
        if name == _CIFAR_NAMES:
            classes = tuple(file.read().decode("ascii", "replace").split())
        else:
            sizes[name] = file.seek(0, io.SEEK_END)
    for name in _CIFAR_BATCHES:
        if sizes.get(name, 0) == 0:
            raise source_error(path, f"{name} is missing or empty; {DOWNLOAD_AGAIN}")
        if sizes[name] % _CIFAR_RECORD:
            remedy = f"the size of {name} is not a multiple of the record size, {_CIFAR_RECORD}"
            raise source_error(path, f"{remedy} bytes; {DOWNLOAD_AGAIN}")
    if len(set(classes)) != 10 or len(classes) != 10:
        names = f"{len(classes)} classes, {len(set(classes))} of them distinct"
        raise source_error(path, f"{_CIFAR_NAMES} lists {names}; it must list 10")
    check_classes(path, set(classes), set(classes), "classes")
    # The classes of a store are sorted; CIFAR-10's own order happens to be alphabetical.
    labels = [sorted(classes).index(name) for name in classes]

    def entries(split: str) -> Iterator[Entry]:
        for batch, file in _cifar_files(path):
            if batch == _CIFAR_NAMES or (batch == _CIFAR_BATCHES[-1]) != (split == "val"):
                continue
            index = 0
            while record := file.read(_CIFAR_RECORD):
                if record[0] >= 10:
                    remedy = f"{batch}: record {index} has label {record[0]}, not 0 to 9"
                    raise source_error(path, f"{remedy}; {DOWNLOAD_AGAIN}")
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
        total_bytes=sum(sizes.values()),
        description="CIFAR-10: images of 32 × 32 pixels in ten classes.",
    )


def _cifar_files(path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Name and content of each file: in a fixed order, or that of the archive."""
    if path.is_dir():
        for name in CIFAR10_FILES:
            if (path / name).is_file():
                with open(path / name, "rb") as file:
                    yield name, file
        return
    with archive_errors(path), open_tar(path) as tar:
        for member in iter_members(tar, path):
            name = PurePosixPath(member.name).name
            if name in CIFAR10_FILES:  # one batch at a time: 30 MB
                yield name, io.BytesIO(read_member(tar, member))


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, member
    return file.read()


def _split_and_class(name: str) -> tuple[str, str] | None:
    """Split folder and class of an image, from its path in the archive; None if not an image."""
    path = PurePosixPath(name).parts
    for parts in (path, path[1:]):  # without a top folder, or in one
        if len(parts) == 3 and parts[0] in ("train", *VAL_NAMES):
            return (parts[0], parts[1]) if has_image_suffix(parts[-1]) else None
    return None
