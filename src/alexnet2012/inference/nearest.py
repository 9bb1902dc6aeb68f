"""Nearest neighbours of images by the Euclidean distance between last hidden activations.

Shapes: N queries, M images to search, U hidden units, k nearest.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from alexnet2012.config.inference_schema import NearestConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.features import Features, compute_features, digest
from alexnet2012.inference.images import RejectedImage, find_images
from alexnet2012.inference.trained_model import load_trained

NEAREST = 6  # paper fig. 4
BLOCK = 4096  # rows whose distances are held at once


@dataclass(frozen=True)
class Neighbours:
    """An image and the images nearest to it, nearest first."""

    image: str
    nearest: list[str]
    distances: list[float]


def find_neighbours(config: NearestConfig) -> tuple[list[Neighbours], list[RejectedImage]]:
    """The nearest images of every usable image, and the rejected images.

    Raises:
        ConfigError: the features cannot be read, or were computed by another model.
    """
    features = Features.load(Path(config.features).expanduser())
    names = find_images(config.images)
    checkpoint = config.checkpoint or features.checkpoint
    trained = load_trained(Path(checkpoint).expanduser(), config.device)
    if digest(trained) != features.model_digest:
        remedy = f"is not the model that computed {config.features}; compute the features again"
        raise ConfigError("checkpoint", checkpoint, remedy)
    used, queries, rejected = compute_features(trained, names, config)
    candidates = torch.from_numpy(features.activations)
    indices = nearest(queries, candidates, config.count)  # [N, k]
    distances = (queries[:, None].double() - candidates[indices].double()).norm(dim=2)
    neighbours = [
        Neighbours(name, [features.files[index] for index in row], row_distances)
        for name, row, row_distances in zip(used, indices.tolist(), distances.tolist(), strict=True)
    ]
    return neighbours, rejected


def nearest(queries: Tensor, candidates: Tensor, count: int = NEAREST) -> Tensor:
    """Indices of the ``count`` rows of [M, U] nearest to each row of [N, U]: [N, k].

    Works in blocks: for ImageNet, all distances at once would take half a terabyte.
    """
    return torch.cat(
        [_nearest(block.double(), candidates, count) for block in queries.split(BLOCK)]
    )


def _nearest(queries: Tensor, candidates: Tensor, count: int) -> Tensor:
    distances = queries.new_empty(len(queries), 0)
    indices = torch.empty(len(queries), 0, dtype=torch.long)
    for first in range(0, len(candidates), BLOCK):
        block = torch.cdist(queries, candidates[first : first + BLOCK].double())
        best = block.topk(min(count, block.shape[1]), largest=False)
        distances = torch.cat([distances, best.values], dim=1)
        indices = torch.cat([indices, best.indices + first], dim=1)
    order = distances.argsort(dim=1, stable=True)[:, :count]
    return indices.gather(1, order)
