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
    """The nearest images of every usable image, and the rejected images."""
    features = Features.load(Path(config.features))
    names = find_images(config.images)
    checkpoint = config.checkpoint or features.checkpoint
    trained = load_trained(Path(checkpoint), config.device)
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
    rows = []
    for block in queries.split(BLOCK):
        distances, indices = [], []  # of the nearest in each block of candidates
        for number, others in enumerate(candidates.split(BLOCK)):
            all_distances = torch.cdist(block.double(), others.double())
            best = all_distances.topk(min(count, len(others)), largest=False)
            distances.append(best.values)
            indices.append(best.indices + number * BLOCK)
        order = torch.cat(distances, dim=1).argsort(dim=1, stable=True)[:, :count]
        rows.append(torch.cat(indices, dim=1).gather(1, order))
    return torch.cat(rows)
