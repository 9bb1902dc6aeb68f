"""Which picture comes when, and what is drawn for it: a plan that anyone can recompute.

Nothing here keeps state. Every draw belongs to a seed, a named stream, an epoch and a position in
the epoch's global order, so the pictures of a step are the same whatever the batch size, the
number of replicas, or the step at which training was taken up again.

Legend: n positions of an epoch, y and x the upper left corner of a crop in pixels.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from alexnet2012.config.enums import LightingScale
from alexnet2012.config.schema import AugmentConfig
from alexnet2012.utils.shard import Shard, shard_of


@dataclass(frozen=True)
class Draws:
    """What is drawn for n consecutive positions; ``draws[a:b]`` is a part of them, as views."""

    crop_yx: npt.NDArray[np.int32]  # [n, 2] pixels
    flip: npt.NDArray[np.bool_]  # [n]
    alpha: npt.NDArray[np.float32]  # [n, 3], one for each principal colour, largest first

    def __len__(self) -> int:
        return len(self.flip)

    def __getitem__(self, rows: slice) -> Draws:
        return Draws(self.crop_yx[rows], self.flip[rows], self.alpha[rows])


def stream(seed: int, name: str, *more: int) -> np.random.Generator:
    """An independent generator for each (seed, name, more).

    The name goes through SHA-256: Python's own hash of a string changes from run to run.
    """
    word = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "little")
    # A spawn key, not a longer seed: SeedSequence pads seeds with zeros, so [1] equals [1, 0].
    sequence = np.random.SeedSequence(seed, spawn_key=(word, *more))
    return np.random.Generator(np.random.Philox(sequence))


def epoch_order(count: int, seed: int, epoch: int) -> npt.NDArray[np.int64]:
    """The permutation of ``count`` pictures that an epoch goes through: int64 [count]."""
    return stream(seed, "order", epoch).permutation(count)


def replica_parts(
    count: int, batch_size: int, replica: int, replicas: int
) -> list[tuple[slice, Shard]]:
    """For each step the positions that a replica reads, and which rows of the batch these are.

    Step s has the positions sB to (s+1)B, the last step what is left of them. A replica's share of
    it may be empty.
    """
    parts = []
    for start in range(0, count, batch_size):
        rows = shard_of(min(batch_size, count - start), replicas, replica)
        parts.append((slice(start + rows.start, start + rows.stop), rows))
    return parts


def draws(augment: AugmentConfig, count: int, margin: int, seed: int, epoch: int) -> Draws:
    """The draws for all positions of an epoch.

    ``margin`` is the stored size minus the input size, in pixels. ``images_per_draw`` consecutive
    positions share a crop and a flip; the lighting is always a picture's own.

    Source: paper sec. 4.1; the 2012 code for ``images_per_draw`` and the last position.
    """
    assert margin >= 0, margin
    each = augment.images_per_draw
    groups = -(-count // each)
    if augment.crop:
        positions = max(1, margin + augment.include_last_position)
        yx = stream(seed, "crop", epoch).integers(positions, size=(groups, 2), dtype=np.int32)
    else:
        yx = np.full((groups, 2), margin // 2, dtype=np.int32)
    flip = np.zeros(groups, dtype=np.bool_)
    if augment.flip:
        flip = stream(seed, "flip", epoch).integers(2, size=groups).astype(np.bool_)
    alpha = np.zeros((count, 3), dtype=np.float32)
    if augment.lighting:
        alpha = stream(seed, "lighting", epoch).standard_normal((count, 3), dtype=np.float32)
        alpha *= np.float32(augment.lighting_std)
    return Draws(np.repeat(yx, each, axis=0)[:count], np.repeat(flip, each)[:count], alpha)


def lighting_basis(
    rgb_covariance: npt.NDArray[np.float64], scale: LightingScale
) -> npt.NDArray[np.float64]:
    """What α is multiplied with: [3, 3], ``offset = basis @ alpha`` in grey levels.

    Columns are the eigenvectors of the covariance [3, 3] (grey levels²), largest first, times

    - ``standard_deviations``: √λ. ImageNet with α of .1: 12.2, 3.7 and 2.0 grey levels.
    - ``eigenvalues``: λ / 255, which is the eigenvalue of pixels in [0, 1] (λ / 255²) brought back
      to grey levels (× 255). ImageNet with α of .1: 5.8, .54 and .15 grey levels.

    Source: paper sec. 4.1; the 2012 code takes the standard deviations.
    """
    values, vectors = np.linalg.eigh(rgb_covariance)
    values, vectors = np.maximum(values[::-1], 0.0), vectors[:, ::-1]
    # LAPACK leaves the signs open: make the largest component of each vector positive.
    largest = vectors[np.abs(vectors).argmax(axis=0), np.arange(3)]
    vectors = vectors * np.where(largest < 0, -1.0, 1.0)
    deviations = scale is LightingScale.standard_deviations
    lengths = np.sqrt(values) if deviations else values / 255.0
    return np.asarray(vectors * lengths, dtype=np.float64)


def centre_view(store_size: int, input_size: int) -> npt.NDArray[np.int32]:
    """The centre crop as (y, x, flip): int32 [1, 3]."""
    margin = store_size - input_size
    return np.array([[margin // 2, margin // 2, 0]], dtype=np.int32)


def ten_views(store_size: int, input_size: int) -> npt.NDArray[np.int32]:
    """The views averaged at test as (y, x, flip): int32 [10, 3].

    Four corners and the centre, then the same flipped.

    Source: paper sec. 4.1.
    """
    far = store_size - input_size
    corners = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    return np.array([(y, x, flip) for flip in (0, 1) for y, x in corners], dtype=np.int32)
