"""The store: what training reads. Every picture square, of one size, checked, listed, measured.

:mod:`.preparing` makes it once, ``Store.open`` reads it. On disk: ``train/CLASS/0000000.jpg``,
``val/CLASS/…``, their lists ``train.tsv`` and ``val.tsv`` (path, label, SHA-256, and the name in
the source as a JSON string), ``mean_image.npy``, ``manifest.json``, and ``rejects.jsonl`` with what
was not used and why.

Legend: P pixels a side of a stored picture.
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

SPLITS = ("train", "val")
FORMAT = 3  # of the layout on disk
MEAN_IMAGE = "mean_image.npy"


@dataclass(frozen=True)
class Split:
    """The pictures of ``train`` or ``val``, in the order of the source."""

    paths: tuple[str, ...]  # absolute
    labels: npt.NDArray[np.int64]  # [n]
    sha256: npt.NDArray[np.uint8]  # [n, 32] of the files, as they were written


@dataclass(frozen=True)
class Store:
    """A prepared data set."""

    root: Path
    size: int  # P
    classes: tuple[str, ...]
    mean_image: npt.NDArray[np.float32]  # [P, P, 3] grey levels, over the training pictures
    rgb_covariance: npt.NDArray[np.float64]  # [3, 3] grey levels², over all their pixels
    fingerprint: str  # SHA-256 of the lists, and so of every stored file
    description: str  # one sentence: what these pictures are, and what not to conclude

    @classmethod
    def open(cls, root: Path) -> Store:
        """The store at ``root``, all but its pictures checked, which are when they are read.

        Raises:
            ConfigError: there is no store, or it is not as it was made.
        """
        root = root.expanduser().absolute()  # its paths outlive a change of folder
        make = "make it with python -m alexnet2012.prepare source=… store=…"
        if not (root / "manifest.json").is_file():
            raise ConfigError("data.store", root, f"there is no store; {make}")
        try:
            manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
            known = manifest["settings"]["format"] == FORMAT
            whole = known and manifest["fingerprint"] == fingerprint(root)
            whole = whole and manifest["sha256"] == seal(manifest, root)
        except (OSError, ValueError, KeyError, TypeError) as error:
            remedy = f"is damaged ({error}); remove it and {make}"
            raise ConfigError("data.store", root, remedy) from error
        if not whole:
            what = "damaged (its parts do not belong together)"
            what = what if known else "of another version of this program"
            raise ConfigError("data.store", root, f"is {what}; remove it and {make}")
        return cls(
            root=root,
            size=manifest["settings"]["size"],
            classes=tuple(manifest["classes"]),
            mean_image=np.load(root / MEAN_IMAGE, allow_pickle=False),
            rgb_covariance=np.array(manifest["rgb_covariance"], dtype=np.float64),
            fingerprint=manifest["fingerprint"],
            description=manifest["description"],
        )

    def narrowed(self, first_classes: int | None) -> Store:
        """With its first classes only; the mean image and the colours stay those of all.

        Raises:
            ConfigError: more classes than there are.
        """
        if first_classes is None:
            return self
        if not 1 <= first_classes <= len(self.classes):
            remedy = f"must be 1 to {len(self.classes)}, the classes of {self.root}"
            raise ConfigError("data.first_classes", first_classes, remedy)
        return replace(self, classes=self.classes[:first_classes])

    def split(self, name: str, limit: int | None = None) -> Split:
        """``train`` or ``val``; ``limit`` keeps the first pictures of each class only.

        Raises:
            ConfigError: a limit below 1.
        """
        assert name in SPLITS, name
        if limit is not None and limit < 1:
            raise ConfigError("data.limit", limit, "must be 1 or more, or null for all pictures")
        paths, labels, digests = [], [], bytearray()
        taken: Counter[str] = Counter()
        for line in (self.root / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            path, label, sha256, _ = line.split("\t")
            taken[label] += 1
            if int(label) < len(self.classes) and (limit is None or taken[label] <= limit):
                paths.append(f"{self.root}/{path}")
                labels.append(int(label))
                digests += bytes.fromhex(sha256)
        rows = np.frombuffer(bytes(digests), np.uint8).reshape(-1, 32)
        return Split(tuple(paths), np.array(labels, dtype=np.int64), rows)


def fingerprint(root: Path) -> str:
    """SHA-256 of the lists of a store, which hold that of every file."""
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update((root / f"{split}.tsv").read_bytes())
    return digest.hexdigest()


def seal(manifest: Mapping[str, Any], root: Path) -> str:
    """SHA-256 of all that a manifest says, and of the mean image: what the lists do not hold."""
    said = {key: value for key, value in manifest.items() if key != "sha256"}
    digest = hashlib.sha256(json.dumps(said, sort_keys=True).encode())
    digest.update((root / MEAN_IMAGE).read_bytes())
    return digest.hexdigest()
