"""The layers of one process: column-parallel convolution and linear, dropout.

Every layer holds the rows (kernels, units) of the towers that live in this process. One process
may hold them all: then towers that do not read each other are the groups of one convolution.

Legend: N images, C channels of all towers here, C_in channels that one kernel reads, H×W pixels,
T towers of the net, t of them in this process.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.config.enums import Step
from alexnet2012.config.schema import ConfigError, ConvConfig, RecipeConfig
from alexnet2012.nn.kernels.autograd import hidden_units, in_blocks, rounded, weight_in_blocks
from alexnet2012.nn.kernels.epilogue import Pool
from alexnet2012.utils.rng import GAMMA, MIX, int64
from alexnet2012.utils.shard import Share


class ColumnParallel(nn.Module, ABC):
    """Kernels or units ``rows`` of a full weight [rows.total, ...] and bias [rows.total].

    ``groups`` is t where a tower reads its own channels only, else 1. Both are brought to the type
    of the activations when they are used: bf16 rounds copies, and updates add up in float32.
    """

    def __init__(self, rows: Share, row_shape: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.rows, self.groups = rows, groups
        self.weight = nn.Parameter(torch.empty(rows.size, *row_shape))
        self.bias = nn.Parameter(torch.empty(rows.size))

    def draw(self, weight_std: float, bias: float, generator: torch.Generator) -> None:
        """Initial values: the *full* weight is drawn and the own rows kept, on any mesh."""
        full = torch.randn(self.rows.total, *self.weight.shape[1:], generator=generator)
        with torch.no_grad():
            self.weight.copy_(self.rows.of(full).mul_(weight_std))
            self.bias.fill_(bias)

    def forward(
        self,
        x: Tensor,
        *others: Tensor,
        of_all: Callable[..., Tensor] | None = None,
        skip_bias: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """``x`` is all that the layer reads; or the own tower's part, and ``of_all`` makes of it
        and of a product with its weights that of all.

        With ``others`` x is what the first tower here reads, and each tower has a product of its
        own. With ``skip_bias`` what follows adds it.
        """
        weight = rounded(self.weight, x.dtype)
        bias = None if skip_bias else self.bias.to(x.dtype)
        if others:
            assert skip_bias
            towers = (x, *others)
            by_tower = weight.chunk(len(towers))
            return tuple(self.product(x, w, None) for x, w in zip(towers, by_tower, strict=True))
        if of_all is None:
            return self.product(x, weight, bias)
        return of_all(x, self.product, weight, bias)

    @abstractmethod
    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """With all weights, or those of one tower's inputs."""


class ColumnParallelConv2d(ColumnParallel):
    """[N, groups·C_in, H, W] → [N, rows, H', W']."""

    def __init__(self, config: ConvConfig, rows: Share, kernel_channels: int, groups: int) -> None:
        kernel = (kernel_channels, config.kernel_size, config.kernel_size)
        super().__init__(rows, kernel, groups)
        self.kernel_size, self.stride, self.padding = (
            config.kernel_size,
            config.stride,
            config.padding,
        )
        self.overhang = config.overhang

    def forward(self, x: Tensor, *others: Tensor, blocks: bool = False, **how: Any) -> Any:
        """With ``blocks`` x is what :meth:`in_blocks` made of images; the bias is skipped."""
        if blocks:
            return F.conv2d(x, weight_in_blocks(rounded(self.weight, x.dtype), self.stride))
        return super().forward(x, *others, **how)

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        groups = x.shape[1] // weight.shape[1]
        if self.overhang:
            extra = overhang_pixels(x.shape[-1], self.kernel_size, self.stride, self.padding)
            x = F.pad(x, (0, extra, 0, extra))
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)

    def in_blocks(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, 3, S, S] → [N, 3·stride², B, B], for a GPU."""
        windows = pixels_after(self, images.shape[-1])
        blocks = windows - 1 + -(-self.kernel_size // self.stride)
        return in_blocks(images, blocks, self.stride, self.padding, dtype)


class ColumnParallelLinear(ColumnParallel):
    """[N, groups·inputs] → [N, rows]."""

    def product(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.groups == 1:
            return F.linear(x, weight, bias)
        assert bias is not None  # of towers that do not read each other nothing is under way
        x_by_tower = x.unflatten(1, (self.groups, -1))
        weight_by_tower = weight.unflatten(0, (self.groups, -1))
        return torch.einsum("nti,toi->nto", x_by_tower, weight_by_tower).flatten(1) + bias


def overhang_pixels(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Pixels by which the last window leaves an edge when windows are counted rounding up.

    224 pixels, kernel 11, stride 4: 55 windows, the last one 3 pixels outside.
    """
    return -(size + 2 * padding - kernel_size) % stride


