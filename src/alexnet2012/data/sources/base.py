"""The common interface of image sources: class names, and image entries in a fixed order.

Entries are listed lazily, so a million images need no more memory than a thousand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from alexnet2012.config.schema import ConfigError
from alexnet2012.data.store import SPLITS

IMAGE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif"),
    *(".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm"),
    *(".avif", ".jp2", ".j2k", ".j2c", ".jpx", ".jpf"),
)
# Folders and files that programs leave beside images.
_LITTER = ("__MACOSX", "@eaDir", "lost+found", "$RECYCLE.BIN", "Thumbs.db", "desktop.ini")
MAX_FILE_BYTES = 256 * 2**20  # a larger file is no image, and could exhaust a worker's memory
_MAX_NAME_BYTES = 255  # limit of common file systems


class Entry(NamedTuple):
    """One image of a source: its name, its class label, and where its bytes are."""

    name: str  # within the source
    label: int
    path: str = ""  # the image file, or the archive that contains it
    offset: int = 0
    size: int = -1  # bytes; -1: to the end of the file
    data: bytes | None = None  # the bytes themselves, if they came from a compressed archive

    def read(self) -> bytes:
        """The bytes of the image file; raises ValueError if it is too large or incomplete."""
        if self.data is not None:
            return self.data
        with open(self.path, "rb") as file:
            size = os.fstat(file.fileno()).st_size if self.size < 0 else self.size
            if size > MAX_FILE_BYTES:
                raise ValueError(f"file of {size:,} bytes exceeds the limit of {MAX_FILE_BYTES:,}")
            file.seek(self.offset)
            data = file.read(size)
        if len(data) < size:
            raise ValueError(f"file is truncated: {len(data):,} of {size:,} bytes")
        return data


@dataclass(frozen=True)
class ImageSource:
    """Images and their classes; ``entries("train")`` lists them in the same order each time."""

    where: str  # the source's name in error messages
    classes: tuple[str, ...]  # folder names, sorted
    entries: Callable[[str], Iterator[Entry]]
    total_bytes: int  # of all entries, approximately: for the progress bar
    description: str  # one sentence, including what these images are no evidence for
    titles: tuple[str, ...] = ()  # class names in words, if known
    strays: tuple[str, ...] = ()  # files among the images that are not images by name or location
    splits: tuple[str, ...] = SPLITS  # only ("val",) if there are no training images
    notes: tuple[str, ...] = ()  # what a user should know before relying on these images


def is_hidden(name: str) -> bool:
    """Whether a file or folder is hidden, or is left by a program; a name of dots alone is not."""
    return name in _LITTER or (name.startswith(".") and name.strip(".") != "")


def has_image_suffix(name: str) -> bool:
    """Whether a file is named like an image; its content is only checked when it is read."""
    return name.lstrip(".").lower().endswith(IMAGE_SUFFIXES)


def source_error(where: Path | str, remedy: str) -> ConfigError:
    return ConfigError("data.source", where, remedy)


def check_classes(where: Path | str, train: set[str], val: set[str], unit: str) -> None:
    """Check that both splits have the same two or more classes, with names usable as folders.

    ``unit`` says what the classes are in this source, for example ``class folders``.
    """
    for name in sorted(train | val):
        # Class names become folders of the store, and are written to lists and terminals.
        if not name.isprintable() or "/" in name or name in ("", ".", ".."):
            remedy = f"class name {name!r} is empty, is a path or contains an unprintable character"
            raise source_error(where, f"{remedy}; rename the class")
        if len(os.fsencode(name)) > _MAX_NAME_BYTES:
            remedy = f"class name {name[:40]}… is too long for a folder; rename the class"
            raise source_error(where, remedy)
    for split, missing, other in (("train", train - val, "val"), ("val", val - train, "train")):
        if missing:
            remedy = f"class {min(missing)} is in {split} but not in {other}"
            raise source_error(where, f"{remedy}; both splits must have the same classes")
    if len(train) < 2:
        raise source_error(where, f"needs at least 2 {unit}, but has {len(train)}")
