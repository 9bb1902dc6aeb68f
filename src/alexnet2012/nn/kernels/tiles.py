"""How a GPU thread addresses, loads and stores its channels of feature maps, in Triton.

Maps are in channels-last layout: a *row* holds one pixel's channels of one tower. A thread
processes a *vector* of eight channels of a row at a time: 16 bytes of bf16, one load. It also loads
the neighbouring channels that its LRN windows reach (the halo): they come from the cache, and
threads never wait for each other.

Shapes: VECTORS per row, TOWERS per launch, T vectors that a program processes at a time (one per
thread), ITERATIONS of each program's loop, CYCLE programs after which the assignment of towers and
vectors to threads repeats.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_vectors(ITERATIONS: tl.constexpr, T: tl.constexpr, CYCLE: tl.constexpr):
    """Indices of the vectors of a program's first iteration: [T].

    Vectors are numbered row by row, towers side by side. Each iteration moves on by CYCLE·T of
    them, a whole number of rows, so that a thread keeps its channels.
    """
    group, place = tl.program_id(0) // CYCLE, tl.program_id(0) % CYCLE
    return (group * ITERATIONS * CYCLE + place) * T + tl.arange(0, T)


@triton.jit
def addresses(first, x, row_stride, tower_stride, VECTORS: tl.constexpr, TOWERS: tl.constexpr):
    """Address of the first channel of each vector: [T]."""
    tower = first % (TOWERS * VECTORS) // VECTORS
    row = (first // (TOWERS * VECTORS)).to(tl.int64) * row_stride
    return x + row + tower.to(tl.int64) * tower_stride + first % VECTORS * 8


@triton.jit
def load_numbers(address, mask, COUNT: tl.constexpr):
    """COUNT consecutive numbers from each address, 0 where masked: [T] → [T, COUNT], float32."""
    address = address[:, None] + tl.arange(0, COUNT)[None, :]
    return tl.load(address, mask[:, None], 0.0).to(tl.float32)


@triton.jit
def store_numbers(address, mask, x, COUNT: tl.constexpr):
    """The inverse of :func:`load_numbers`: [T, COUNT] to each address."""
    address = address[:, None] + tl.arange(0, COUNT)[None, :]
    tl.store(address, x.to(address.dtype.element_ty), mask[:, None])


@triton.jit
def _split_4(x, T: tl.constexpr):
    """[T, 4] → four times [T], within each thread's registers."""
    even, odd = tl.split(tl.reshape(x, (T, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _split_8(x, T: tl.constexpr):
    """[T, 8] → eight times [T], within each thread's registers."""
    even, odd = tl.split(tl.reshape(x, (T, 4, 2)))
    x0, x2, x4, x6 = _split_4(even, T)
    x1, x3, x5, x7 = _split_4(odd, T)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def join_4(x0, x1, x2, x3, T: tl.constexpr):
    """Four times [T] → [T, 4]."""
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (T, 4))


@triton.jit
def load_with_halo(address, mask, vector, VECTORS: tl.constexpr, T: tl.constexpr):
    """The eight channels at each address, with four before and four after: 16 times [T]."""
    before = _split_4(load_numbers(address - 4, mask & (vector > 0), 4), T)
    after = _split_4(load_numbers(address + 8, mask & (vector < VECTORS - 1), 4), T)
    if address.dtype.element_ty.primitive_bitwidth == 16:
        middle = _split_8(load_numbers(address, mask, 8), T)
    else:  # a load of 16 bytes holds four float32
        middle = _split_4(load_numbers(address, mask, 4), T) + _split_4(
            load_numbers(address + 4, mask, 4), T
        )
    return before + middle + after


@triton.jit
def store_eight(address, mask, x, T: tl.constexpr):
    """Eight times [T] to the eight channels at each address."""
    if address.dtype.element_ty.primitive_bitwidth == 16:
        even = join_4(x[0], x[2], x[4], x[6], T)
        odd = join_4(x[1], x[3], x[5], x[7], T)
        store_numbers(address, mask, tl.reshape(tl.join(even, odd), (T, 8)), 8)
    else:
        store_numbers(address, mask, join_4(x[0], x[1], x[2], x[3], T), 4)
        store_numbers(address + 4, mask, join_4(x[4], x[5], x[6], x[7], T), 4)
