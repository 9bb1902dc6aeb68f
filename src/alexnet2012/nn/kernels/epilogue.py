"""What follows a product on a GPU, as passes over memory: how a recipe falls into them."""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import ConvConfig, NormConfig, RecipeConfig

PART = 8  # channels that a thread of a GPU takes at a time: 16 bytes of bf16
HALO = 4  # channels on each side of a part, twice as many as half a window


class NormParams(NamedTuple):
    """d = k + scale · (sum of squares over a window); y = x · d^-beta.

    The window: ``size`` neighbouring maps, or a square of so many pixels a side.
    """

    size: int
    scale: float
    beta: float
    k: float


class Pool(NamedTuple):
    size: int
    stride: int

    def side(self, side: int) -> int:
        """Pixels after it, as torch counts: rounding up, and no window wholly outside."""
        found = -(-(side - self.size) // self.stride) + 1
        return found - ((found - 1) * self.stride >= side)


class TowerMaps(NamedTuple):
    """Maps of one or more towers that lie channels last, a row for each pixel.

    ``tensor`` begins at the first number of the first tower's; the next row and the next tower are
    so many numbers on.
    """

    tensor: Tensor
    shape: tuple[int, int, int, int]  # of a tower: N, c, H, W
    row: int
    towers: int = 1
    tower: int = 0

    @property
    def channels(self) -> int:
        return self.shape[1]

    @property
    def parts(self) -> int:
        """All there are."""
        return self.towers * math.prod(self.shape) // PART

    @property
    def strides(self) -> tuple[int, int]:
        return self.row, self.tower


class Epilogue(NamedTuple):
    """What one pass does: relu, normalisation, pooling, relu, each where it is wanted."""

    relu: bool = False
    norm: NormParams | None = None
    pool: Pool | None = None
    relu_last: bool = False

    @property
    def early_relu(self) -> bool:
        """Before what is written next; behind a pooling alone it may come after, too."""
        return self.relu and (self.norm is not None or self.pool is None)

    @property
    def read_backward(self) -> str:
        """What the backward pass reads besides gradients: z, y, or nothing."""
        if self.norm is not None:
            return "z"
        return "y" if self.early_relu else ""


def split_epilogues(
    conv: ConvConfig, recipe: RecipeConfig, activation: Activation, channels: int
) -> list[Epilogue | LayerOp]:
    """The steps after a convolution of ``channels`` a tower; a step that has no kernel stays."""
    found: list[Epilogue | LayerOp] = []
    steps = list(conv.after)
    while steps:
        tail = Epilogue()
        if steps[0] is LayerOp.activation and activation is Activation.relu:
            tail, steps = tail._replace(relu=True), steps[1:]
        own = not recipe.lrn_across_towers
        if steps[:1] == [LayerOp.lrn] and own and fits(channels, recipe.lrn):
            tail, steps = tail._replace(norm=norm_of(recipe.lrn)), steps[1:]
        if steps[:1] == [LayerOp.max_pool] and recipe.pool.size**2 <= 128:  # places, in an int8
            tail = tail._replace(pool=Pool(recipe.pool.size, recipe.pool.stride))
            steps = steps[1:]
            if steps[:1] == [LayerOp.activation] and activation is Activation.relu:
                tail, steps = tail._replace(relu_last=True), steps[1:]
        if tail == Epilogue():
            found.append(steps.pop(0))
        else:
            found.append(tail)
    adds_bias = bool(found) and isinstance(found[0], Epilogue)
    return found if adds_bias else [Epilogue(), *found]


def norm_of(config: NormConfig, window: int | None = None) -> NormParams:
    """Of a window of so many numbers; None: of ``size`` maps."""
    scale = config.alpha / (window or config.size) if config.divide_by_window else config.alpha
    return NormParams(config.size, scale, config.beta, config.k)


def fits(channels: int, norm: NormConfig | NormParams | None = None) -> bool:
    """Whether there are kernels for a tower of so many channels, and for windows of so many."""
    return channels % PART == 0 and (norm is None or norm.size // 2 * 2 <= HALO)
