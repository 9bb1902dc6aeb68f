"""Kernels for a GPU, in Triton: what stands between two products in few passes over memory.

Numbers are bf16 or float32; everything is computed in float32. Where towers lie side by side in a
tensor, one launch takes all of them: 48 channels of bf16 are one and a half times what memory hands
out.

Triton comes with torch's CUDA builds. Imported only where a net is on a GPU; without one,
TRITON_INTERPRET=1 runs the same code on a CPU, slowly.

Legend: PARTS of a row, TOWERS of a launch, T parts that a program takes at a time, TIMES: so often.
"""

from __future__ import annotations

import triton
import triton.language as tl

from alexnet2012.nn.kernels.tiles import (
    addresses,
    first_parts,
    joined,
    load_numbers,
    load_with_halo,
    store_eight,
    store_numbers,
)


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # a NaN stays one


@triton.jit
def _activated(x, shift, BIAS: tl.constexpr, RELU: tl.constexpr):
    """Each of 16 plus its bias, and relu of it."""
    found = ()
    for i in tl.static_range(16):
        value = x[i]
        if BIAS:
            value += shift[i]
        if RELU:
            value = _relu(value)
        found = found + (value,)
    return found


@triton.jit
def _squares(x):
    found = ()
    for i in tl.static_range(16):
        found = found + (x[i] * x[i],)
    return found


@triton.jit
def _window_sum(x, i: tl.constexpr, HALF: tl.constexpr):
    total = x[i]
    for j in tl.static_range(1, HALF + 1):
        total += x[i - j] + x[i + j]
    return total


@triton.jit
def _powers(d, BETA: tl.constexpr):
    """d^-BETA and 1/d."""
    if BETA == 0.75:
        root = tl.rsqrt(d)
        power, inverse = root * tl.sqrt(root), root * root
    else:
        power, inverse = tl.exp2(-BETA * tl.log2(d)), 1 / d
    return power, inverse


