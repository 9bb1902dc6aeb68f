"""What every source of pictures looks like to the store: classes, and entries in a fixed order.

Entries are listed lazily, so that a million pictures need no more memory than a thousand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from alexnet2012.config.schema import ConfigError

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
)
MAX_FILE_BYTES = 256 * 2**20  # no picture; reading it whole would take a worker's memory
_MAX_NAME_BYTES = 255  # of usual file systems


class Entry(NamedTuple):
    """One picture: what it is called, its class, and where its bytes are."""

    name: str  # within the source
    label: int
    path: str = ""  # the file, or the archive that it is a part of
    offset: int = 0
    size: int = -1  # bytes; -1: to the end
    data: bytes | None = None  # where they had to be read in passing

    def read(self) -> bytes:
        """Its bytes.

        Raises:
            ValueError: they are too many, or not all there.
            OSError: they cannot be read.
        """
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size if self.size < 0 else self.size
            if size > MAX_FILE_BYTES:
                raise ValueError(f"{size:,} bytes are more than {MAX_FILE_BYTES:,}")
            file.seek(self.offset)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"only {len(data):,} of {size:,} bytes are there")
        return data


@dataclass(frozen=True)
class ImageSource:
    """Pictures and their classes; ``entries("train")`` lists them, in the same order each time."""

    where: str  # as it is named in errors
    classes: tuple[str, ...]  # folder names, sorted
    entries: Callable[[str], Iterator[Entry]]
    total_bytes: int  # of all entries, roughly: for a progress bar
    description: str  # one sentence, with what not to conclude from these pictures
    titles: tuple[str, ...] = ()  # the classes in words, where they are known
    strays: tuple[str, ...] = ()  # what lies among the pictures and is none by name or place


def is_picture(name: str) -> bool:
    """Whether a file is called like a picture; what it is in truth comes out when it is read."""
    return Path(name.lstrip(".")).suffix.lower() in PICTURE_SUFFIXES


def source_error(where: Path | str, remedy: str) -> ConfigError:
    return ConfigError("data.source", where, remedy)


def check_classes(where: Path | str, train: set[str], val: set[str], named: str) -> None:
    """Refuse splits of different classes, fewer than two, or names that cannot be written down.

    Raises:
        ConfigError: names the first class at fault.
    """
    for name in sorted(train | val):
        # Class names become folders of the store, and stand in lists and on screens.
        if not name.isprintable() or "/" in name or name in ("", ".", ".."):
            remedy = f"class {name!r} is empty, a path, or has an unprintable character; rename it"
            raise source_error(where, remedy)
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            raise source_error(where, f"class {name[:40]}… has a name too long for a folder")
    for here, missing, there in (("train", train - val, "val"), ("val", val - train, "train")):
        if missing:
            remedy = f"class {min(missing)} is in {here} but not in {there}; both need every class"
            raise source_error(where, remedy)
    if len(train) < 2:
        raise source_error(where, f"holds {len(train)} {named}; at least 2 are needed")
