"""Response normalisation: over neighbouring maps (the paper's), or over neighbouring pixels.

Legend: N images, C channels, H×W pixels, M = N·H·W, t towers in this process, c channels of each.
Pieces to work on are [M, t, c] where a window holds maps, [n, C, H, W] where it holds pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.config.schema import NormConfig
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.kernels.epilogue import Epilogue, NormParams, fits, norm_of

BLOCK = 2**18  # numbers of a map that are worked on at a time on a CPU: they stay in its cache


class _ResponseNorm(torch.autograd.Function):
    """y = x·d^-β, d = k + s·W(x²), W the sum over a window of maps, or of pixels of a map.

    Backward: gx = g·d^-β - 2·s·β·x·W(g·x·d^(-β-1)); W is its own transpose. Only x is kept: to
    compute d again costs less than to read it from memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: NormParams, towers: int | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm, ctx.towers = norm, towers
        y = torch.empty_like(x, memory_format=torch.channels_last)
        for x_piece, y_piece in _blocks(towers, x, y):
            y_piece.copy_(_normalised(x_piece, norm))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        for x_piece, grad_piece, out_piece in _blocks(ctx.towers, x, grad, grad_x):
            out_piece.copy_(_gradient(x_piece, grad_piece, ctx.norm))
        return grad_x, None, None


def _normalised(x: Tensor, norm: NormParams) -> Tensor:
    x = _wide(x)
    return _to_minus(_denominator(x, norm), norm.beta).mul_(x)


def _gradient(x: Tensor, grad: Tensor, norm: NormParams) -> Tensor:
    """The gradient of the result → that of x."""
    x, grad = _wide(x), _wide(grad)
    denominator = _denominator(x, norm)
    direct = _to_minus(denominator, norm.beta).mul_(grad)
    crossed = _window_sum((direct * x).div_(denominator), norm.size)
    return direct.addcmul_(x, crossed, value=-2 * norm.scale * norm.beta)


def _denominator(x: Tensor, norm: NormParams) -> Tensor:
    sums = _window_sum(x * x, norm.size)
    return torch.add(torch.full_like(sums[:1, :1, :1], norm.k), sums, alpha=norm.scale)


def _to_minus(x: Tensor, exponent: float) -> Tensor:
    """x to the power of -exponent; the paper's ¾ by square roots, an order of magnitude sooner."""
    return x.sqrt().mul_(x).rsqrt_() if exponent == 0.75 else x.pow(-exponent)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Over ``size`` maps or ``size`` × ``size`` pixels centred on each, cut off at the edges."""
    if x.dim() == 4:
        return F.avg_pool2d(x, size, stride=1, padding=size // 2, divisor_override=1)
    total = x.clone()
    for shift in range(1, min(size // 2 + 1, x.shape[2])):
        total[..., shift:] += x[..., :-shift]
        total[..., :-shift] += x[..., shift:]
    return total


def _wide(x: Tensor) -> Tensor:
    """Types of 16 bits as float32: sums of squares need its digits."""
    return x.float() if x.element_size() < 4 else x


def _blocks(towers: int | None, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Equal pieces of maps [N, C, H, W] that lie channels last; on a GPU, one."""
    pieces = list(maps)
    if towers is not None:
        pieces = [x.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (towers, -1)) for x in maps]
    if maps[0].is_cuda or torch.compiler.is_exporting():  # a graph is for any number of images
        yield tuple(pieces)
        return
    step = max(1, BLOCK // pieces[0].shape[1:].numel())
    yield from zip(*(p.split(step) for p in pieces), strict=True)


def local_response_norm(x: Tensor, norm: NormConfig, towers_here: int) -> Tensor:
    """Across neighbouring maps of one tower: [N, C, H, W] → [N, C, H, W].

    Source: paper sec. 3.3; windows never cross the towers.
    """
    return response_norm(x, norm_of(norm), towers_here)


def spatial_norm(x: Tensor, norm: NormConfig) -> Tensor:
    """Over a square of pixels of the same map: [N, C, H, W] → [N, C, H, W]. Source: 2012 code."""
    return response_norm(x, norm_of(norm, norm.size**2), None)


def response_norm(x: Tensor, norm: NormParams, towers: int | None) -> Tensor:
    """Across the maps of each of ``towers`` towers; None: over pixels of the same map."""
    x = x.contiguous(memory_format=torch.channels_last)
    on_gpu = x.is_cuda and towers is not None and kernels.kernels_available(x.device, x.dtype)
    if on_gpu and fits(x.shape[1] // towers, norm):  # type: ignore[operator]
        return kernels.fused_epilogue([x], None, Epilogue(norm=norm), towers, by_tower=False)[0]  # type: ignore[arg-type]
    y: Tensor = _ResponseNorm.apply(x, norm, towers)  # type: ignore[no-untyped-call]
    return y
