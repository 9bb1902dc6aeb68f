"""Launchers of the Triton kernels: which maps a launch covers, on what grid.

Imported only by models on a GPU, like the kernels.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from alexnet2012.nn.kernels import triton_kernels
from alexnet2012.nn.kernels.epilogue import VECTOR, NormParams, Pool, TowerMaps
from alexnet2012.utils.rng import GAMMA, MIX

THREADS = 128  # per program
BLOCK = 2048  # numbers per program of an element-wise kernel
ROWS, COLUMNS, PROGRAMS = 64, 32, 528  # of column sums; four programs per multiprocessor of an H100


def bias_relu_norm(
    z: TowerMaps, bias: Tensor | None, y: TowerMaps, norm: NormParams | None, *, relu: bool
) -> None:
    """y = lrn(relu(z + bias)), each where enabled. ``bias``: [c] of each tower of the launch."""
    grid, constants = _launch_config(z, z.vectors, 4, BIAS=bias is not None, RELU=relu)
    tensors = z.tensor, _pointer(bias, z), y.tensor, z.vectors, *z.strides, *y.strides
    if norm is None:
        triton_kernels.bias_relu_kernel[grid](*tensors, **constants)
    else:
        triton_kernels.bias_relu_norm_kernel[grid](
            *tensors, norm.scale, norm.k, **_norm_constants(norm), **constants
        )


def bias_relu_norm_backward(
    z: TowerMaps | None,
    bias: Tensor | None,
    grad: TowerMaps,
    grad_z: TowerMaps,
    norm: NormParams | None,
    *,
    relu: bool,
) -> Tensor | None:
    """From the gradient of y to that of z and, with a ``bias``, of the bias: [c], float32.

    Without ``norm``, ``z`` may be y, or None if ``relu`` is off too.
    """
    grid, constants = _launch_config(grad_z, grad_z.vectors, BIAS=bias is not None, RELU=relu)
    sums, read = _empty_sums(grid, grad_z), grad_z if z is None else z
    results = grad.tensor, grad_z.tensor, sums, grad_z.vectors
    strides = *read.strides, *grad.strides, *grad_z.strides
    if norm is None:
        triton_kernels.bias_relu_backward_kernel[grid](read.tensor, *results, *strides, **constants)
    else:
        triton_kernels.bias_relu_norm_backward_kernel[grid](
            read.tensor, _pointer(bias, read), *results, *strides, norm.scale, norm.k,
            **_norm_constants(norm), **constants,
        )  # fmt: skip
    return None if bias is None else column_sums(sums)


def max_pool(
    x: TowerMaps, bias: Tensor | None, y: TowerMaps, argmax: TowerMaps, pool: Pool, *, relu: bool
) -> None:
    """y = relu(max over each window + bias), each where enabled.

    ``argmax``, int8 and of y's shape: the index of the maximum within its window, row by row; -1
    where ReLU gives 0.
    """
    grid, constants = _launch_config(y, y.vectors, 1, BIAS=bias is not None, RELU=relu)
    triton_kernels.max_pool_kernel[grid](
        x.tensor, _pointer(bias, x), y.tensor, argmax.tensor, y.vectors,
        *x.strides, *y.strides, argmax.tower_stride, **_pool_constants(x, y, pool), **constants,
    )  # fmt: skip


def max_pool_backward(
    grad: TowerMaps, argmax: TowerMaps, grad_x: TowerMaps, pool: Pool, *, bias: bool
) -> Tensor | None:
    """Max-pool backward by stride × stride tiles: from the gradient of y to that of x.

    With ``bias`` also the gradient of the bias: [c], float32.
    """
    images, _, *sides = grad_x.shape
    tiles = images * math.prod(-(-side // pool.stride) for side in sides)
    vectors = tiles * grad_x.towers * (grad_x.channels // VECTOR)
    grid, constants = _launch_config(grad_x, vectors, BIAS=bias)
    sums = _empty_sums(grid, grad_x)
    triton_kernels.max_pool_backward_kernel[grid](
        grad.tensor, argmax.tensor, grad_x.tensor, sums, vectors, *grad.strides,
        argmax.tower_stride, *grad_x.strides, **_pool_constants(grad_x, grad, pool), **constants,
    )  # fmt: skip
    return column_sums(sums) if bias else None


def column_sums(x: Tensor) -> Tensor:
    """Sum float32 numbers over many rows: [n, c] → [c]."""
    columns = x.shape[1]
    across = triton.cdiv(columns, COLUMNS)
    for programs in (triton.cdiv(PROGRAMS, across), 1):  # partial sums, then the sum of those
        rows = len(x)
        down = max(1, min(programs, triton.cdiv(rows, ROWS)))  # at least one, even of zero rows
        y = x.new_empty(down, columns)
        iterations = triton.cdiv(rows, down * ROWS)
        triton_kernels.column_sums_kernel[(down, across)](
            x, y, rows, columns, iterations, ROWS=ROWS, COLUMNS=COLUMNS
        )
        x = y
    return x[0]


def space_to_depth(
    images: Tensor, blocks: int, stride: int, padding: int, dtype: torch.dtype
) -> Tensor:
    """[N, 3, S, S] → [N, 3·stride², B, B], channels last: blocks of pixels become channels.

    The first block begins ``padding`` zeros outside the image. Channels of a block are ordered row
    by row, then by red, green, blue of each pixel.
    """
    count, channels = len(images), 3 * stride**2
    y = torch.empty((count, blocks, blocks, channels), dtype=dtype, device=images.device)
    triton_kernels.space_to_depth_kernel[(count * blocks,)](
        images, y, images.shape[-1], blocks, *images.stride(), STRIDE=stride, PADDING=padding,
        BLOCKS=triton.next_power_of_2(blocks), CHANNELS=triton.next_power_of_2(channels),
    )  # fmt: skip
    return y.permute(0, 3, 1, 2)


def relu_dropout(
    z: Tensor, y: Tensor, state: Tensor, position: tuple[int, int, int], threshold: int
) -> None:
    """y = relu(z) where the unit's random number reaches ``threshold``, else 0; both [n, k].

    ``position``: first row of z in the global batch, first column in the layer, and the layer's
    number of columns. The numbers are those of :func:`alexnet2012.nn.dropout.draws`.
    """
    count = z.numel()
    triton_kernels.relu_dropout_kernel[(triton.cdiv(count, BLOCK),)](
        z, y, state, count, z.shape[1], *position, threshold, GAMMA, *(f for _, f in MIX),
        BLOCK=BLOCK,
    )  # fmt: skip


def sgd_update(
    weight: Tensor,
    velocity: Tensor,
    grad: Tensor,
    momentum: float,
    rates: Tensor,
    loss: Tensor | None,
) -> None:
    """Update by :func:`triton_kernels.sgd_kernel`; the first three tensors have the same layout.

    ``rates`` [2]: the learning rate, and its product with the weight decay.
    """
    count, checked = weight.numel(), loss is not None
    triton_kernels.sgd_kernel[(triton.cdiv(count, BLOCK),)](
        weight, velocity, grad, loss if checked else weight, rates, count, momentum,
        CHECKED=checked, BLOCK=BLOCK,
    )  # fmt: skip


def _pointer(bias: Tensor | None, maps: TowerMaps) -> Tensor:
    """The bias, or some tensor in its place: a kernel without bias never reads the pointer."""
    return maps.tensor if bias is None else bias


def _launch_config(
    maps: TowerMaps, count: int, iterations: int | None = None, **flags: bool
) -> tuple[tuple[int], dict[str, Any]]:
    """Grid and compile-time constants of a launch over ``count`` vectors (or tiles of vectors)."""
    if iterations is None:  # many, which write fewer partial sums, but enough programs for a GPU
        enough = max(2, count // (THREADS * 2048))
        iterations = min(16, 1 << (enough.bit_length() - 1))
    vectors = maps.channels // VECTOR
    per_row = vectors * maps.towers
    cycle = per_row // math.gcd(per_row, THREADS)
    grid = (triton.cdiv(count, THREADS * cycle * iterations) * cycle,)
    tiling = {"VECTORS": vectors, "TOWERS": maps.towers, "T": THREADS, "CYCLE": cycle}
    return grid, {**tiling, "ITERATIONS": iterations, **flags}


def _empty_sums(grid: tuple[int], maps: TowerMaps) -> Tensor:
    """One partial sum of eight channels per thread: [..., channels of all towers]."""
    count = grid[0] * THREADS * VECTOR
    sums = torch.empty(count, device=maps.tensor.device)
    return sums.view(-1, maps.channels * maps.towers)


def _norm_constants(norm: NormParams) -> dict[str, Any]:
    return {"BETA": norm.beta, "HALF": norm.size // 2}


def _pool_constants(x: TowerMaps, y: TowerMaps, pool: Pool) -> dict[str, int]:
    names = ("HEIGHT", "WIDTH", "OUTHEIGHT", "OUTWIDTH", "SIZE", "STRIDE")
    return dict(zip(names, (*x.shape[2:], *y.shape[2:], *pool), strict=True))
