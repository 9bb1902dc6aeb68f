"""The layers of one process: column-parallel convolution and linear, LRN, dropout.

Every layer holds the rows (kernels, units) of the towers that live in this process. One process
may hold them all: then towers that do not read each other are the groups of one convolution.

Legend: N images, C channels of all towers here, C_in channels that one kernel reads, H×W pixels,
T towers of the net, t of them in this process.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.config import ConvConfig, NormConfig
from alexnet2012.sharding import Share


class ColumnParallel(nn.Module):
    """Kernels or units ``rows`` of a full weight [rows.total, ...] and bias [rows.total].

    ``groups`` is t where a tower reads its own channels only, else 1.
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

    def forward(self, x: Tensor) -> Tensor:
        if self.overhang:
            extra = overhang_pixels(x.shape[-1], self.kernel_size, self.stride, self.padding)
            x = F.pad(x, (0, extra, 0, extra))
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, 1, self.groups)


class ColumnParallelLinear(ColumnParallel):
    """[N, groups·inputs] → [N, rows]."""

    def forward(self, x: Tensor) -> Tensor:
        if self.groups == 1:
            return F.linear(x, self.weight, self.bias)
        x_by_tower = x.unflatten(1, (self.groups, -1))
        weight_by_tower = self.weight.unflatten(0, (self.groups, -1))
        return torch.einsum("nti,toi->nto", x_by_tower, weight_by_tower).flatten(1) + self.bias


def overhang_pixels(size: int, kernel_size: int, stride: int, padding: int) -> int:
    """Pixels by which the last window leaves an edge when windows are counted rounding up.

    224 pixels, kernel 11, stride 4: 55 windows, the last one 3 pixels outside.
    """
    return -(size + 2 * padding - kernel_size) % stride


class _LocalResponseNorm(torch.autograd.Function):
    """y = x·d^-β, d = k + s·W(x²), W the sum over a window of neighbouring maps.

    Backward: gx = g·d^-β - 2·s·β·x·W(g·x·d^(-β-1)); W is its own transpose.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, size: int, scale: float, beta: float, k: float) -> Tensor:
        denominator = _window_sum(x * x, size).mul_(scale).add_(k)
        ctx.save_for_backward(x, denominator)
        ctx.size, ctx.scale, ctx.beta = size, scale, beta
        return x * denominator.pow(-beta)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None, None]:
        (grad,) = grads
        x, denominator = ctx.saved_tensors
        direct = grad * denominator.pow(-ctx.beta)
        crossed = _window_sum(direct * x / denominator, ctx.size).mul_(x)
        return direct.sub_(crossed, alpha=2 * ctx.scale * ctx.beta), None, None, None, None


def _window_sum(x: Tensor, size: int) -> Tensor:
    """[N, t, c, H, W]: over ``size`` maps centred on each, cut off at a tower's edges."""
    total = x.clone()
    for shift in range(1, min(size // 2 + 1, x.shape[2])):
        total[:, :, shift:] += x[:, :, :-shift]
        total[:, :, :-shift] += x[:, :, shift:]
    return total


def local_response_norm(x: Tensor, norm: NormConfig, towers_here: int) -> Tensor:
    """Across neighbouring maps of one tower: [N, C, H, W] → [N, C, H, W].

    Source: paper sec. 3.3; windows never cross the towers.
    """
    scale = norm.alpha / norm.size if norm.divide_by_window else norm.alpha
    by_tower = x.unflatten(1, (towers_here, -1))
    y: Tensor = _LocalResponseNorm.apply(by_tower, norm.size, scale, norm.beta, norm.k)  # type: ignore[no-untyped-call]
    return y.flatten(1, 2)


def spatial_norm(x: Tensor, norm: NormConfig) -> Tensor:
    """Over a square of pixels of the same map: [N, C, H, W] → [N, C, H, W]. Source: 2012 code."""
    window = norm.size**2
    sums = F.avg_pool2d(x * x, norm.size, stride=1, padding=norm.size // 2) * window
    scale = norm.alpha / window if norm.divide_by_window else norm.alpha
    return x * (norm.k + scale * sums).pow(-norm.beta)


class Dropout(nn.Module):
    """Drops units in training, scales them by the kept fraction otherwise.

    The mask is drawn for every row of the global batch and every unit of the net and then sliced,
    so that any mesh drops the same units. Source: paper sec. 4.2.
    """

    def __init__(self, rate: float, units: Share, generator: torch.Generator) -> None:
        super().__init__()
        self.rate, self.units, self.generator = rate, units, generator

    def forward(self, x: Tensor, rows: Share) -> Tensor:
        if not self.training:
            return x * (1 - self.rate)
        draws = torch.rand(
            rows.total, self.units.total, generator=self.generator, device=self.generator.device
        )
        own = rows.of(draws)[:, self.units.start : self.units.stop]
        return x * (own >= self.rate)
