"""Folders of class folders: with a split of their own, or split here by a seeded rule."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from alexnet2012.data.sources.base import (
    PICTURE_SUFFIXES,
    Entry,
    ImageSource,
    check_classes,
    is_picture,
    source_error,
)

VAL_NAMES = ("val", "valid", "validation", "test")  # the first that is there
LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg"


class Listing:
    """What lies in a folder of class folders, found out by names and sizes alone.

    With ``train/`` and one of ``val/``, ``valid/``, ``validation/`` or ``test/`` these are the
    splits. Otherwise the folder's own folders are the classes, and ``val_percent`` of each class,
    at least one picture, are held out: those whose names hash lowest with the seed, so that a
    picture stays where it is when others come or go.

    Hidden files (``.DS_Store``) are passed over unless they are called like a picture (``.1.jpg``):
    then they are strays, as is what lies in a class and is called like none.

    Raises:
        ConfigError: not such a folder, fewer than two classes, a class without pictures, or a
            class of one split that the other lacks.
    """

    def __init__(self, root: Path, val_percent: float, seed: int) -> None:
        self.root, self._val_percent, self._seed = root, val_percent, seed
        names = _visible(root)
        if not names:
            raise source_error(root, f"is empty; it must hold {LAYOUT}")
        self.folders: dict[str, Path] = {}  # of the splits
        held_out = [name for name in VAL_NAMES if (root / name).is_dir()]
        if (root / "train").is_dir() or held_out:
            for split, there in (("train", (root / "train").is_dir()), ("val", bool(held_out))):
                if not there:
                    raise source_error(root, f"has no folder {split}/; it must hold {LAYOUT}")
            self.folders = {"train": root / "train", "val": root / held_out[0]}

        self._strays: list[str] = []
        self._digest, self._dates = hashlib.sha256(), hashlib.sha256()
        self._bytes = 0
        if self.folders:
            found = {split: set(self._classes(folder)) for split, folder in self.folders.items()}
            check_classes(root, found["train"], found["val"], "class folders in train/")
            self.classes = tuple(sorted(found["train"]))
        else:
            found_here = set(self._classes(root))
            check_classes(root, found_here, found_here, "class folders")
            self.classes = tuple(sorted(found_here))

    def source(self) -> ImageSource:
        return ImageSource(
            where=str(self.root),
            classes=self.classes,
            entries=self._entries,
            total_bytes=self._bytes,
            description=f"Pictures of the folder {self.root.resolve().name}.",
            strays=tuple(self._strays),
        )

    def identity(self) -> dict[str, object]:
        """What tells other pictures apart: all names and sizes, and how they were split."""
        rule = {} if self.folders else {"val_percent": self._val_percent, "seed": self._seed}
        return {"names_and_sizes": self._digest.hexdigest(), **rule}

    @property
    def dates(self) -> str:
        """Of all files: another when one was written to meanwhile."""
        return self._dates.hexdigest()

    def _classes(self, folder: Path) -> Iterator[str]:
        """Class names with pictures; takes notes of their files and of strays in passing."""
        for name in _visible(folder):
            if not (folder / name).is_dir():
                self._strays.append(self._relative(folder / name))
                continue
            pictures = 0
            for file in _sorted(folder / name):
                path = folder / name / file
                found = None
                if is_picture(file):
                    found = None if file.startswith(".") else _size_and_date(path)
                elif file.startswith("."):
                    continue
                if found is None:
                    self._strays.append(self._relative(path))
                    continue
                size, date = found
                pictures += 1
                self._bytes += size
                self._digest.update(os.fsencode(f"{self._relative(path)}\0{size}\n"))
                self._dates.update(b"%d\n" % date)
            needed = 1 if self.folders else 2
            if pictures < needed:
                few = "no pictures" if pictures == 0 else "one picture, and needs one of each split"
                remedy = f"class folder {name!r} has {few} ({' '.join(sorted(PICTURE_SUFFIXES))})"
                raise source_error(folder, f"{remedy}; add some or remove it")
            yield name

    def _entries(self, split: str) -> Iterator[Entry]:
        parent = self.folders.get(split, self.root)
        for label, name in enumerate(self.classes):
            folder = parent / name
            files = [
                file
                for file in _visible(folder)
                if is_picture(file) and _size_and_date(folder / file) is not None
            ]
            if not self.folders:
                held_out = self._held_out(name, files)
                files = [file for file in files if (file in held_out) == (split == "val")]
            for file in files:
                yield Entry(self._relative(folder / file), label, str(folder / file))

    def _held_out(self, name: str, files: list[str]) -> set[str]:
        def rank(file: str) -> bytes:
            return hashlib.sha256(os.fsencode(f"{self._seed}/{name}/{file}")).digest()

        count = round(len(files) * self._val_percent / 100)
        return set(sorted(files, key=rank)[: min(max(count, 1), len(files) - 1)])

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _sorted(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def _visible(folder: Path) -> list[str]:
    return [name for name in _sorted(folder) if not name.startswith(".")]


def _size_and_date(path: Path) -> tuple[int, int] | None:
    """Bytes and time of a file; None for what is none. A pipe among pictures would never end."""
    try:
        found = path.stat()
    except OSError:
        return 0, 0  # a link to nowhere, say: the reader will tell
    return (found.st_size, found.st_mtime_ns) if S_ISREG(found.st_mode) else None
