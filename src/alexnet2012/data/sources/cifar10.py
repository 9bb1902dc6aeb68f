"""CIFAR-10's binary version: the published archive, or a folder with its files."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import IO

import numpy as np

from alexnet2012.data.sources.archives import (
    DOWNLOAD_AGAIN,
    archive_errors,
    iter_members,
    open_tar,
    read_member,
)
from alexnet2012.data.sources.base import Entry, ImageSource, check_classes, source_error

CIFAR_SIDE = 32
_CIFAR_RECORD = 1 + 3 * CIFAR_SIDE**2  # bytes: the label, then red, green and blue planes
_CIFAR_BATCHES = (*(f"data_batch_{number}.bin" for number in range(1, 6)), "test_batch.bin")
_CIFAR_NAMES = "batches.meta.txt"
CIFAR10_FILES = (_CIFAR_NAMES, *_CIFAR_BATCHES)


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
