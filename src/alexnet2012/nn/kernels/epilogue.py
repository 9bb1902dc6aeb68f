"""Fused conv epilogues: which of a recipe's layers after a convolution one kernel pass computes."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, NamedTuple

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import ConvConfig, NormConfig, RecipeConfig

if TYPE_CHECKING:  # launching a run does not import torch
    from torch import Tensor

VECTOR = 8  # channels that a GPU thread processes at a time: 16 bytes of bf16
HALO = 4  # channels loaded on each side of a vector; LRN backward reaches two half windows


class NormParams(NamedTuple):
    """y = x·d^-beta with d = k + scale · (sum of x² over a window)."""

    size: int  # of the window: maps, or pixels per side
    scale: float
    beta: float
    k: float


class Pool(NamedTuple):
    """A pooling window of ``size`` × ``size`` pixels."""

    size: int
    stride: int

    def output_size(self, size: int) -> int:
        """Pixels per side, as in torch's ``ceil_mode``: rounds up, but no window is outside."""
        windows = -(-(size - self.size) // self.stride) + 1
        return windows - ((windows - 1) * self.stride >= size)


class TowerMaps(NamedTuple):
    """Channels-last maps of one or more towers; a row holds one pixel's channels of one tower."""

    tensor: Tensor  # begins at the first channel of the first tower
    shape: tuple[int, int, int, int]  # of one tower: N, c, H, W
    row_stride: int  # in numbers
    towers: int = 1
    tower_stride: int = 0

    @property
    def channels(self) -> int:  # of one tower
        return self.shape[1]

    @property
    def vectors(self) -> int:  # of all towers
        return self.towers * math.prod(self.shape) // VECTOR

    @property
    def strides(self) -> tuple[int, int]:
        return self.row_stride, self.tower_stride


class Epilogue(NamedTuple):
    """Layers that one fused pass computes, each where enabled: ReLU, LRN, max-pool, ReLU."""

    relu: bool = False
    norm: NormParams | None = None
    pool: Pool | None = None
    relu_last: bool = False

    @property
    def relu_before_pool(self) -> bool:
        """Whether ReLU runs before the pool; with a pool alone its kernel runs it: they commute."""
        return self.relu and (self.norm is not None or self.pool is None)

    @property
    def saved_for_backward(self) -> str:
        """What backward reads besides gradients: ``z``, ``y`` or nothing."""
        if self.norm is not None:
            return "z"
        return "y" if self.relu_before_pool else ""


def split_epilogues(
    conv: ConvConfig, recipe: RecipeConfig, activation: Activation, channels: int
) -> list[Epilogue | LayerOp]:
    """Group the layers after a convolution into fused passes, of which the first adds the bias.

    ``channels``: of one tower. Layers without a kernel stay.
    """
    passes: list[Epilogue | LayerOp] = []
    steps = list(conv.after)
    while steps:
        epilogue = Epilogue()
        if steps[0] is LayerOp.activation and activation is Activation.relu:
            epilogue, steps = epilogue._replace(relu=True), steps[1:]
        within_tower = not recipe.lrn_across_towers
        if steps[:1] == [LayerOp.lrn] and within_tower and supported(channels, recipe.lrn):
            epilogue, steps = epilogue._replace(norm=norm_params(recipe.lrn)), steps[1:]
        if steps[:1] == [LayerOp.max_pool] and recipe.pool.size**2 <= 128:  # indices are int8
            epilogue = epilogue._replace(pool=Pool(recipe.pool.size, recipe.pool.stride))
            steps = steps[1:]
            if steps[:1] == [LayerOp.activation] and activation is Activation.relu:
                epilogue, steps = epilogue._replace(relu_last=True), steps[1:]
        if epilogue == Epilogue():
            passes.append(steps.pop(0))
        else:
            passes.append(epilogue)
    adds_bias = bool(passes) and isinstance(passes[0], Epilogue)
    return passes if adds_bias else [Epilogue(), *passes]


def norm_params(config: NormConfig, window: int | None = None) -> NormParams:
    """``window``: numbers in a window, by which alpha may be divided; ``size`` by default."""
    scale = config.alpha / (window or config.size) if config.divide_by_window else config.alpha
    return NormParams(config.size, scale, config.beta, config.k)


def supported(channels: int, norm: NormConfig | NormParams | None = None) -> bool:
    """Whether the kernels support towers of ``channels`` channels, and LRN windows of this size."""
    return channels % VECTOR == 0 and (norm is None or norm.size // 2 * 2 <= HALO)
