"""The store: a prepared data set of square images of one size, with checksums and statistics.

:mod:`.preparation` creates it, ``Store.open`` reads it. On disk: ``train/CLASS/0000000.jpg``,
``val/CLASS/…``; the lists ``train.tsv`` and ``val.tsv`` (path, label, SHA-256, and the name in the
source as a JSON string); ``mean_image.npy``; ``manifest.json``; and ``rejects.jsonl``, the files
that were not used, with reasons. A store of validation images alone has no ``train/``, an empty
``train.tsv`` and no mean image.

Shapes: P is the side of a stored image in pixels.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.config.schema import ConfigError
from alexnet2012.utils.untrusted import read_array, read_bytes, read_json_object

SPLITS = ("train", "val")
FORMAT = 3  # of the layout on disk
MEAN_IMAGE = "mean_image.npy"
MAX_LIST_BYTES = 16 * 2**30  # of 14 million images: 2 GB


@dataclass(frozen=True)
class Split:
    """The images of ``train`` or ``val``, in the order of the source."""

    paths: tuple[str, ...]  # absolute
    labels: npt.NDArray[np.int64]  # [n]
    sha256: npt.NDArray[np.uint8]  # [n, 32], of the files as written


@dataclass(frozen=True)
class Store:
    """A prepared data set."""

    root: Path
    size: int  # P
    classes: tuple[str, ...]
    # Over the training images; None if there are none.
    mean_image: npt.NDArray[np.float32] | None  # [P, P, 3] RGB values in 0–255
    rgb_covariance: npt.NDArray[np.float64] | None  # [3, 3] on the 0–255 scale, over all pixels
    fingerprint: str  # SHA-256 of the lists, which contain that of every file
    description: str  # one sentence: what the images are, and what they are no evidence for
    first_label: int = 0  # in the lists, of the first of ``classes``
    splits: tuple[str, ...] = SPLITS  # only ("val",) in a store of validation images alone

    @classmethod
    def open(cls, root: Path) -> Store:
        """Open the store at ``root`` and verify it; images are verified when they are first read.

        Raises:
            ConfigError: there is no store, or its files do not match their checksums.
        """
        root = root.expanduser().absolute()  # so its paths survive a change of working directory
        create = "create it with python -m alexnet2012.prepare source=… store=…"
        if not (root / "manifest.json").is_file():
            raise ConfigError("data.store", root, f"no store found; {create}")
        try:
            manifest = read_json_object(root / "manifest.json")
            supported = manifest["settings"]["format"] == FORMAT
            intact = supported and manifest["fingerprint"] == fingerprint(root)
            intact = intact and manifest["sha256"] == manifest_digest(manifest, root)
            if intact:  # by whoever wrote it
                return cls._of(manifest, root)
        except (OSError, ValueError, LookupError, TypeError) as error:
            remedy = f"is damaged ({error}); remove it and {create}"
            raise ConfigError("data.store", root, remedy) from error
        if not supported:
            problem = "was created by an incompatible version of alexnet2012"
            raise ConfigError("data.store", root, f"{problem}; remove it and {create}")
        problem = "is damaged (its files do not match their checksums)"
        raise ConfigError("data.store", root, f"{problem}; remove it and {create}")

    @classmethod
    def _of(cls, manifest: Mapping[str, Any], root: Path) -> Store:
        """What a manifest describes; ValueError, TypeError or LookupError if it is not one."""
        size, mean_image, covariance = manifest["settings"]["size"], None, None
        if type(size) is not int:
            raise ValueError(f"size is {size}")
        if has_train := manifest["rgb_covariance"] is not None:
            mean_image = read_array(root / MEAN_IMAGE)
            covariance = np.array(manifest["rgb_covariance"], dtype=np.float64)
            if mean_image.shape != (size, size, 3):
                raise ValueError(f"{MEAN_IMAGE} has shape {mean_image.shape}, and size is {size}")
            if mean_image.dtype != np.float32 or covariance.shape != (3, 3):
                raise ValueError(f"{MEAN_IMAGE} or the covariance is of another type")
        return cls(
            root=root,
            size=size,
            classes=tuple(map(str, manifest["classes"])),
            mean_image=mean_image,
            rgb_covariance=covariance,
            fingerprint=str(manifest["fingerprint"]),
            description=str(manifest["description"]),
            splits=SPLITS if has_train else ("val",),
        )

    def narrowed(self, first_classes: int | None, skip_classes: int = 0) -> Store:
        """Keep the first classes after those skipped; the mean image stays that of all classes.

        Raises:
            ConfigError: ``first_classes`` or ``skip_classes`` is out of range.
        """
        left = len(self.classes) - skip_classes
        if skip_classes < 0 or left < 1:
            remedy = f"must be 0 to {len(self.classes) - 1}, as {self.root} has "
            remedy += f"{len(self.classes)} classes"
            raise ConfigError("data.skip_classes", skip_classes, remedy)
        if first_classes is not None and not 1 <= first_classes <= left:
            skipped = f", less data.skip_classes={skip_classes}" if skip_classes else ""
            remedy = f"must be 1 to {left}, the number of classes in {self.root}{skipped}"
            raise ConfigError("data.first_classes", first_classes, remedy)
        if first_classes is None and not skip_classes:
            return self
        kept = self.classes[skip_classes:][:first_classes]
        return replace(self, classes=kept, first_label=self.first_label + skip_classes)

    def require(self, split: str) -> None:
        """Raise ConfigError if a store of validation images alone lacks the split."""
        assert split in SPLITS, split
        if split not in self.splits:
            remedy = "contains validation images only; use a store made with training images"
            raise ConfigError("data.store", self.root, remedy)

    def split(self, name: str, limit: int | None = None) -> Split:
        """``train`` or ``val``; ``limit`` keeps the first images of each class only.

        Raises:
            ConfigError: ``limit`` is below 1, or the store has no training images.
        """
        self.require(name)
        if limit is not None and limit < 1:
            raise ConfigError("data.limit", limit, "must be 1 or more, or null for all images")
        paths, labels, digests = [], [], bytearray()
        images: Counter[str] = Counter()
        try:
            for line in read_bytes(self.root / f"{name}.tsv", MAX_LIST_BYTES).decode().splitlines():
                path, number, sha256, _ = line.split("\t")
                images[number] += 1
                label = int(number) - self.first_label
                if label in range(len(self.classes)) and (limit is None or images[number] <= limit):
                    paths.append(f"{self.root}/{path}")
                    labels.append(label)
                    digests += bytes.fromhex(sha256)
            if len(digests) != 32 * len(paths):
                raise ValueError("a digest is not of 32 bytes")
        except ValueError as error:
            remedy = f"{name}.tsv is damaged ({error}); remove the store and prepare it again"
            raise ConfigError("data.store", self.root, remedy) from error
        rows = np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)
        return Split(tuple(paths), np.array(labels, dtype=np.int64), rows)

    def source_names(self, split: str) -> dict[str, str]:
        """The name that each image of a split had in the source, by its absolute path."""
        lines = (self.root / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
        fields = (line.split("\t") for line in lines)
        return {f"{self.root}/{path}": json.loads(name) for path, _, _, name in fields}


def fingerprint(root: Path) -> str:
    """SHA-256 of the lists of a store, which contain that of every image file."""
    lists = (read_bytes(root / f"{split}.tsv", MAX_LIST_BYTES) for split in SPLITS)
    return hashlib.sha256(b"".join(lists)).hexdigest()


def manifest_digest(manifest: Mapping[str, Any], root: Path) -> str:
    """SHA-256 of the manifest's content and, if there are training images, the mean image."""
    content = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode())
    if manifest["rgb_covariance"] is not None:
        digest.update(read_bytes(root / MEAN_IMAGE))
    return digest.hexdigest()
