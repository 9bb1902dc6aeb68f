"""How the kernels for a GPU are called: of which maps, in how many programs.

Imported only where a net is on a GPU, as the kernels are.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import triton
from torch import Tensor

from alexnet2012.nn.kernels import triton_kernels
from alexnet2012.nn.kernels.epilogue import PART, NormParams, Pool, TowerMaps
from alexnet2012.utils.rng import GAMMA, MIX

THREADS = 128
BLOCK = 2048  # numbers at a time where there are no rows
ROWS, COLUMNS, PROGRAMS = 64, 32, 528  # of sums; programs are four a multiprocessor of an H100


def bias_relu_norm(
    z: TowerMaps, bias: Tensor | None, y: TowerMaps, norm: NormParams | None, *, relu: bool
) -> None:
    """y = normalised(relu(z + bias)), each where asked for. ``bias``: [c] of each tower here."""
    grid, tile = _tile(z, z.parts, times=4)
    tile |= {"BIAS": bias is not None, "RELU": relu}
    tensors = z.tensor, _or(bias, z), y.tensor, z.parts, *z.strides, *y.strides
    if norm is None:
        triton_kernels.relu_kernel[grid](*tensors, **tile)
    else:
        triton_kernels.norm_kernel[grid](*tensors, norm.scale, norm.k, **_formula(norm), **tile)


def bias_relu_norm_backward(
    z: TowerMaps | None,
    bias: Tensor | None,
    grad: TowerMaps,
    grad_z: TowerMaps,
    norm: NormParams | None,
    *,
    relu: bool,
) -> Tensor | None:
    """From y's gradient to z's, and where there is a ``bias`` to its: a sum over rows, float32.

    Without ``norm`` the gradient passes where ``z``, or y, is positive; and everywhere without
    ``relu``, when z is not read.
    """
    grid, tile = _tile(grad_z, grad_z.parts, _turns(grad_z.parts))
    tile |= {"BIAS": bias is not None, "RELU": relu}
    sums, read = _empty_sums(grid, grad_z), grad_z if z is None else z
    results = grad.tensor, grad_z.tensor, sums, grad_z.parts
    strides = *read.strides, *grad.strides, *grad_z.strides
    if norm is None:
        triton_kernels.relu_backward_kernel[grid](read.tensor, *results, *strides, **tile)
    else:
        numbers = norm.scale, norm.k
        triton_kernels.norm_backward_kernel[grid](
            read.tensor, _or(bias, read), *results, *strides, *numbers, **_formula(norm), **tile
        )
    return None if bias is None else summed(sums)


def max_pool(
    x: TowerMaps, bias: Tensor | None, y: TowerMaps, taken: TowerMaps, pool: Pool, *, relu: bool
) -> None:
    """y = relu(largest of each window + bias), each where asked for.

    ``taken``, int8 and of y's shape: which pixel of its window that was, row by row; -1 for none.
    """
    grid, tile = _tile(y, y.parts, times=1)
    tile |= {"BIAS": bias is not None, "RELU": relu}
    tensors = x.tensor, _or(bias, x), y.tensor, taken.tensor, y.parts
    strides = *x.strides, *y.strides, taken.tower
    triton_kernels.pool_kernel[grid](*tensors, *strides, **_sides(x, y), **_windows(pool), **tile)


def max_pool_backward(
    grad: TowerMaps, taken: TowerMaps, grad_x: TowerMaps, pool: Pool, *, sums: bool
) -> Tensor | None:
    """From y's gradient to x's, and with ``sums`` to that of a bias."""
    images, _, *sides = grad_x.shape
    squares = images * math.prod(-(-side // pool.stride) for side in sides)
    parts = squares * grad_x.towers * (grad_x.channels // PART)
    grid, tile = _tile(grad_x, parts, _turns(parts))
    tile |= {"BIAS": sums}
    found = _empty_sums(grid, grad_x)
    tensors = grad.tensor, taken.tensor, grad_x.tensor, found, parts
    strides = *grad.strides, taken.tower, *grad_x.strides
    triton_kernels.unpool_kernel[grid](
        *tensors, *strides, **_sides(grad_x, grad), **_windows(pool), **tile
    )
    return summed(found) if sums else None


def summed(x: Tensor) -> Tensor:
    """[n, c] → [c], of float32, where there are many more rows than columns."""
    columns = x.shape[1]
    across = triton.cdiv(columns, COLUMNS)
    for programs in (triton.cdiv(PROGRAMS, across), 1):  # shares of the rows, then of the shares
        rows = len(x)
        down = max(1, min(programs, triton.cdiv(rows, ROWS)))  # one also of no rows
        y = x.new_empty(down, columns)
        turns = triton.cdiv(rows, down * ROWS)
        triton_kernels.sums_kernel[(down, across)](
            x, y, rows, columns, turns, ROWS=ROWS, COLUMNS=COLUMNS
        )
        x = y
    return x[0]


def image_to_blocks(images: Tensor, y: Tensor, stride: int, padding: int) -> None:
    """[N, 3, S, S] → [N, 3·stride², B, B], channels last: square blocks of pixels as channels.

    The first block begins ``padding`` pixels outside; what lies outside is 0. Within a block
    channels count row by row, and red, green, blue of each pixel.
    """
    count, channels, _, side = y.shape
    triton_kernels.blocks_kernel[(count * side,)](
        images, y, images.shape[-1], side, *images.stride(), STRIDE=stride, PADDING=padding,
        BLOCKS=triton.next_power_of_2(side), CHANNELS=triton.next_power_of_2(channels),
    )  # fmt: skip


def relu_dropout(
    z: Tensor, y: Tensor, state: Tensor, place: tuple[int, int, int], threshold: int
) -> None:
    """y = relu(z) where the number drawn for a unit reaches ``threshold``, else 0: [n, k] both.

    ``place``: the first row and the first column of z in the global batch and the whole layer, and
    how many columns that has. Draws what :func:`alexnet2012.nn.dropout.draws` does.
    """
    count = z.numel()
    triton_kernels.units_kernel[(triton.cdiv(count, BLOCK),)](
        z, y, state, count, z.shape[1], *place, threshold, GAMMA, *(f for _, f in MIX), BLOCK=BLOCK
    )


def sgd_update(
    weight: Tensor,
    velocity: Tensor,
    grad: Tensor,
    momentum: float,
    rate: float,
    decay: float,
    loss: Tensor | None,
) -> None:
    """v ← momentum·v - rate·g - decay·w;  w ← w + v, unless there is a ``loss`` and it is not
    finite. All of the same layout, and float32 but for g.
    """
    count, checked = weight.numel(), loss is not None
    triton_kernels.update_kernel[(triton.cdiv(count, BLOCK),)](
        weight, velocity, grad, loss if checked else weight, count, momentum, rate, decay,
        CHECKED=checked, BLOCK=BLOCK,
    )  # fmt: skip


def _or(bias: Tensor | None, maps: TowerMaps) -> Tensor:
    """A pointer that is not read stands where there is no bias."""
    return maps.tensor if bias is None else bias


def _tile(maps: TowerMaps, count: int, times: int) -> tuple[tuple[int], dict[str, Any]]:
    """For ``count`` parts, or squares of parts."""
    parts = maps.channels // PART
    in_a_row = parts * maps.towers
    cycle = in_a_row // math.gcd(in_a_row, THREADS)
    grid = (triton.cdiv(count, THREADS * cycle * times) * cycle,)
    sizes = {"PARTS": parts, "TOWERS": maps.towers, "TIMES": times, "T": THREADS, "CYCLE": cycle}
    return grid, sizes


def _turns(parts: int) -> int:
    """As many as leave the GPU enough programs; the more, the fewer sums go through memory."""
    enough = max(2, parts // (THREADS * 2048))
    return min(16, 1 << (enough.bit_length() - 1))


def _empty_sums(grid: tuple[int], maps: TowerMaps) -> Tensor:
    """[…, channels of all towers]: of each thread of a grid, eight of them."""
    count = grid[0] * THREADS * PART
    found = torch.empty(count, device=maps.tensor.device)
    return found.view(-1, maps.channels * maps.towers)


def _formula(norm: NormParams) -> dict[str, Any]:
    return {"BETA": norm.beta, "HALF": norm.size // 2}


def _sides(before: TowerMaps, after: TowerMaps) -> dict[str, int]:
    (height, width), (high, wide) = before.shape[2:], after.shape[2:]
    return {"HEIGHT": height, "WIDTH": width, "HIGH": high, "WIDE": wide}


def _windows(pool: Pool) -> dict[str, int]:
    return {"SIZE": pool.size, "STRIDE": pool.stride}