@triton.jit
def norm_kernel(
    z, bias, y, count, z_row, z_tower, y_row, y_tower, scale, k,
    BETA: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    first = first_parts(TIMES, T, CYCLE)
    part = first % PARTS
    own_bias = bias + first % (TOWERS * PARTS) * 8
    shift = load_with_halo(own_bias, (first >= 0) & BIAS, part, PARTS, T)
    read = addresses(first, z, z_row, z_tower, PARTS, TOWERS)
    written = addresses(first, y, y_row, y_tower, PARTS, TOWERS)
    for turn in range(TIMES):
        here = first + turn * (T * CYCLE) < count
        rows = turn * (T * CYCLE // (TOWERS * PARTS))
        x = load_with_halo(read + rows * z_row, here, part, PARTS, T)
        x = _activated(x, shift, BIAS, RELU)
        squares, found = _squares(x), ()
        for i in tl.static_range(4, 12):
            power, _ = _powers(k + scale * _window_sum(squares, i, HALF), BETA)
            found = found + (x[i] * power,)
        store_eight(written + rows * y_row, here, found, T)


@triton.jit
def norm_backward_kernel(
    z, bias, grad, grad_z, sums, count, z_row, z_tower, grad_row, grad_tower, grad_z_row,
    grad_z_tower, scale, k,
    BETA: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    first = first_parts(TIMES, T, CYCLE)
    part = first % PARTS
    own_bias = bias + first % (TOWERS * PARTS) * 8
    shift = load_with_halo(own_bias, (first >= 0) & BIAS, part, PARTS, T)
    read = addresses(first, z, z_row, z_tower, PARTS, TOWERS)
    read_too = addresses(first, grad, grad_row, grad_tower, PARTS, TOWERS)
    written = addresses(first, grad_z, grad_z_row, grad_z_tower, PARTS, TOWERS)
    low, high = tl.zeros((T, 4), tl.float32), tl.zeros((T, 4), tl.float32)
    for turn in range(TIMES):
        here = first + turn * (T * CYCLE) < count
        rows = turn * (T * CYCLE // (TOWERS * PARTS))
        x = load_with_halo(read + rows * z_row, here, part, PARTS, T)
        x = _activated(x, shift, BIAS, RELU)
        g = load_with_halo(read_too + rows * grad_row, here, part, PARTS, T)
        squares = _squares(x)
        direct, crossed = (0.0, 0.0), (0.0, 0.0)  # 0, 1, 14 and 15 are in no window
        for i in tl.static_range(2, 14):
            power, inverse = _powers(k + scale * _window_sum(squares, i, HALF), BETA)
            scaled = g[i] * power
            direct, crossed = direct + (scaled,), crossed + (scaled * x[i] * inverse,)
        found = ()
        for i in tl.static_range(4, 12):
            value = direct[i] - 2 * BETA * scale * x[i] * _window_sum(crossed, i, HALF)
            if RELU:
                value = tl.where(x[i] > 0, value, 0.0)
            found = found + (value,)
        if BIAS:
            low += joined(found[0], found[1], found[2], found[3], T)
            high += joined(found[4], found[5], found[6], found[7], T)
        store_eight(written + rows * grad_z_row, here, found, T)
    if BIAS:
        own_sums = sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8
        store_numbers(own_sums, first >= 0, low, 4)
        store_numbers(own_sums + 4, first >= 0, high, 4)


@triton.jit
def relu_kernel(
    z, bias, y, count, z_row, z_tower, y_row, y_tower, BIAS: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    first = first_parts(TIMES, T, CYCLE)
    shift = load_numbers(bias + first % (TOWERS * PARTS) * 8, (first >= 0) & BIAS, 8)
    read = addresses(first, z, z_row, z_tower, PARTS, TOWERS)
    written = addresses(first, y, y_row, y_tower, PARTS, TOWERS)
    for turn in range(TIMES):
        here = first + turn * (T * CYCLE) < count
        rows = turn * (T * CYCLE // (TOWERS * PARTS))
        x = load_numbers(read + rows * z_row, here, 8)
        if BIAS:
            x += shift
        if RELU:
            x = _relu(x)
        store_numbers(written + rows * y_row, here, x, 8)


@triton.jit
def relu_backward_kernel(
    y, grad, grad_z, sums, count, y_row, y_tower, grad_row, grad_tower, grad_z_row, grad_z_tower,
    BIAS: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    first = first_parts(TIMES, T, CYCLE)
    read = addresses(first, y, y_row, y_tower, PARTS, TOWERS)
    read_too = addresses(first, grad, grad_row, grad_tower, PARTS, TOWERS)
    written = addresses(first, grad_z, grad_z_row, grad_z_tower, PARTS, TOWERS)
    total = tl.zeros((T, 8), tl.float32)
    for turn in range(TIMES):
        here = first + turn * (T * CYCLE) < count
        rows = turn * (T * CYCLE // (TOWERS * PARTS))
        g = load_numbers(read_too + rows * grad_row, here, 8)
        if RELU:
            g = tl.where(load_numbers(read + rows * y_row, here, 8) > 0, g, 0.0)
        if BIAS:
            total += g
        store_numbers(written + rows * grad_z_row, here, g, 8)
    if BIAS:
        own_sums = sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8
        store_numbers(own_sums, first >= 0, total, 8)


@triton.jit
def pool_kernel(
    x, bias, y, taken, count, x_row, x_tower, y_row, y_tower, taken_tower,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    first = first_parts(TIMES, T, CYCLE)
    here, row = first < count, first // (TOWERS * PARTS)
    column, line, image = row % WIDE, row // WIDE % HIGH, row // (WIDE * HIGH)
    top = (image * HEIGHT + line * STRIDE) * WIDTH + column * STRIDE
    tower, part = first % (TOWERS * PARTS) // PARTS, first % PARTS
    corner = x + top.to(tl.int64) * x_row + tower.to(tl.int64) * x_tower + part * 8
    best = tl.full((T, 8), float("-inf"), tl.float32)
    place = tl.zeros((T, 8), tl.int32)
    for i in tl.static_range(SIZE):
        for j in tl.static_range(SIZE):
            inside = (line * STRIDE + i < HEIGHT) & (column * STRIDE + j < WIDTH) & here
            address = (corner + (i * WIDTH + j) * x_row)[:, None] + tl.arange(0, 8)[None, :]
            value = tl.load(address, inside[:, None], float("-inf")).to(tl.float32)
            place = tl.where(value > best, i * SIZE + j, place)
            best = tl.maximum(best, value, tl.PropagateNan.ALL)
    if BIAS:
        best += load_numbers(bias + first % (TOWERS * PARTS) * 8, here, 8)
    if RELU:
        place = tl.where(best <= 0, -1, place)  # of these nothing goes back
        best = _relu(best)
    store_numbers(addresses(first, y, y_row, y_tower, PARTS, TOWERS), here, best, 8)
    store_numbers(addresses(first, taken, PARTS * 8, taken_tower, PARTS, TOWERS), here, place, 8)


@triton.jit
def unpool_kernel(
    grad, taken, grad_x, sums, count, grad_row, grad_tower, taken_tower, grad_x_row, grad_x_tower,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, HIGH: tl.constexpr, WIDE: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr,
    PARTS: tl.constexpr, TOWERS: tl.constexpr, TIMES: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """A thread takes a square of STRIDE × STRIDE pixels: all of them are in the same windows."""
    DOWN: tl.constexpr = (HEIGHT + STRIDE - 1) // STRIDE
    ACROSS: tl.constexpr = (WIDTH + STRIDE - 1) // STRIDE
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE
    first = first_parts(TIMES, T, CYCLE)
    tower, part = (first % (TOWERS * PARTS) // PARTS).to(tl.int64), first % PARTS
    taken_here = taken + tower * taken_tower + part * 8
    grad_here = grad + tower * grad_tower + part * 8
    written = grad_x + tower * grad_x_tower + part * 8
    total = tl.zeros((T, 8), tl.float32)
    for turn in range(TIMES):
        here = first + turn * (T * CYCLE) < count
        square = first // (TOWERS * PARTS) + turn * (T * CYCLE // (TOWERS * PARTS))
        across, down, image = square % ACROSS, square // ACROSS % DOWN, square // (ACROSS * DOWN)
        places, grads = (), ()
        for a in tl.static_range(REACH):
            for b in tl.static_range(REACH):
                up, left = down - a, across - b
                holds = here & (up >= 0) & (up < HIGH) & (left >= 0) & (left < WIDE)
                window = ((image * HIGH + up) * WIDE + left).to(tl.int64)
                address = (taken_here + window * (PARTS * 8))[:, None] + tl.arange(0, 8)[None, :]
                places = places + (tl.load(address, holds[:, None], -1).to(tl.int32),)
                grads = grads + (load_numbers(grad_here + window * grad_row, holds, 8),)
        for p in tl.static_range(STRIDE):
            for q in tl.static_range(STRIDE):
                g = tl.zeros((T, 8), tl.float32)
                for a in tl.static_range(REACH):
                    for b in tl.static_range(REACH):
                        i, j = p + a * STRIDE, q + b * STRIDE
                        if i < SIZE and j < SIZE:
                            took = places[a * REACH + b] == i * SIZE + j
                            g += tl.where(took, grads[a * REACH + b], 0.0)
                if BIAS:
                    total += g
                line, column = down * STRIDE + p, across * STRIDE + q
                row = ((image * HEIGHT + line) * WIDTH + column).to(tl.int64)
                inside = here & (line < HEIGHT) & (column < WIDTH)
                store_numbers(written + row * grad_x_row, inside, g, 8)
    if BIAS:
        own_sums = sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8
        store_numbers(own_sums, first >= 0, total, 8)


@triton.jit
def sums_kernel(
    x, y, rows, columns, turns, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Of some columns, each program of a column of programs adds up a share of the rows."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for turn in range(turns):
        row = (tl.program_id(0) + turn * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        here = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], here, 0.0)
    tl.store(y + tl.program_id(0) * columns + column, tl.sum(total, 0), column < columns)


@triton.jit
def blocks_kernel(
    images, y, side, high, of_image, of_channel, of_line, of_column,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program makes a line of blocks."""
    image, first_line = tl.program_id(0) // high, tl.program_id(0) % high * STRIDE - PADDING
    block, channel = tl.arange(0, BLOCKS), tl.arange(0, CHANNELS)
    colour, across, down = channel % 3, channel // 3 % STRIDE, channel // (3 * STRIDE)
    line, column = first_line + down, (block * STRIDE - PADDING)[:, None] + across[None, :]
    here = (block < high)[:, None] & (channel < 3 * STRIDE * STRIDE)[None, :]
    inside = here & ((line >= 0) & (line < side))[None, :] & (column >= 0) & (column < side)
    at = (colour * of_channel + line * of_line)[None, :] + column * of_column
    x = tl.load(images + image.to(tl.int64) * of_image + at, inside, 0.0).to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * high + block
    at = y + row[:, None] * (3 * STRIDE * STRIDE) + channel[None, :]
    tl.store(at, x.to(y.dtype.element_ty), here)


@triton.jit
def units_kernel(
    z, y, state, count, columns, row_start, column_start, all_columns, threshold,
    gamma, mix_1, mix_2, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    here = at < count
    row, column = at // columns + row_start, at % columns + column_start
    number = (row * all_columns + column + 1) * gamma + tl.load(state)
    number = (number ^ ((number >> 30) & 0x3FFFFFFFF)) * mix_1
    number = (number ^ ((number >> 27) & 0x1FFFFFFFFF)) * mix_2
    x = _relu(tl.load(z + at, here, 0.0).to(tl.float32))
    x = tl.where(number >= threshold, x, 0.0)
    tl.store(y + at, x.to(y.dtype.element_ty), here)


@triton.jit
def update_kernel(
    w, v, g, loss, count, momentum, rate, decay,
    CHECKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    if CHECKED:
        count = tl.where(tl.abs(tl.load(loss)) < float("inf"), count, 0)  # which no NaN is
    here = at < count
    weight = tl.load(w + at, here)
    speed = (
        tl.load(v + at, here) * momentum
        - rate * tl.load(g + at, here).to(tl.float32)
        - decay * weight
    )
    tl.store(v + at, speed, here)
    tl.store(w + at, weight + speed, here)
