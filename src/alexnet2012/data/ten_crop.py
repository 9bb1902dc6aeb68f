"""The views of a picture that are averaged: the centre, or the paper's ten.

Legend: n pictures, V views a picture, S pixels a side of the input, P of a stored picture.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.schema import AugmentConfig, ConfigError
from alexnet2012.data import augmentation


def view_places(views: int, picture_size: int, input_size: int) -> npt.NDArray[np.int32]:
    """Where 1 or 10 views lie, as (y, x, flip): int32 [V, 3].

    Raises:
        ConfigError: another number of views.
    """
    if views not in (1, 10):
        raise ConfigError("views", views, "must be 1 (the centre) or 10")
    return (augmentation.ten_views if views == 10 else augmentation.centre_view)(
        picture_size, input_size
    )


def viewed(
    pictures: Tensor,
    places: npt.NDArray[np.int32],
    mean: Tensor,
    augment: AugmentConfig,
    input_size: int,
) -> Tensor:
    """uint8 [n, P, P, 3] → float32 [n, V, 3, S, S], less the mean image [P, P, 3]."""
    size = input_size
    views = torch.empty((len(pictures), len(places), size, size, 3), device=pictures.device)
    for view, (y, x, flip) in enumerate(places.tolist()):
        crop = pictures[:, y : y + size, x : x + size]
        if augment.mean_follows_crop:
            centred = crop - mean[y : y + size, x : x + size]
            views[:, view] = centred.flip(2) if flip else centred
        else:
            views[:, view] = (crop.flip(2) if flip else crop) - centre(mean, size)
    return views.permute(0, 1, 4, 2, 3)


def centre(mean: Tensor, size: int) -> Tensor:
    """[P, P, 3] → its centre [S, S, 3]."""
    ((y, x, _),) = augmentation.centre_view(len(mean), size).tolist()
    return mean[y : y + size, x : x + size]
