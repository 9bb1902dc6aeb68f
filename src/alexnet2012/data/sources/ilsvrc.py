"""ILSVRC's tars as downloaded: a tar of class tars, a flat tar of validation images, and the
development kit with classes and labels.

A class's label is its index in the sorted WordNet IDs, as usual; the kits use another order.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from tarfile import TarInfo

from alexnet2012.data.sources.archives import (
    DOWNLOAD_AGAIN,
    archive_errors,
    is_compressed,
    iter_members,
    make_entry,
    open_tar,
)
from alexnet2012.data.sources.base import Entry, ImageSource, check_classes, source_error
from alexnet2012.data.sources.devkit import KitClass, read_devkit


@dataclass(frozen=True)
class Release:
    """The file names of one year's data set."""

    year: int
    train: str
    val: str
    devkit: str
    patches: str | None = None  # optional: replacements for blank images

    @property
    def files(self) -> tuple[str, ...]:
        return tuple(filter(None, (self.train, self.val, self.devkit, self.patches)))


RELEASES = (
    Release(
        2012, "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12.tar.gz"
    ),
    Release(
        2010,
        "ILSVRC2010_images_train.tar",
        "ILSVRC2010_images_val.tar",
        "ILSVRC2010_devkit-1.0.tar.gz",
        "patch_images.tar",
    ),
)


def open_ilsvrc(folder: Path, release: Release) -> ImageSource:
    """The images of a release, read from its tars without unpacking them."""
    for name in (release.train, release.val, release.devkit):
        if not (folder / name).is_file():
            remedy = f"contains {release.train} but not {name}; add it to the folder"
            if name == release.val:
                remedy += f", or unpack {release.train} into train/ if the others are unpacked"
            raise source_error(folder, remedy)
    train, val = folder / release.train, folder / release.val
    kit, val_wnids = read_devkit(folder / release.devkit)
    class_tars = _class_tars(train)
    check_classes(train, set(class_tars), set(kit), "class tars")
    classes = tuple(sorted(class_tars))
    _check_val(val, len(val_wnids))
    patches = _patches(folder / release.patches) if release.patches else {}

    def entries(split: str) -> Iterator[Entry]:
        if split == "train":
            originals = _train_entries(train, class_tars, kit)
        else:
            originals = _val_entries(val, [classes.index(wnid) for wnid in val_wnids])
        for original in originals:
            patch = patches.get(f"{split}/{PurePosixPath(original.name).name}")
            yield patch._replace(label=original.label) if patch else original

    return ImageSource(
        where=str(folder),
        classes=classes,
        entries=entries,
        total_bytes=train.stat().st_size + val.stat().st_size,
        description=f"ILSVRC-{release.year}, {len(classes)} classes.",
        titles=tuple(kit[wnid].words for wnid in classes),
    )


def _class_tars(train: Path) -> dict[str, TarInfo]:
    """Each class's tar, a member of the training tar."""
    class_tars: dict[str, TarInfo] = {}
    with archive_errors(train), open_tar(train) as tar:
        if is_compressed(tar):  # its members could not be read by offset
            raise source_error(train, "is compressed; decompress it with gunzip, bunzip2 or unxz")
        for member in iter_members(tar, train):
            if member.name.endswith(".tar"):
                wnid = PurePosixPath(member.name).stem
                if wnid in class_tars:
                    raise source_error(train, f"contains {member.name} twice; {DOWNLOAD_AGAIN}")
                class_tars[wnid] = member
    return class_tars


def _train_entries(
    path: Path, class_tars: dict[str, TarInfo], kit: dict[str, KitClass]
) -> Iterator[Entry]:
    with archive_errors(path), open_tar(path) as train:
        for label, (wnid, class_tar) in enumerate(sorted(class_tars.items())):
            images = 0
            with open_tar(path, train.extractfile(class_tar)) as tar:
                for member in iter_members(tar, path):
                    offset = class_tar.offset_data + member.offset_data
                    yield Entry(member.name, label, str(path), offset, member.size)
                    images += 1
            # Not checked in advance, as reading a million headers takes long.
            if images != kit[wnid].images:
                remedy = f"{wnid}.tar contains {images} images, but the development kit lists"
                raise source_error(path, f"{remedy} {kit[wnid].images}; {DOWNLOAD_AGAIN}")


def _patches(path: Path) -> dict[str, Entry]:
    """The replacement images, by ``train/NAME.JPEG`` or ``val/NAME.JPEG``."""
    if not path.is_file():
        return {}
    patches = {}
    with archive_errors(path), open_tar(path) as tar:
        for member in iter_members(tar, path):
            name = "/".join(PurePosixPath(member.name).parts[-2:])
            patches[name] = make_entry(tar, path, member, -1)
    return patches


def _val_entries(path: Path, labels: list[int]) -> Iterator[Entry]:
    with archive_errors(path), open_tar(path) as tar:
        for member in iter_members(tar, path):
            yield make_entry(tar, path, member, labels[_image_number(member.name) - 1])


def _check_val(path: Path, labels: int) -> None:
    """Check that there is exactly one validation image for each label."""
    numbers: set[int] = set()
    with archive_errors(path), open_tar(path) as tar:
        for member in iter_members(tar, path):
            number = _image_number(member.name)
            if not 1 <= number <= labels:
                remedy = f"member {member.name!r} has no label in the development kit"
                raise source_error(path, f"{remedy}; {DOWNLOAD_AGAIN}")
            if number in numbers:
                raise source_error(path, f"contains image {number} twice; {DOWNLOAD_AGAIN}")
            numbers.add(number)
    if len(numbers) < labels:
        remedy = f"contains {len(numbers)} images, but the development kit lists {labels} labels"
        raise source_error(path, f"{remedy}; {DOWNLOAD_AGAIN}")


def _image_number(name: str) -> int:
    """The number of a validation image, from 1; 0 if its name has none."""
    match = re.search(r"_(\d+)\.JPEG$", name)
    return int(match[1]) if match else 0
