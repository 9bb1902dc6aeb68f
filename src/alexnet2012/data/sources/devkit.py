"""ILSVRC's development kits: the classes, and the labels of the validation images.

The labels are numbers of the kit's own, which are not positions of sorted WordNet ids.
"""

from __future__ import annotations

import io
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from alexnet2012.data.sources.archives import ARCHIVE_SUFFIXES, DOWNLOAD_AGAIN, iter_archive
from alexnet2012.data.sources.base import source_error

GROUND_TRUTH = "validation_ground_truth.txt"  # the end of its name
_META = "meta.mat"


class KitClass(NamedTuple):
    wnid: str
    words: str
    images: int  # for training
    number: int  # the kit's own, from 1


def read_devkit(path: Path) -> tuple[dict[str, KitClass], list[str]]:
    """The classes by WordNet ID, and the WordNet IDs of validation images 1, 2, …."""
    content: dict[str, bytes] = {}
    if path.is_dir():
        files = {file.name: file for file in path.rglob("*") if file.is_file()}
        content = {name: file.read_bytes() for name, file in files.items() if _is_needed(name)}
    else:
        for member in iter_archive(path):
            name = PurePosixPath(member.name).name
            if _is_needed(name):
                content[name] = member.read()
    if _META not in content or len(content) != 2:
        remedy = "has no data/meta.mat or no validation ground truth"
        raise source_error(path, f"{remedy}; {DOWNLOAD_AGAIN}")
    try:
        classes = _read_meta(content.pop(_META))
        (ground_truth,) = content.values()
        val_wnids = [classes[int(line)].wnid for line in ground_truth.split()]
    except Exception as error:  # loadmat raises almost anything on corrupt data
        remedy = f"cannot be parsed ({error!r}); {DOWNLOAD_AGAIN}"
        raise source_error(path, remedy) from error
    return {synset.wnid: synset for synset in classes.values()}, val_wnids


def find_devkit(folder: Path) -> Path | None:
    """A development kit in a folder, packed or not."""
    for path in sorted((*folder.glob("ILSVRC*devkit*"), *folder.glob("devkit*"))):
        if path.name.endswith(ARCHIVE_SUFFIXES) or any(path.rglob(_META)):
            return path
    return None


def _is_needed(name: str) -> bool:
    return name == _META or name.endswith(GROUND_TRUTH)


def _read_meta(mat: bytes) -> dict[int, KitClass]:
    """The classes that have images, by the kit's own numbers."""
    from scipy.io import loadmat  # slow to import, and only ILSVRC needs it

    synsets = loadmat(io.BytesIO(mat), squeeze_me=True)["synsets"]
    number = next(name for name in synsets.dtype.names if name.endswith("_ID") and name != "WNID")
    return {
        int(synset[number]): KitClass(
            str(synset["WNID"]),
            str(synset["words"]),
            int(synset["num_train_images"]),
            int(synset[number]),
        )
        for synset in synsets
        if int(synset["num_children"]) == 0  # the others are groups of classes
    }
