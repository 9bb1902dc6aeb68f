"""Folders with one subfolder per class, already split or split by a seeded rule."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from stat import S_ISREG

from alexnet2012.data.sources.base import (
    IMAGE_SUFFIXES,
    Entry,
    ImageSource,
    check_classes,
    has_image_suffix,
    source_error,
)

VAL_NAMES = ("val", "valid", "validation", "test")  # in order of preference
LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg, or CLASS/*.jpg"


class ImageFolder:
    """Lists the images in a folder of class folders by file names and sizes, without reading them.

    With ``train/`` and one of ``val/``, ``valid/``, ``validation/`` or ``test/``, these are the
    splits. Otherwise every subfolder is a class, and ``val_percent`` of each class (at least one
    image) form the validation split: those whose names hash lowest with the seed, so an image
    stays in its split when others are added or removed.

    Strays are recorded: files in a class folder without an image suffix, and hidden files with one
    (``.1.jpg``). Other hidden files (``.DS_Store``) are ignored.
    """

    def __init__(self, root: Path, val_percent: float, seed: int) -> None:
        self.root, self._val_percent, self._seed = root, val_percent, seed
        names = _visible_names(root)
        if not names:
            raise source_error(root, f"is empty; it must contain {LAYOUT}")
        self.folders: dict[str, Path] = {}  # by split
        val_names = [name for name in VAL_NAMES if (root / name).is_dir()]
        has_train = (root / "train").is_dir()
        if has_train and val_names:
            self.folders = {"train": root / "train", "val": root / val_names[0]}
        elif has_train or val_names:
            missing = "val" if has_train else "train"
            raise source_error(root, f"has no folder {missing}/; it must contain {LAYOUT}")
        self._strays: list[str] = []
        self._digest, self._dates = hashlib.sha256(), hashlib.sha256()
        self._bytes = 0
        folders = self.folders.values() or (root,)
        splits = [set(self._list_classes(folder)) for folder in folders]
        train = splits[0]
        unit = "class folders in train/" if self.folders else "class folders"
        check_classes(root, train, splits[-1], unit)
        self.classes = tuple(sorted(train))

    def source(self) -> ImageSource:
        return ImageSource(
            where=str(self.root),
            classes=self.classes,
            entries=self._entries,
            total_bytes=self._bytes,
            description=f"Images of the folder {self.root.resolve().name}.",
            strays=tuple(self._strays),
        )

    def identity(self) -> dict[str, object]:
        """What distinguishes this source from others: all file names and sizes, and the split."""
        rule = {} if self.folders else {"val_percent": self._val_percent, "seed": self._seed}
        return {"names_and_sizes": self._digest.hexdigest(), **rule}

    @property
    def dates(self) -> str:
        """Digest of all modification times; changes when a file is written to."""
        return self._dates.hexdigest()

    def _list_classes(self, folder: Path) -> Iterator[str]:
        """Names of the classes in ``folder``; records their files and strays on the way."""
        for name in _visible_names(folder):
            if not (folder / name).is_dir():
                self._strays.append(self._relative(folder / name))
                continue
            images = 0
            for path in sorted((folder / name).iterdir()):
                is_hidden, is_image = path.name.startswith("."), has_image_suffix(path.name)
                if is_hidden and not is_image:
                    continue
                size_and_time = _size_and_time(path) if is_image and not is_hidden else None
                if size_and_time is None:
                    self._strays.append(self._relative(path))
                    continue
                size, time_ns = size_and_time
                images += 1
                self._bytes += size
                self._digest.update(os.fsencode(f"{self._relative(path)}\0{size}\n"))
                self._dates.update(b"%d\n" % time_ns)
            if images == 0 or (images == 1 and not self.folders):
                problem = f"contains no images ({' '.join(sorted(IMAGE_SUFFIXES))})"
                if images:
                    problem = "contains one image; each split needs at least one"
                remedy = f"class folder {name!r} {problem}; add images or remove the folder"
                raise source_error(folder, remedy)
            yield name

    def _entries(self, split: str) -> Iterator[Entry]:
        parent = self.folders.get(split, self.root)
        for label, name in enumerate(self.classes):
            folder = parent / name
            images = filter(has_image_suffix, _visible_names(folder))
            files = [file for file in images if _size_and_time(folder / file) is not None]
            if not self.folders:
                val_files = self._val_files(name, files)
                files = [file for file in files if (file in val_files) == (split == "val")]
            for file in files:
                yield Entry(self._relative(folder / file), label, str(folder / file))

    def _val_files(self, name: str, files: list[str]) -> set[str]:
        def rank(file: str) -> bytes:
            return hashlib.sha256(os.fsencode(f"{self._seed}/{name}/{file}")).digest()

        count = round(len(files) * self._val_percent / 100)
        return set(sorted(files, key=rank)[: min(max(count, 1), len(files) - 1)])

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()


def _visible_names(folder: Path) -> list[str]:
    names = (path.name for path in folder.iterdir())
    return sorted(name for name in names if not name.startswith(".") or not name.strip("."))


def _size_and_time(path: Path) -> tuple[int, int] | None:
    """Size in bytes and modification time; None unless a regular file (reading a pipe hangs)."""
    try:
        stat = path.stat()
    except OSError:
        return 0, 0  # a dangling link, for example: reported when it is read
    return (stat.st_size, stat.st_mtime_ns) if S_ISREG(stat.st_mode) else None
