"""Response normalisation over neighbouring maps (the paper's LRN) or over neighbouring pixels.

Shapes: N images, C channels, H×W pixels, M = N·H·W, t towers in this process, c channels of each.
Blocks are [m, t, c] for windows of maps, [n, C, H, W] for windows of pixels.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.config.schema import NormConfig
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.kernels.epilogue import Epilogue, NormParams, norm_params, supported
from alexnet2012.utils import native

BLOCK = 2**18  # numbers per block on a CPU: they fit in its cache


class _ResponseNorm(torch.autograd.Function):
    """Forward: y = x·d^-β, d = k + s·W(x²); W sums over a window of maps or of pixels of a map.

    Backward: gx = g·d^-β - 2·s·β·x·W(g·x·d^(-β-1)), as W is its own transpose. Only x is saved:
    recomputing d is cheaper than reading it from memory.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, norm: NormParams, towers: int | None) -> Tensor:
        ctx.save_for_backward(x)
        ctx.norm, ctx.towers = norm, towers
        y = torch.empty_like(x, memory_format=torch.channels_last)
        if _computed_in_c(x, None, y, norm, towers):
            return y
        for x_block, y_block in _blocks(towers, x, y):
            x = _at_least_float32(x_block)
            y_block.copy_(_negative_power(_denominator(x, norm), norm.beta).mul_(x))
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        (x,) = ctx.saved_tensors
        grad = grads[0].contiguous(memory_format=torch.channels_last)
        grad_x = torch.empty_like(x, memory_format=torch.channels_last)
        x = x.contiguous(memory_format=torch.channels_last)  # hooks may have changed it
        if _computed_in_c(x, grad, grad_x, ctx.norm, ctx.towers):
            return grad_x, None, None
        for x_block, grad_block, grad_x_block in _blocks(ctx.towers, x, grad, grad_x):
            grad_x_block.copy_(_input_gradient(x_block, grad_block, ctx.norm))
        return grad_x, None, None


def _computed_in_c(
    x: Tensor, grad: Tensor | None, out: Tensor, norm: NormParams, towers: int | None
) -> bool:
    """Compute the output, or the gradient of ``x``, with the C kernels if they can."""
    covered = norm.size == 5 and norm.beta == 0.75 and norm.k > 0
    if not covered or x.dtype not in (torch.float32, torch.bfloat16) or not x.is_cpu:
        return False
    if torch.compiler.is_compiling() or torch.compiler.is_exporting():
        return False
    return native.response_norm(x, grad, out, towers, norm.scale, norm.k)


def _input_gradient(x: Tensor, grad: Tensor, norm: NormParams) -> Tensor:
    x, grad = _at_least_float32(x), _at_least_float32(grad)
    denominator = _denominator(x, norm)
    direct = _negative_power(denominator, norm.beta).mul_(grad)
    crossed = _window_sum((direct * x).div_(denominator), norm.size)
    return direct.addcmul_(x, crossed, value=-2 * norm.scale * norm.beta)


def _denominator(x: Tensor, norm: NormParams) -> Tensor:
    sums = _window_sum(x * x, norm.size)
    return torch.add(torch.full_like(sums[:1, :1, :1], norm.k), sums, alpha=norm.scale)


def _negative_power(x: Tensor, exponent: float) -> Tensor:
    """x^-exponent; the paper's ¾ by square roots, which are ten times faster than ``pow``."""
    return x.sqrt().mul_(x).rsqrt_() if exponent == 0.75 else x.pow(-exponent)


def _window_sum(x: Tensor, size: int) -> Tensor:
    """Sum over the ``size`` maps or ``size`` × ``size`` pixels centred on each, cut at edges."""
    if x.dim() == 4:
        return F.avg_pool2d(x, size, stride=1, padding=size // 2, divisor_override=1)
    total = x.clone()
    for shift in range(1, min(size // 2 + 1, x.shape[2])):
        total[..., shift:] += x[..., :-shift]
        total[..., :-shift] += x[..., shift:]
    return total


def _at_least_float32(x: Tensor) -> Tensor:  # for sums of squares
    return x.float() if x.element_size() < 4 else x


def _blocks(towers: int | None, *maps: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Matching blocks of channels-last maps [N, C, H, W]; on a GPU, a single block."""
    if towers is not None:
        maps = tuple(x.permute(0, 2, 3, 1).flatten(0, 2).unflatten(1, (towers, -1)) for x in maps)
    if maps[0].is_cuda or torch.compiler.is_exporting():  # an exported graph takes any N
        return iter([maps])
    size = max(1, BLOCK // maps[0].shape[1:].numel())
    return zip(*(x.split(size) for x in maps), strict=True)


def local_response_norm(x: Tensor, norm: NormConfig, towers: int) -> Tensor:
    """LRN across neighbouring maps of each tower: [N, C, H, W] → [N, C, H, W].

    Windows never cross towers. Source: paper sec. 3.3.
    """
    return response_norm(x, norm_params(norm), towers)


def spatial_norm(x: Tensor, norm: NormConfig) -> Tensor:
    """Normalise over a square of pixels of the same map: [N, C, H, W] → [N, C, H, W].

    Source: 2012 code.
    """
    return response_norm(x, norm_params(norm, norm.size**2), None)


class ResponseNorm(nn.Module):
    """:func:`response_norm` as a module: [N, C, H, W] → [N, C, H, W]."""

    def __init__(self, norm: NormParams, towers: int | None) -> None:
        super().__init__()
        self.norm, self.towers = norm, towers

    def forward(self, x: Tensor) -> Tensor:
        return response_norm(x, self.norm, self.towers)

    def extra_repr(self) -> str:
        size, scale, beta, k = self.norm
        over = "pixels" if self.towers is None else f"maps, towers={self.towers}"
        return f"size={size}, scale={scale:g}, beta={beta:g}, k={k:g}, across {over}"


def response_norm(x: Tensor, norm: NormParams, towers: int | None) -> Tensor:
    """Normalise across the maps of each of ``towers`` towers; None: over pixels of each map."""
    x = x.contiguous(memory_format=torch.channels_last)
    has_kernels = x.is_cuda and kernels.kernels_available(x.device, x.dtype)
    if towers is not None and has_kernels and supported(x.shape[1] // towers, norm):
        return kernels.fused_epilogue([x], None, Epilogue(norm=norm), towers, separate=False)[0]
    y: Tensor = _ResponseNorm.apply(x, norm, towers)  # type: ignore[no-untyped-call]
    return y
