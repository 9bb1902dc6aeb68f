"""Pixels per side of the maps of each layer."""

from __future__ import annotations

from typing import TYPE_CHECKING

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import ConfigError, ConvConfig, RecipeConfig
from alexnet2012.nn.kernels.epilogue import Pool

if TYPE_CHECKING:  # launching a run does not import torch
    from alexnet2012.nn.layers import ColumnParallelConv2d


POOLS = (LayerOp.max_pool, LayerOp.average_pool)


def overhang_pixels(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Pixels by which the last window is outside the edge, if windows are counted rounding up."""
    return -(size + 2 * padding - kernel_size) % stride


def conv_output_size(conv: ConvConfig | ColumnParallelConv2d, size: int) -> int:
    """Pixels per side after a convolution of ``size`` × ``size`` pixels."""
    padded = size + 2 * conv.padding
    if conv.overhang:
        padded += overhang_pixels(size, conv.kernel_size, conv.stride, conv.padding)
    return (padded - conv.kernel_size) // conv.stride + 1


def map_sizes(recipe: RecipeConfig, input_size: int) -> dict[str, int]:
    """Pixels per side after each convolution and its pooling, by layer.

    Raises:
        ConfigError: the input is so small that no pixel is left after some layer.
    """
    sizes, size = {}, input_size
    for name, conv in recipe.convs.items():
        size = conv_output_size(conv, size)
        if set(POOLS) & set(conv.after):
            size = Pool(recipe.pool.size, recipe.pool.stride).output_size(size)
        if size < 1:
            remedy = f"too small: no pixels are left after {name}; use 224, or at least 64"
            raise ConfigError("model.input_size", input_size, remedy)
        sizes[name] = size
    return sizes
