"""Labels of images that lie in no class folder: from a list, a development kit or file names."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alexnet2012.config.schema import ConfigError
from alexnet2012.data.sources.archives import ARCHIVE_SUFFIXES
from alexnet2012.data.sources.devkit import GROUND_TRUTH, find_devkit, read_devkit
from alexnet2012.data.sources.files import CLASS_FILES, LABEL_FILES, WORD_FILES, read_text

# A WordNet id in the name of an image: ILSVRC's n01440764_10026.JPEG, Hugging Face's
# n01440764_10026_n01440764.JPEG and ILSVRC2012_val_00000293_n01440764.JPEG.
_WORDNET_ID = re.compile(r"_(n\d{8})\.\w+$|^(n\d{8})_")
_IMAGE_NUMBER = re.compile(r"(\d+)(?:\.\w+)?$")
_BOXES = re.compile(r"^(\S+)( \d+ \d+ \d+ \d+)+$")  # LOC_val_solution.csv: a class, then its boxes
_HEADERS = ("imageid", "image_id", "image", "id", "file", "filename", "file_name", "name", "path")


class Place(NamedTuple):
    """A folder in which labels are looked for."""

    shown: str
    read: Callable[[str], bytes | None]  # a file of it, by name
    path: Path | None  # on disk


def place_on_disk(path: Path) -> Place:
    return Place(str(path), lambda name: read_text(path / name), path)


@dataclass
class Labels:
    """The class of each image, by its file name or its number."""

    where: str  # the list, as shown
    by_name: dict[str, str] = field(default_factory=dict)
    in_order: Sequence[str] = ()  # of image 1, 2, …, by the number at the end of its name
    classes: tuple[str, ...] = ()  # all that the images could have
    text: bytes = b""  # of the list

    def of(self, name: str) -> str | None:
        """The class of an image; None if the list does not have it."""
        if self.in_order:
            match = _IMAGE_NUMBER.search(name)
            number = int(match[1]) if match else 0
            return self.in_order[number - 1] if 1 <= number <= len(self.in_order) else None
        return self.by_name.get(name) or self.by_name.get(PurePosixPath(name).stem)

    def __len__(self) -> int:
        return len(self.in_order) or len(self.by_name)


def class_in_name(name: str) -> str | None:
    """The WordNet id in the name of an image, if there is one."""
    match = _WORDNET_ID.search(name)
    return match[1] or match[2] if match else None


def given_labels(path: Path, places: Sequence[Place], classes: Sequence[str]) -> Labels:
    """The labels of a file that the user names, or of a development kit.

    Args:
        classes: the classes of the training images, if known.

    Raises:
        ConfigError: the file does not exist or gives no labels.
    """
    if path.name.endswith(GROUND_TRUTH):  # numbers of the kit's own: its other file explains them
        path = path.parent
    if path.is_dir() or path.name.endswith(ARCHIVE_SUFFIXES):
        return _kit_labels(path)
    data = read_text(path)
    if data is None:
        raise ConfigError(
            "labels", path, "is not a text file; give a list of image names and classes"
        )
    return _parse(str(path), data, places, classes)


def find_labels(places: Sequence[Place], split: str, classes: Sequence[str]) -> Labels | None:
    """The labels of a split from a list or a development kit in the first place that has one."""
    for place in places:
        for pattern in LABEL_FILES:
            name = pattern.format(split=split)
            data = place.read(name)
            if data is not None and not _only_counts(_rows(data)):
                return _parse(
                    f"{place.shown}/{name}" if place.shown else name, data, places, classes
                )
        if place.path is not None and split == "val" and (kit := find_devkit(place.path)):
            return _kit_labels(kit)
    return None


def find_titles(places: Sequence[Place], classes: Sequence[str]) -> tuple[str, ...]:
    """The names of the classes in words, if a list has all of them."""
    for place in places:
        for name in WORD_FILES:
            rows = (line.split(None, 1) for line in _lines(place.read(name) or b""))
            words = {row[0]: row[1] for row in rows if len(row) == 2}
            if classes and all(wnid in words for wnid in classes):
                return tuple(words[wnid] for wnid in classes)
        if place.path is not None and (kit := find_devkit(place.path)):
            known = read_devkit(kit)[0]
            if all(wnid in known for wnid in classes):
                return tuple(known[wnid].words for wnid in classes)
    return ()


def _kit_labels(path: Path) -> Labels:
    classes, val_wnids = read_devkit(path)
    text = "\n".join(val_wnids).encode()
    return Labels(str(path), {}, val_wnids, tuple(sorted(classes)), text)


def _parse(where: str, data: bytes, places: Sequence[Place], classes: Sequence[str]) -> Labels:
    rows = _rows(data)
    if _only_counts(rows):
        remedy = "numbers the images 1, 2, 3 …, and gives no classes; give a list of name and class"
        raise ConfigError("labels", where, remedy)
    if not rows:
        raise ConfigError("labels", where, "is empty; give a list of image name and class")
    values = [row[-1] for row in rows]
    listed = sorted(set(classes) or _listed_classes(places))
    names = set(listed)
    if all(value.isdecimal() for value in values) and not names.issuperset(values):
        largest = max(map(int, values))
        listed = listed or [str(number) for number in range(largest + 1)]
        if largest >= len(listed):
            remedy = f"has label {largest}, but the classes are numbered 0 to {len(listed) - 1}"
            raise ConfigError("labels", where, f"{remedy} in sorted order; give their names")
        values = [listed[int(value)] for value in values]
    elif not names.issuperset(values):
        listed = sorted(set(values))
    if all(len(row) == 1 for row in rows):
        return Labels(where, {}, values, tuple(listed), data)
    by_name: dict[str, str] = {}
    for row, value in zip(rows, values, strict=True):
        if len(row) != 2 or not value:
            remedy = f"has the line {row[0][:80]!r} without a class; a line is a name and a class"
            raise ConfigError("labels", where, remedy)
        name = PurePosixPath(row[0]).name
        if by_name.setdefault(name, value) != value:
            remedy = f"gives {name} two classes, {by_name[name]} and {value}"
            raise ConfigError("labels", where, remedy)
    return Labels(where, by_name, (), tuple(listed), data)


def _listed_classes(places: Sequence[Place]) -> set[str]:
    for place in places:
        for name in CLASS_FILES:
            if lines := _lines(place.read(name) or b""):
                return {line.split(None, 1)[0] for line in lines}
    return set()


def _rows(data: bytes) -> list[list[str]]:
    """The lines of a list: an image's name and its class, or only its class; no header."""
    lines = _lines(data)
    first = lines[0] if lines else ""
    rows: list[list[str]]
    if "\t" in first or "," in first:
        rows = [row[:2] for row in csv.reader(lines, delimiter="\t" if "\t" in first else ",")]
    else:
        rows = [line.split(None, 1) for line in lines]
    if rows and rows[0][0].strip().lower() in _HEADERS:
        del rows[0]
    rows = [[cell.strip() for cell in row] for row in rows]
    for row in rows:
        if match := _BOXES.match(row[-1]):
            row[-1] = match[1]
    return rows


def _only_counts(rows: list[list[str]]) -> bool:
    """Whether a list only numbers its images, as ImageSets/CLS-LOC/val.txt does."""
    return len(rows) > 1 and all(row[-1] == str(at) for at, row in enumerate(rows, 1))


def _lines(data: bytes) -> list[str]:
    text = data.decode("utf-8-sig", "replace")
    return [line.strip() for line in text.splitlines() if line.strip()]
