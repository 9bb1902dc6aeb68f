"""Triton kernels: the fused conv epilogue (bias, ReLU, LRN, max-pool), dropout and the update.

Each kernel reads and writes its maps once. Inputs are bf16 or float32; all arithmetic is float32.
Where the channels of all towers lie side by side in one tensor, one launch handles all towers: the
96 bytes of one tower's 48 channels in bf16 would not fill whole memory transactions.

Triton ships with torch's CUDA builds, so this module is imported only by models on a GPU. Without a
GPU, TRITON_INTERPRET=1 runs the same code on the CPU, slowly.

Shapes: see :mod:`.tiles`. ``*_row`` and ``*_tower`` are strides of a map.
"""

from __future__ import annotations

import triton
import triton.language as tl

from alexnet2012.nn.kernels.tiles import (
    addresses,
    first_vectors,
    join_4,
    load_numbers,
    load_with_halo,
    store_eight,
    store_numbers,
)


@triton.jit
def _relu(x):
    return tl.where(x <= 0, 0.0, x)  # propagates NaN


@triton.jit
def _bias_relu(x, bias, BIAS: tl.constexpr, RELU: tl.constexpr):
    """relu(x + bias), each where enabled, of 16 tensors; and their squares."""
    result, squares = (), ()
    for i in tl.static_range(16):
        value = x[i]
        if BIAS:
            value += bias[i]
        if RELU:
            value = _relu(value)
        result, squares = result + (value,), squares + (value * value,)
    return result, squares


