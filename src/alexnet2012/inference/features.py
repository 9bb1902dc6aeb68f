"""Last hidden activations of images, and the two files that hold them.

Legend: M images, U hidden units.
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
from alexnet2012.utils.text import printable


@dataclass(frozen=True)
class Features:
    """Activations of pictures, and whose they are."""

    activations: npt.NDArray[np.float32]  # [M, U]
    files: list[str]  # [M]
    checkpoint: str
    net: str  # a digest of its parameters

    def save(self, path: Path) -> None:
        """Both files, each whole or not at all."""
        path.parent.mkdir(parents=True, exist_ok=True)
        writing = path.with_name(f".{path.name}.writing")
        with writing.open("wb") as file:
            np.save(file, self.activations)
        os.replace(writing, path)
        about = {"checkpoint": self.checkpoint, "net": self.net, "files": self.files}
        writing.write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
        os.replace(writing, _about(path))

    @classmethod
    def load(cls, path: Path) -> Features:
        """Raises ConfigError: there are none, or the two files do not belong together."""
        try:
            about = json.loads(_about(path).read_text(encoding="utf-8"))
            found = cls(np.load(path, allow_pickle=False), **about)
            if found.activations.ndim != 2 or len(found.activations) != len(found.files):
                raise ValueError("its rows are not those of its list")
        except (OSError, EOFError, ValueError, TypeError) as error:
            remedy = f"cannot be read ({error}); python -m alexnet2012.features writes such files"
            raise ConfigError("features", path, remedy) from error
        return found


def activations_of(
    net: TrainedModel, names: Sequence[str], config: FeaturesConfig | NearestConfig
) -> tuple[list[str], Tensor, list[RejectedImage]]:
    """Names of the pictures that could be used, their activations [M, U], and the others."""
    size = len(net.mean_image)
    used: list[str] = []
    rows: list[Tensor] = []
    rejected: list[RejectedImage] = []
    for batch in decode_images(names, [size], config.batch_size, config.decode_threads):
        for one in batch.rejected:
            print(printable(f"alexnet2012: {one.image}: {one.reason}"), file=sys.stderr)
        rejected += batch.rejected
        used += batch.names
        if batch.names:
            rows.append(last_hidden(net, batch.pixels[size]).float())
    if not rows:
        raise ConfigError("images", config.images, "none of the pictures can be used")
    return used, torch.cat(rows), rejected


def digest(net: TrainedModel) -> str:
    """SHA-256 of the parameters: tells nets apart that lie at the same place."""
    found = hashlib.sha256(net.mean_image.tobytes())
    for name, parameter in sorted(net.model.full_state_dict().items()):
        found.update(name.encode() + parameter.cpu().numpy().tobytes())
    return found.hexdigest()


def _about(path: Path) -> Path:
    return path.with_name(f"{path.name}.json")