def pixels_after(conv: ConvConfig | ColumnParallelConv2d, size: int) -> int:
    """Windows that a convolution has on a side of so many pixels."""
    padded = size + 2 * conv.padding
    if conv.overhang:
        padded += overhang_pixels(size, conv.kernel_size, conv.stride, conv.padding)
    return (padded - conv.kernel_size) // conv.stride + 1


def map_sizes(recipe: RecipeConfig, input_size: int) -> dict[str, int]:
    """Pixels a side after each convolution and its pooling.

    Raises:
        ConfigError: an input of which nothing is left.
    """
    sizes, size = {}, input_size
    for name, conv in recipe.convs.items():
        size = pixels_after(conv, size)
        if {Step.max_pool, Step.average_pool} & set(conv.after):
            size = Pool(recipe.pool.size, recipe.pool.stride).side(size)
        if size < 1:
            remedy = f"too small: nothing is left after {name}; use 224, or 64 and more"
            raise ConfigError("model.input_size", input_size, remedy)
        sizes[name] = size
    return sizes


class Dropout(nn.Module):
    """Drops units in training, scales them by the kept fraction otherwise.

    What is drawn for a unit follows from its place in the global batch and in the net, so that any
    mesh drops the same units, and each process draws its own alone. Source: paper sec. 4.2.
    """

    def __init__(self, rate: float, units: Share, seed: int, device: torch.device) -> None:
        super().__init__()
        self.rate, self.units = rate, units
        self.state = torch.tensor([seed], device=device)  # of the stream, before the next step

    def forward(self, x: Tensor, rows: Share) -> Tensor:
        if not self.training:
            return x * (1 - self.rate)
        kept = draws(self.state, rows, self.units) >= self._threshold
        self._advance(rows)
        return x * kept

    def of_relu(self, z: Tensor, rows: Share) -> Tensor:
        """relu(z), dropped out, in one pass over a GPU's memory. In training only."""
        place = (rows.start, self.units.start, self.units.total)
        x = hidden_units(z, self.state, place, self._threshold)
        self._advance(rows)
        return x

    @property
    def _threshold(self) -> int:
        return int64(round(self.rate * 2**64) - 2**63)

    def _advance(self, rows: Share) -> None:
        self.state.add_(int64(rows.total * self.units.total * GAMMA))


def draws(state: Tensor, rows: Share, columns: Share) -> Tensor:
    """A part of the next rows.total × columns.total numbers of a SplitMix64 stream, row by row.

    Evenly spread over int64: [1] → [rows.size, columns.size]. The last shift of SplitMix64 is left
    out: it changes none of the 31 highest bits. Source: Steele, Lea and Flood 2014, "Fast
    splittable pseudorandom number generators".
    """
    row, column = (torch.arange(s.start, s.stop, device=state.device) for s in (rows, columns))
    z = (row * columns.total + 1)[:, None] * GAMMA + (column * GAMMA + state)
    for shift, factor in MIX:
        z.bitwise_xor_((z >> shift).bitwise_and_(2 ** (64 - shift) - 1)).mul_(factor)
    return z
