"""Cropping and augmenting on a device that holds all images of a split.

Only the arguments of a batch are copied to it: the crops of 128 images would be 19 MB of uint8.

Shapes: N images of a split, n of a batch, P×P pixels of a stored image, S×S of a crop.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.data.tower_feed import BatchPlan


class DevicePipeline:
    """Produces the images of each step from uint8 [N, P, P, 3] on a device.

    The arithmetic is that of DALI's ``crop_mirror_normalize`` in float32: (x - mean) / std, which
    it computes as (x - mean) · (1 / std); without lighting noise, results are bit-identical.
    """

    def __init__(
        self, images: npt.NDArray[np.uint8], input_size: int, device: torch.device
    ) -> None:
        self._images, self._size = torch.from_numpy(images).to(device), input_size

    def read(self, steps: Sequence[BatchPlan]) -> Iterator[Tensor]:
        """float32 [n, S, S, 3] for each step."""
        for step in steps:
            indices, yx, flip, minus_offset, divisor = (
                torch.from_numpy(array).to(self._images.device, non_blocking=True)
                for array in (step.indices, *step.crop_args, *step.augment_args)
            )
            windows = crops(self._images, indices, yx, flip != 0, self._size)
            scale = 1 / divisor[:, None, None]
            yield windows.float().sub_(minus_offset[:, None, None]).mul_(scale)


def crops(images: Tensor, indices: Tensor, yx: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crops of the images, flipped where asked, in one kernel: [N, P, P, 3] → [n, S, S, 3]."""
    rows, columns = _places(yx, flip, size)
    return images[indices[:, None, None], rows[:, :, None], columns[:, None]]


def mean_crops(mean: Tensor, yx: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop and flip the mean image for each image: [P, P, 3] → [n, S, S, 3]."""
    rows, columns = _places(yx, flip, size)
    return mean[rows[:, :, None], columns[:, None]]


def _places(yx: Tensor, flip: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Rows and columns of each crop: two [n, S]."""
    offsets = torch.arange(size, device=yx.device)
    rows = yx[:, :1] + offsets
    columns = yx[:, 1:] + torch.where(flip[:, None], size - 1 - offsets, offsets)
    return rows, columns
