"""Which images of a split a network misclassified: a small file beside a run's summary.

Shapes: N images of the split, K classes.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alexnet2012.data.loaders import Batch, EvalLoader
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.files import synced
from alexnet2012.utils.metrics import image_errors

FILE = "image_errors.npz"
UNITS = 240  # errors are in 240ths: exact for 0, 1, and the ties of 2 to 6, 8, 10, 12, … classes

Errors = npt.NDArray[np.uint8]  # [N]


@dataclass
class ImageErrors:
    """Top-1 and top-5 errors of each image that a loader evaluates, filled batch by batch."""

    indices: npt.NDArray[np.int64]  # [N] positions in the split, in order
    labels: npt.NDArray[np.int64]  # [N]
    top1: Errors
    top5: Errors

    @classmethod
    def empty(cls, loader: EvalLoader) -> ImageErrors:
        errors = (np.zeros(len(loader.labels), np.uint8) for _ in range(2))
        return cls(loader.indices, loader.labels, *errors)

    def add(self, batch: Batch, probabilities: Tensor) -> None:
        """Add the images of a batch; ``probabilities`` [n, K]."""
        k = min(5, probabilities.shape[1])
        errors = image_errors(probabilities, batch.labels, (1, k))
        places = np.searchsorted(self.indices, batch.indices)
        for array, by_image in ((self.top1, errors[1]), (self.top5, errors[k])):
            array[places] = (UNITS * by_image).round().byte().cpu().numpy()

    def gather(self, mesh: Mesh) -> None:
        """Add the images that other replicas evaluated. Collective."""
        parts = mesh.gather_objects((self.top1, self.top5), "errors by image")
        self.top1, self.top5 = (np.maximum.reduce(arrays) for arrays in zip(*parts, strict=True))

    def arrays(self, prefix: str = "") -> dict[str, npt.NDArray[np.generic]]:
        """Arrays to save: the errors, and a digest of the labels, by which images are matched."""
        digest = np.array(label_digest(self.labels))
        errors = {"top1": self.top1, "top5": self.top5, "labels": digest}
        return {f"{prefix}{name}": array for name, array in errors.items()}


def label_digest(labels: npt.NDArray[np.int64]) -> str:
    return hashlib.sha256(labels.astype("<i8").tobytes()).hexdigest()[:12]


def save(path: Path, arrays: dict[str, npt.NDArray[np.generic]]) -> None:
    """Write the arrays of a run; after a crash the file is the old or the new one."""
    writing = path.with_name(f".{path.name}.writing")
    with synced(writing) as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
    writing.replace(path)
