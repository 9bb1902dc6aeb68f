"""Last hidden activations of images, and the pair of files that stores them.

Shapes: M images, U hidden units.
"""

from __future__ import annotations

import hashlib
import json
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.inference_schema import FeaturesConfig, NearestConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.images import RejectedImage, decode_images
from alexnet2012.inference.trained_model import TrainedModel, last_hidden
from alexnet2012.tracking.progress_bar import over_images
from alexnet2012.utils.files import replace_text, synced
from alexnet2012.utils.text import printable
from alexnet2012.utils.untrusted import open_regular, read_json_object


@dataclass(frozen=True)
class Features:
    """Activations of images, with the names of the images and the model that produced them."""

    activations: npt.NDArray[np.float32]  # [M, U]
    files: list[str]  # [M]
    checkpoint: str
    model_digest: str  # see :func:`digest`

    def save(self, path: Path) -> None:
        """Write ``path`` (.npy) and ``path``.json, each atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.writing")
        array = np.ascontiguousarray(self.activations)
        header = np.lib.format.header_data_from_array_1_0(array)
        with synced(temporary) as file:  # np.save would not say why a file cannot be written
            np.lib.format.write_array_header_1_0(file, header)
            file.write(array.data)
        os.replace(temporary, path)
        index = {"checkpoint": self.checkpoint, "net": self.model_digest, "files": self.files}
        replace_text(_index_path(path), json.dumps(index, indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Features:
        """Read both files back, and check that they match."""
        try:
            index = read_json_object(_index_path(path))
            with open_regular(path) as file:  # of any size
                activations = np.load(file, allow_pickle=False)
            features = cls(activations, index["files"], index["checkpoint"], index["net"])
            if activations.ndim != 2 or len(activations) != len(features.files):
                raise ValueError("the number of rows differs from the number of files listed")
            if not np.isfinite(activations).all():
                raise ValueError("some values are not finite")
        except (OSError, EOFError, KeyError, MemoryError, ValueError, TypeError) as error:
            remedy = f"cannot be read ({error}); create it with python -m alexnet2012.features"
            raise ConfigError("features", path, remedy) from error
        return features


def compute_features(
    trained: TrainedModel, names: Sequence[str], config: FeaturesConfig | NearestConfig
) -> tuple[list[str], Tensor, list[RejectedImage]]:
    """Names of usable images, their activations [M, U], and the rejected images (also printed)."""
    size = len(trained.mean_image)
    used: list[str] = []
    rows: list[Tensor] = []
    rejected: list[RejectedImage] = []
    batches = decode_images(names, [size], config.batch_size, config.decode_threads)
    for batch in over_images(batches, lambda b: len(b.names) + len(b.rejected), len(names)):
        for image, reason in batch.rejected:
            print(printable(f"alexnet2012: {image}: {reason}"), file=sys.stderr)
        rejected += batch.rejected
        used += batch.names
        if batch.names:
            rows.append(last_hidden(trained, batch.pixels[size]).float())
    if not rows:
        raise ConfigError("images", config.images, "none of the images can be used")
    return used, torch.cat(rows), rejected


def digest(trained: TrainedModel) -> str:
    """SHA-256 of the parameters and the mean image; a path may later hold another model."""
    sha = hashlib.sha256(trained.mean_image.tobytes())
    for name, parameter in sorted(trained.model.full_state_dict().items()):
        sha.update(name.encode() + parameter.cpu().numpy().tobytes())
    return sha.hexdigest()


def _index_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
