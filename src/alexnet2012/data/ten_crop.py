"""Test-time crops whose predictions are averaged: the centre crop, or the ten crops of the paper.

Shapes: n images, V views (crops) per image, S×S input pixels, P×P pixels of a stored image.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.schema import AugmentConfig, ConfigError


def view_positions(views: int, store_size: int, input_size: int) -> npt.NDArray[np.int32]:
    """Positions of 1 or 10 views as (y, x, flip): int32 [V, 3].

    One view is the centre; ten are the four corners and the centre, then the same five flipped.

    Raises:
        ConfigError: another number of views.

    Source: paper sec. 4.1.
    """
    if views not in (1, 10):
        raise ConfigError("views", views, "must be 1 (the centre crop) or 10")
    far = store_size - input_size
    places = [(0, 0), (0, far), (far, 0), (far, far), (far // 2, far // 2)]
    positions = [(y, x, flip) for flip in (0, 1) for y, x in places]
    return np.array(positions if views == 10 else positions[4:5], dtype=np.int32)


def extract_views(
    images: Tensor,
    positions: npt.NDArray[np.int32],
    mean: Tensor,
    augment: AugmentConfig,
    input_size: int,
) -> Tensor:
    """Crop, flip and subtract the mean image [P, P, 3].

    uint8 [n, P, P, 3] → float32 [n, V, 3, S, S], a permuted view of channels-last memory.
    """
    size = input_size
    views = torch.empty((len(images), len(positions), size, size, 3), device=images.device)
    for view, (y, x, flip) in enumerate(positions.tolist()):
        crop = images[:, y : y + size, x : x + size]
        if augment.mean_follows_crop:
            centred = crop - mean[y : y + size, x : x + size]
            views[:, view] = centred.flip(2) if flip else centred
        else:
            views[:, view] = (crop.flip(2) if flip else crop) - centre_crop(mean, size)
    return views.permute(0, 1, 4, 2, 3)


def centre_crop(image: Tensor, size: int) -> Tensor:
    """The centre of an image: [P, P, 3] → [S, S, 3], a view."""
    start = (len(image) - size) // 2
    return image[start : start + size, start : start + size]
