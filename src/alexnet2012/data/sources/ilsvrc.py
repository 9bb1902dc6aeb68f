"""ILSVRC's tars as they are downloaded: a tar of class tars, a flat tar of validation pictures,
and a development kit that says what is what.

Labels are the classes' places in the sorted WordNet ids, as is the custom; the kits number them
in another order.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, NamedTuple

from scipy.io import loadmat

from alexnet2012.data.sources.archives import AGAIN, entry, is_packed, members, open_tar, readable
from alexnet2012.data.sources.base import Entry, ImageSource, check_classes, source_error


@dataclass(frozen=True)
class Edition:
    """The file names of a year."""

    year: int
    train: str
    val: str
    devkit: str
    patches: str | None = None  # pictures that replace blank ones, where that tar is there too

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.train, self.val, self.devkit, self.patches)))


EDITIONS = (
    Edition(
        2012,
        "ILSVRC2012_img_train.tar",
        "ILSVRC2012_img_val.tar",
        "ILSVRC2012_devkit_t12.tar.gz",
    ),
    Edition(
        2010,
        "ILSVRC2010_images_train.tar",
        "ILSVRC2010_images_val.tar",
        "ILSVRC2010_devkit-1.0.tar.gz",
        "patch_images.tar",
    ),
)


def edition_in(folder: Path) -> Edition | None:
    """The edition whose training tar lies in a folder."""
    return next((year for year in EDITIONS if (folder / year.train).is_file()), None)


def open_ilsvrc(folder: Path, edition: Edition) -> ImageSource:
    """The pictures of an edition, read from its tars where they lie.

    Raises:
        ConfigError: a file is missing, cut short, or does not go with the others.
    """
    for name in (edition.train, edition.val, edition.devkit):
        if not (folder / name).is_file():
            raise source_error(folder, f"has {edition.train} but not {name}; put it there too")
    train, val = folder / edition.train, folder / edition.val
    kit = _read_devkit(folder / edition.devkit)
    class_tars = _class_tars(train)
    check_classes(train, set(class_tars), set(kit.titles), "class tars")
    classes = tuple(sorted(class_tars))
    labels = {wnid: label for label, wnid in enumerate(classes)}
    _check_val(val, len(kit.val_wnids))
    patches = _patches(folder / edition.patches) if edition.patches else {}

    def entries(split: str) -> Iterator[Entry]:
        if split == "train":
            found = _train_entries(train, {wnid: class_tars[wnid] for wnid in classes}, kit.counts)
        else:
            found = _val_entries(val, [labels[wnid] for wnid in kit.val_wnids])
        for picture in found:
            patch = patches.get(f"{split}/{PurePosixPath(picture.name).name}")
            yield patch._replace(label=picture.label) if patch else picture

    return ImageSource(
        where=str(folder),
        classes=classes,
        entries=entries,
        total_bytes=train.stat().st_size + val.stat().st_size,
        description=f"ILSVRC-{edition.year}, {len(classes)} classes.",
        titles=tuple(kit.titles[wnid] for wnid in classes),
    )


class _Kit(NamedTuple):
    titles: dict[str, str]  # words by WordNet id
    counts: dict[str, int]  # training pictures by WordNet id
    val_wnids: list[str]  # of validation picture 1, 2, …


class _Class(NamedTuple):
    wnid: str
    words: str
    pictures: int  # for training


class _Place(NamedTuple):
    offset: int
    size: int


def _read_devkit(path: Path) -> _Kit:
    content: dict[str, bytes] = {}
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path):
            name = PurePosixPath(member.name).name
            if name == "meta.mat" or name.endswith("validation_ground_truth.txt"):
                file = tar.extractfile(member)
                assert file is not None, member
                content[name] = file.read()
    if "meta.mat" not in content or len(content) != 2:
        raise source_error(path, "lacks data/meta.mat or the validation ground truth")
    try:
        classes = _read_meta(content.pop("meta.mat"))
        (ground_truth,) = content.values()
        val_wnids = [classes[int(line)].wnid for line in ground_truth.split()]
    except Exception as error:  # loadmat raises almost anything on bad bytes
        raise source_error(path, f"cannot be understood ({error!r}); get it again") from error
    return _Kit(
        titles={of.wnid: of.words for of in classes.values()},
        counts={of.wnid: of.pictures for of in classes.values()},
        val_wnids=val_wnids,
    )


def _read_meta(mat: bytes) -> dict[int, _Class]:
    """The classes with pictures by the kit's own numbers."""
    synsets = loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
    number = next(name for name in synsets.dtype.names if name.endswith("_ID") and name != "WNID")
    return {
        int(synset[number]): _Class(
            str(synset["WNID"]), str(synset["words"]), int(synset["num_train_images"])
        )
        for synset in synsets
        if int(synset["num_children"]) == 0  # the others group these
    }


