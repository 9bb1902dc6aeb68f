"""Epoch order and random augmentation parameters, as pure functions that anyone can recompute.

No state is kept. Every random number is determined by a seed, a named stream, an epoch and a
position in the epoch's global order, so the images of a step do not depend on the batch size, the
number of replicas, or the step from which training was resumed.

Shapes: n positions of an epoch; (y, x) is the upper left corner of a crop in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet2012.config.enums import LightingScale, Shuffle
from alexnet2012.config.schema import AugmentConfig
from alexnet2012.utils.shard import Shard, shard_of


@dataclass(frozen=True)
class AugmentationParams:
    """Parameters for n consecutive positions; ``params[a:b]`` selects some of them, as views."""

    crop_yx: npt.NDArray[np.int32]  # [n, 2] pixels
    flip: npt.NDArray[np.bool_]  # [n]
    alpha: npt.NDArray[np.float32]  # [n, 3], one per principal component, largest first

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice) -> AugmentationParams:
        return AugmentationParams(self.crop_yx[rows], self.flip[rows], self.alpha[rows])


def random_stream(seed: int, name: str, *indices: int) -> np.random.Generator:
    """An independent generator for each (seed, name, indices)."""
    # By SHA-256, as Python's own hash of a string differs between processes.
    name_key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    # A spawn key, not a longer seed: SeedSequence pads seeds with zeros, so [1] equals [1, 0].
    sequence = np.random.SeedSequence(seed, spawn_key=(name_key, *indices))
    return np.random.Generator(np.random.Philox(sequence))


def epoch_order(
    count: int, seed: int, epoch: int, shuffle: Shuffle = Shuffle.every_epoch
) -> npt.NDArray[np.int64]:
    """The random permutation of ``count`` images for an epoch: int64 [count].

    Source: the 2012 code for ``once``, which shuffled when it wrote its batches to disk.
    """
    drawn_in = 0 if shuffle is Shuffle.once else epoch
    return random_stream(seed, "order", drawn_in).permutation(count)


def replica_steps(
    count: int, batch_size: int, replica: int, replicas: int
) -> list[tuple[slice, Shard]]:
    """For each step, the positions that a replica reads, and their rows in the global batch.

    The last step covers the rest, of which a replica's share may be empty.
    """
    steps = []
    for start in range(0, count, batch_size):
        rows = shard_of(min(batch_size, count - start), replicas, replica)
        steps.append((slice(start + rows.start, start + rows.stop), rows))
    return steps


def sample_params(
    augment: AugmentConfig, count: int, margin: int, seed: int, epoch: int
) -> AugmentationParams:
    """Augmentation parameters for all positions of an epoch.

    ``margin`` is the stored size minus the input size in pixels. ``images_per_draw`` consecutive
    positions share a crop and a flip; lighting is drawn for each image.

    Source: paper sec. 4.1; the 2012 code for ``images_per_draw`` and ``include_last_position``.
    """
    assert margin >= 0, margin
    group_size = augment.images_per_draw
    groups = -(-count // group_size)
    if augment.crop:
        offsets = max(1, margin + augment.include_last_position)
        crops = random_stream(seed, "crop", epoch)
        yx = crops.integers(offsets, size=(groups, 2), dtype=np.int32)
    else:
        yx = np.full((groups, 2), margin // 2, dtype=np.int32)
    flip = np.zeros(groups, dtype=np.bool_)
    if augment.flip:
        flip = random_stream(seed, "flip", epoch).integers(2, size=groups).astype(np.bool_)
    alpha = np.zeros((count, 3), dtype=np.float32)
    if augment.lighting:
        lighting = random_stream(seed, "lighting", epoch)
        alpha = lighting.standard_normal((count, 3), dtype=np.float32)
        alpha *= np.float32(augment.lighting_std)
    return AugmentationParams(
        np.repeat(yx, group_size, axis=0)[:count], np.repeat(flip, group_size)[:count], alpha
    )


def lighting_basis(
    rgb_covariance: npt.NDArray[np.float64], scale: LightingScale
) -> npt.NDArray[np.float64]:
    """Basis of the lighting augmentation: [3, 3], ``rgb_offset = basis @ alpha`` in grey levels.

    The columns are the eigenvectors of the covariance [3, 3] (grey levels²), largest first, times

    - ``standard_deviations``: √λ. With α of .1 on ImageNet: 12.2, 3.7 and 2.0 grey levels.
    - ``eigenvalues``: λ / 255, the eigenvalue for pixels in [0, 1] (λ / 255²) converted to grey
      levels (× 255). With α of .1 on ImageNet: 5.8, .54 and .15 grey levels.

    Source: paper sec. 4.1; the 2012 code uses the standard deviations.
    """
    values, vectors = np.linalg.eigh(rgb_covariance)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # LAPACK leaves the signs undefined: make the largest component of each vector positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    deviations = scale is LightingScale.standard_deviations
    lengths = np.sqrt(values) if deviations else values / 255.0
    return np.asarray(vectors * lengths, dtype=np.float64)