@triton.jit
def _window_sum(x, i: tl.constexpr, HALF: tl.constexpr):
    """Sum over the 2·HALF + 1 channels centred on channel i."""
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
def bias_relu_norm_kernel(
    z, bias, y, count, z_row, z_tower, y_row, y_tower, scale, k,
    BETA: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """y = x·d^-BETA with x = relu(z + bias) and d = k + scale·(sum of x² over a window)."""
    first = first_vectors(ITERATIONS, T, CYCLE)
    vector = first % VECTORS
    bias_address = bias + first % (TOWERS * VECTORS) * 8
    bias_values = load_with_halo(bias_address, (first >= 0) & BIAS, vector, VECTORS, T)
    z_address = addresses(first, z, z_row, z_tower, VECTORS, TOWERS)
    y_address = addresses(first, y, y_row, y_tower, VECTORS, TOWERS)
    for iteration in range(ITERATIONS):
        mask = first + iteration * (T * CYCLE) < count
        rows = iteration * (T * CYCLE // (TOWERS * VECTORS))
        x = load_with_halo(z_address + rows * z_row, mask, vector, VECTORS, T)
        x, squares = _bias_relu(x, bias_values, BIAS, RELU)
        result = ()
        for i in tl.static_range(4, 12):
            power, _ = _powers(k + scale * _window_sum(squares, i, HALF), BETA)
            result = result + (x[i] * power,)
        store_eight(y_address + rows * y_row, mask, result, T)


@triton.jit
def bias_relu_norm_backward_kernel(
    z, bias, grad, grad_z, sums, count, z_row, z_tower, grad_row, grad_tower, grad_z_row,
    grad_z_tower, scale, k,
    BETA: tl.constexpr, HALF: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """gz = [x > 0]·(g·d^-BETA - 2·scale·BETA·x·W(g·x·d^(-BETA-1))); each thread's sum of gz in
    ``sums``. W sums over a window.
    """
    first = first_vectors(ITERATIONS, T, CYCLE)
    vector = first % VECTORS
    bias_address = bias + first % (TOWERS * VECTORS) * 8
    bias_values = load_with_halo(bias_address, (first >= 0) & BIAS, vector, VECTORS, T)
    z_address = addresses(first, z, z_row, z_tower, VECTORS, TOWERS)
    grad_address = addresses(first, grad, grad_row, grad_tower, VECTORS, TOWERS)
    grad_z_address = addresses(first, grad_z, grad_z_row, grad_z_tower, VECTORS, TOWERS)
    low, high = tl.zeros((T, 4), tl.float32), tl.zeros((T, 4), tl.float32)
    for iteration in range(ITERATIONS):
        mask = first + iteration * (T * CYCLE) < count
        rows = iteration * (T * CYCLE // (TOWERS * VECTORS))
        x = load_with_halo(z_address + rows * z_row, mask, vector, VECTORS, T)
        x, squares = _bias_relu(x, bias_values, BIAS, RELU)
        g = load_with_halo(grad_address + rows * grad_row, mask, vector, VECTORS, T)
        direct, crossed = (0.0, 0.0), (0.0, 0.0)  # channels 0, 1, 14, 15 are in no window
        for i in tl.static_range(2, 14):
            power, inverse = _powers(k + scale * _window_sum(squares, i, HALF), BETA)
            scaled = g[i] * power
            direct, crossed = direct + (scaled,), crossed + (scaled * x[i] * inverse,)
        result = ()
        for i in tl.static_range(4, 12):
            value = direct[i] - 2 * BETA * scale * x[i] * _window_sum(crossed, i, HALF)
            if RELU:
                value = tl.where(x[i] > 0, value, 0.0)
            result = result + (value,)
        if BIAS:
            low += join_4(result[0], result[1], result[2], result[3], T)
            high += join_4(result[4], result[5], result[6], result[7], T)
        store_eight(grad_z_address + rows * grad_z_row, mask, result, T)
    if BIAS:
        sums_address = sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8
        store_numbers(sums_address, first >= 0, low, 4)
        store_numbers(sums_address + 4, first >= 0, high, 4)


@triton.jit
def bias_relu_kernel(
    z, bias, y, count, z_row, z_tower, y_row, y_tower, BIAS: tl.constexpr, RELU: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """y = relu(z + bias), each where enabled."""
    first = first_vectors(ITERATIONS, T, CYCLE)
    bias_values = load_numbers(bias + first % (TOWERS * VECTORS) * 8, (first >= 0) & BIAS, 8)
    z_address = addresses(first, z, z_row, z_tower, VECTORS, TOWERS)
    y_address = addresses(first, y, y_row, y_tower, VECTORS, TOWERS)
    for iteration in range(ITERATIONS):
        mask = first + iteration * (T * CYCLE) < count
        rows = iteration * (T * CYCLE // (TOWERS * VECTORS))
        x = load_numbers(z_address + rows * z_row, mask, 8)
        if BIAS:
            x += bias_values
        if RELU:
            x = _relu(x)
        store_numbers(y_address + rows * y_row, mask, x, 8)


@triton.jit
def bias_relu_backward_kernel(
    y, grad, grad_z, sums, count, y_row, y_tower, grad_row, grad_tower, grad_z_row, grad_z_tower,
    BIAS: tl.constexpr, RELU: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """gz = [y > 0]·g; each thread's sum of gz in ``sums``."""
    first = first_vectors(ITERATIONS, T, CYCLE)
    y_address = addresses(first, y, y_row, y_tower, VECTORS, TOWERS)
    grad_address = addresses(first, grad, grad_row, grad_tower, VECTORS, TOWERS)
    grad_z_address = addresses(first, grad_z, grad_z_row, grad_z_tower, VECTORS, TOWERS)
    total = tl.zeros((T, 8), tl.float32)
    for iteration in range(ITERATIONS):
        mask = first + iteration * (T * CYCLE) < count
        rows = iteration * (T * CYCLE // (TOWERS * VECTORS))
        g = load_numbers(grad_address + rows * grad_row, mask, 8)
        if RELU:
            g = tl.where(load_numbers(y_address + rows * y_row, mask, 8) > 0, g, 0.0)
        if BIAS:
            total += g
        store_numbers(grad_z_address + rows * grad_z_row, mask, g, 8)
    if BIAS:
        store_numbers(sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8, first >= 0, total, 8)


@triton.jit
def max_pool_kernel(
    x, bias, y, argmax, count, x_row, x_tower, y_row, y_tower, argmax_tower,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUTHEIGHT: tl.constexpr, OUTWIDTH: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr, RELU: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """y = relu(max over each window + bias), each where enabled.

    ``argmax``: index of the maximum within its window, row by row; -1 where ReLU gives 0.
    """
    first = first_vectors(ITERATIONS, T, CYCLE)
    mask, row = first < count, first // (TOWERS * VECTORS)
    column, line, image = row % OUTWIDTH, row // OUTWIDTH % OUTHEIGHT, row // (OUTWIDTH * OUTHEIGHT)
    corner_row = (image * HEIGHT + line * STRIDE) * WIDTH + column * STRIDE
    tower, vector = first % (TOWERS * VECTORS) // VECTORS, first % VECTORS
    corner = x + corner_row.to(tl.int64) * x_row + tower.to(tl.int64) * x_tower + vector * 8
    best = tl.full((T, 8), float("-inf"), tl.float32)
    index = tl.zeros((T, 8), tl.int32)
    for i in tl.static_range(SIZE):
        for j in tl.static_range(SIZE):
            inside = (line * STRIDE + i < HEIGHT) & (column * STRIDE + j < WIDTH) & mask
            address = (corner + (i * WIDTH + j) * x_row)[:, None] + tl.arange(0, 8)[None, :]
            value = tl.load(address, inside[:, None], float("-inf")).to(tl.float32)
            index = tl.where(value > best, i * SIZE + j, index)
            best = tl.maximum(best, value, tl.PropagateNan.ALL)
    if BIAS:
        best += load_numbers(bias + first % (TOWERS * VECTORS) * 8, mask, 8)
    if RELU:
        index = tl.where(best <= 0, -1, index)  # no gradient flows back to these windows
        best = _relu(best)
    store_numbers(addresses(first, y, y_row, y_tower, VECTORS, TOWERS), mask, best, 8)
    store_numbers(
        addresses(first, argmax, VECTORS * 8, argmax_tower, VECTORS, TOWERS), mask, index, 8
    )


@triton.jit
def max_pool_backward_kernel(
    grad, argmax, grad_x, sums, count, grad_row, grad_tower, argmax_tower, grad_x_row, grad_x_tower,
    HEIGHT: tl.constexpr, WIDTH: tl.constexpr, OUTHEIGHT: tl.constexpr, OUTWIDTH: tl.constexpr,
    SIZE: tl.constexpr, STRIDE: tl.constexpr, BIAS: tl.constexpr,
    VECTORS: tl.constexpr, TOWERS: tl.constexpr, ITERATIONS: tl.constexpr, T: tl.constexpr,
    CYCLE: tl.constexpr,
):  # fmt: skip
    """gx: each window's gradient, added at its argmax; each thread's sum of gx in ``sums``.

    Works by STRIDE × STRIDE tiles, one per thread: windows begin at multiples of STRIDE, so all
    pixels of a tile lie in the same windows, whose gradients a thread loads once.
    """
    TILE_ROWS: tl.constexpr = (HEIGHT + STRIDE - 1) // STRIDE
    TILE_COLUMNS: tl.constexpr = (WIDTH + STRIDE - 1) // STRIDE
    REACH: tl.constexpr = (SIZE + STRIDE - 1) // STRIDE  # windows over a tile, in each direction
    first = first_vectors(ITERATIONS, T, CYCLE)
    tower, vector = (first % (TOWERS * VECTORS) // VECTORS).to(tl.int64), first % VECTORS
    argmax_address = argmax + tower * argmax_tower + vector * 8
    grad_address = grad + tower * grad_tower + vector * 8
    grad_x_address = grad_x + tower * grad_x_tower + vector * 8
    total = tl.zeros((T, 8), tl.float32)
    for iteration in range(ITERATIONS):
        mask = first + iteration * (T * CYCLE) < count
        tile = first // (TOWERS * VECTORS) + iteration * (T * CYCLE // (TOWERS * VECTORS))
        tile_column, tile_row = tile % TILE_COLUMNS, tile // TILE_COLUMNS % TILE_ROWS
        image = tile // (TILE_COLUMNS * TILE_ROWS)
        indices, grads = (), ()
        for a in tl.static_range(REACH):
            for b in tl.static_range(REACH):
                up, left = tile_row - a, tile_column - b
                valid = mask & (up >= 0) & (up < OUTHEIGHT) & (left >= 0) & (left < OUTWIDTH)
                window = ((image * OUTHEIGHT + up) * OUTWIDTH + left).to(tl.int64)
                address = argmax_address + window * (VECTORS * 8)
                address = address[:, None] + tl.arange(0, 8)[None, :]
                indices = indices + (tl.load(address, valid[:, None], -1).to(tl.int32),)
                grads = grads + (load_numbers(grad_address + window * grad_row, valid, 8),)
        for p in tl.static_range(STRIDE):
            for q in tl.static_range(STRIDE):
                g = tl.zeros((T, 8), tl.float32)
                for a in tl.static_range(REACH):
                    for b in tl.static_range(REACH):
                        i, j = p + a * STRIDE, q + b * STRIDE
                        if i < SIZE and j < SIZE:
                            is_max = indices[a * REACH + b] == i * SIZE + j
                            g += tl.where(is_max, grads[a * REACH + b], 0.0)
                if BIAS:
                    total += g
                line, column = tile_row * STRIDE + p, tile_column * STRIDE + q
                row = ((image * HEIGHT + line) * WIDTH + column).to(tl.int64)
                inside = mask & (line < HEIGHT) & (column < WIDTH)
                store_numbers(grad_x_address + row * grad_x_row, inside, g, 8)
    if BIAS:
        store_numbers(sums + (tl.program_id(0) * T + tl.arange(0, T)) * 8, first >= 0, total, 8)


@triton.jit
def column_sums_kernel(
    x, y, rows, columns, iterations, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
):  # fmt: skip
    """Program (i, j) sums COLUMNS columns over every n-th block of ROWS rows, n = programs(0)."""
    column = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    total = tl.zeros((ROWS, COLUMNS), tl.float32)
    for iteration in range(iterations):
        row = (tl.program_id(0) + iteration * tl.num_programs(0)) * ROWS + tl.arange(0, ROWS)
        mask = (row < rows)[:, None] & (column < columns)[None, :]
        total += tl.load(x + row.to(tl.int64)[:, None] * columns + column[None, :], mask, 0.0)
    tl.store(y + tl.program_id(0) * columns + column, tl.sum(total, 0), column < columns)


@triton.jit
def space_to_depth_kernel(
    images, y, size, blocks, image_stride, channel_stride, line_stride, column_stride,
    STRIDE: tl.constexpr, PADDING: tl.constexpr, BLOCKS: tl.constexpr, CHANNELS: tl.constexpr,
):  # fmt: skip
    """A program writes one row of STRIDE × STRIDE blocks, ``blocks`` of them."""
    image, first_line = tl.program_id(0) // blocks, tl.program_id(0) % blocks * STRIDE - PADDING
    block, channel = tl.arange(0, BLOCKS), tl.arange(0, CHANNELS)
    colour, across, down = channel % 3, channel // 3 % STRIDE, channel // (3 * STRIDE)
    line, column = first_line + down, (block * STRIDE - PADDING)[:, None] + across[None, :]
    mask = (block < blocks)[:, None] & (channel < 3 * STRIDE * STRIDE)[None, :]
    inside = mask & ((line >= 0) & (line < size))[None, :] & (column >= 0) & (column < size)
    offset = (colour * channel_stride + line * line_stride)[None, :] + column * column_stride
    x = tl.load(images + image.to(tl.int64) * image_stride + offset, inside, 0.0).to(tl.float32)
    row = tl.program_id(0).to(tl.int64) * blocks + block
    address = y + row[:, None] * (3 * STRIDE * STRIDE) + channel[None, :]
    tl.store(address, x.to(y.dtype.element_ty), mask)


@triton.jit
def relu_dropout_kernel(
    z, y, state, count, columns, row_start, column_start, all_columns, threshold,
    gamma, mix_1, mix_2, BLOCK: tl.constexpr,
):  # fmt: skip
    """y = relu(z) where the unit's SplitMix64 number reaches ``threshold``, else 0."""
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    mask = offset < count
    row, column = offset // columns + row_start, offset % columns + column_start
    number = (row * all_columns + column + 1) * gamma + tl.load(state)
    number = (number ^ ((number >> 30) & 0x3FFFFFFFF)) * mix_1
    number = (number ^ ((number >> 27) & 0x1FFFFFFFFF)) * mix_2
    x = _relu(tl.load(z + offset, mask, 0.0).to(tl.float32))
    x = tl.where(number >= threshold, x, 0.0)
    tl.store(y + offset, x.to(y.dtype.element_ty), mask)


@triton.jit
def sgd_kernel(
    w, v, g, loss, rates, count, momentum,
    CHECKED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """v ← momentum·v - lr·g - decay·w;  w ← w + v, where ``rates`` are lr and decay.

    Does nothing if lr is 0 (frozen), or if CHECKED and loss is not finite.
    """
    offset = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    lr, decay = tl.load(rates), tl.load(rates + 1)
    count = tl.where(lr != 0, count, 0)
    if CHECKED:
        count = tl.where(tl.abs(tl.load(loss)) < float("inf"), count, 0)  # false for NaN
    mask = offset < count
    weight = tl.load(w + offset, mask)
    velocity = (
        tl.load(v + offset, mask) * momentum
        - lr * tl.load(g + offset, mask).to(tl.float32)
        - decay * weight
    )
    tl.store(v + offset, velocity, mask)
    tl.store(w + offset, weight + velocity, mask)
