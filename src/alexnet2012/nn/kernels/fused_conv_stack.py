"""The convolutions of a net on a GPU, with what follows each in few passes over its memory.

Towers of a process that do not read each other have tensors of their own: cuDNN is slow at groups.

Legend: N images, C channels of all towers here, c of one, t towers, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet2012.nn.kernels.autograd import fused_epilogue
from alexnet2012.nn.kernels.epilogue import Epilogue
from alexnet2012.nn.layers import ColumnParallelConv2d

Maps = tuple[Tensor, ...]  # [N, C, H, W], or t times [N, c, H, W]


class FusedConv(NamedTuple):
    """A layer, and what follows it."""

    layer: ColumnParallelConv2d
    product: Callable[[Tensor], Tensor]  # of [N, C, H, W], exchanged where need be; without bias
    after: Sequence[Epilogue | Callable[[Tensor], Tensor]]  # the first adds the bias
    apart: bool  # the next one reads each tower by itself


def fused_conv_stack(
    images: Tensor, convolutions: Sequence[FusedConv], towers: int, dtype: torch.dtype
) -> Tensor:
    """What the last one gives: [N, 3, S, S] → [N, C, H, W]."""
    maps: Maps = (images,)
    for layer, product, after, apart in convolutions:
        if maps[0] is images and layer.stride > 1:
            maps = (layer(layer.in_blocks(images, dtype), blocks=True),)
        elif maps[0] is images:
            maps = (product(images.to(dtype).contiguous(memory_format=torch.channels_last)),)
        else:
            maps = (product(*maps),) if len(maps) == 1 else layer(*maps, skip_bias=True)
        maps = _followed(maps, layer.bias, after, towers, apart=apart)
    return torch.cat(maps, 1) if len(maps) > 1 else maps[0]


def _followed(
    maps: Maps,
    bias: Tensor | None,
    after: Sequence[Epilogue | Callable[[Tensor], Tensor]],
    towers: int,
    *,
    apart: bool,
) -> Maps:
    for i, step in enumerate(after):
        if isinstance(step, Epilogue):
            by_tower = apart and i == len(after) - 1
            maps, bias = fused_epilogue(maps, bias, step, towers, by_tower=by_tower), None
        else:
            (whole,) = maps
            maps = (step(whole),)
    if apart and len(maps) == 1:
        own = maps[0].chunk(towers, 1)
        maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in own)
    return maps