def _class_tars(train: Path) -> dict[str, _Place]:
    """Where each class's tar lies in the training tar."""
    places = {}
    with readable(train), open_tar(train) as tar:
        if is_packed(tar):  # parts of it could not be read at their places
            raise source_error(train, "is compressed; unpack it with gunzip, bunzip2 or unxz")
        for member in members(tar, train):
            if member.name.endswith(".tar"):
                wnid = PurePosixPath(member.name).stem
                if wnid in places:
                    raise source_error(train, f"has {member.name} twice; {AGAIN}")
                places[wnid] = _Place(member.offset_data, member.size)
    return places


def _train_entries(
    path: Path, class_tars: dict[str, _Place], counts: dict[str, int]
) -> Iterator[Entry]:
    with readable(path), open(path, "rb") as file:
        for label, (wnid, place) in enumerate(class_tars.items()):
            pictures = 0
            with open_tar(path, _Part(file, place)) as tar:
                for member in members(tar, path):
                    offset = place.offset + member.offset_data
                    yield Entry(member.name, label, str(path), offset, member.size)
                    pictures += 1
            # Here and not before, as looking at a million headers takes long.
            if pictures != counts[wnid]:
                remedy = f"{wnid}.tar holds {pictures} pictures, the development kit has"
                raise source_error(path, f"{remedy} {counts[wnid]}; {AGAIN}")


def _patches(path: Path) -> dict[str, Entry]:
    """The replacing pictures by ``train/NAME.JPEG`` or ``val/NAME.JPEG``."""
    if not path.is_file():
        return {}
    found = {}
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path):
            found["/".join(PurePosixPath(member.name).parts[-2:])] = entry(tar, path, member, -1)
    return found


def _val_entries(path: Path, labels: list[int]) -> Iterator[Entry]:
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path):
            yield entry(tar, path, member, labels[_number(member.name) - 1])


def _check_val(path: Path, labels: int) -> None:
    """Refuse validation pictures that are not one for each label."""
    numbers: set[int] = set()
    with readable(path), open_tar(path) as tar:
        for member in members(tar, path):
            number = _number(member.name)
            if not 1 <= number <= labels:
                remedy = f"member {member.name!r} has no label in the development kit"
                raise source_error(path, f"{remedy}; {AGAIN}")
            if number in numbers:
                raise source_error(path, f"holds picture {number} twice; {AGAIN}")
            numbers.add(number)
    if len(numbers) < labels:
        remedy = f"holds {len(numbers)} pictures, the development kit has {labels} labels"
        raise source_error(path, f"{remedy}; {AGAIN}")


def _number(name: str) -> int:
    """Of a validation picture, from 1; 0 where its name has none."""
    found = re.search(r"_(\d+)\.JPEG$", name)
    return int(found[1]) if found else 0


class _Part(io.RawIOBase):
    """A part of an open file as a file of its own: a tar within a tar."""

    def __init__(self, file: IO[bytes], place: _Place) -> None:
        self._file, self._place, self._at = file, place, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._place.size}[whence]
        self._at = base + offset
        return self._at

    def tell(self) -> int:
        return self._at

    def read(self, size: int = -1) -> bytes:
        left = max(0, self._place.size - self._at)
        self._file.seek(self._place.offset + self._at)
        data = self._file.read(left if size < 0 else min(size, left))
        self._at += len(data)
        return data
