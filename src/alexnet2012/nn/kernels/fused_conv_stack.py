"""The conv layers of a network on a GPU, each followed by its fused epilogue.

Towers of one process that do not read each other get separate tensors and separate convolutions:
cuDNN is slow at grouped convolutions.

Shapes: N images, C channels of all towers in this process, c of one tower, t towers, H×W pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet2012.nn.kernels.autograd import fused_epilogue
from alexnet2012.nn.kernels.epilogue import Epilogue
from alexnet2012.nn.layers import ColumnParallelConv2d


class FusedConv(NamedTuple):
    layer: ColumnParallelConv2d
    conv: Callable[[Tensor], Tensor]  # of [N, C, H, W], gathered where needed; without bias
    after: Sequence[Epilogue | Callable[[Tensor], Tensor]]  # the first adds the bias
    separate: bool  # the next convolution reads each tower separately


def fused_conv_stack(
    images: Tensor, convolutions: Sequence[FusedConv], towers: int, dtype: torch.dtype
) -> Tensor:
    """Run all convolutions: [N, 3, S, S] → [N, C, H, W] of the last."""
    maps: tuple[Tensor, ...] = (images,)  # [N, C, H, W], or t times [N, c, H, W]
    for layer, conv, after, separate in convolutions:
        if maps[0] is images and layer.stride > 1:
            maps = (layer(layer.space_to_depth(images, dtype), input_is_blocks=True),)
        elif maps[0] is images:
            maps = (conv(images.to(dtype).contiguous(memory_format=torch.channels_last)),)
        else:
            maps = (conv(*maps),) if len(maps) == 1 else layer(*maps, skip_bias=True)
        bias: Tensor | None = layer.bias
        for step in after:
            if isinstance(step, Epilogue):
                split = separate and step is after[-1]
                maps, bias = fused_epilogue(maps, bias, step, towers, separate=split), None
            else:
                maps = (step(*maps),)
        if separate and len(maps) == 1:
            by_tower = maps[0].chunk(towers, 1)
            maps = tuple(x.contiguous(memory_format=torch.channels_last) for x in by_tower)
    return torch.cat(maps, 1) if len(maps) > 1 else maps[0]
