"""How a thread of a GPU finds, loads and stores its numbers of maps, in Triton.

Maps lie channels last: a *row* is one pixel's channels in one tower. A thread takes eight channels
of a row, a *part*, at a time: one load of 16 bytes of bf16. It loads its neighbours' channels, too,
where a window reaches them: they come from the cache, and no thread waits for another.

Legend: PARTS of a row, TOWERS of a launch, T parts that a program takes at a time, TIMES: so often.
"""

from __future__ import annotations

import triton
import triton.language as tl


@triton.jit
def first_parts(TIMES: tl.constexpr, T: tl.constexpr, CYCLE: tl.constexpr):
    """The parts, counted through all towers of all rows, that a program takes in its first turn.

    [T]; in each turn they are CYCLE·T further on, which are whole rows: a thread stays with its
    part.
    """
    group, place = tl.program_id(0) // CYCLE, tl.program_id(0) % CYCLE
    return (group * TIMES * CYCLE + place) * T + tl.arange(0, T)


@triton.jit
def addresses(first, x, row_stride, tower_stride, PARTS: tl.constexpr, TOWERS: tl.constexpr):
    """The addresses of these parts' first numbers."""
    tower = first % (TOWERS * PARTS) // PARTS
    row = (first // (TOWERS * PARTS)).to(tl.int64) * row_stride
    return x + row + tower.to(tl.int64) * tower_stride + first % PARTS * 8


@triton.jit
def load_numbers(address, here, COUNT: tl.constexpr):
    """COUNT neighbouring numbers from each address, or 0: [T] → [T, COUNT], float32."""
    address = address[:, None] + tl.arange(0, COUNT)[None, :]
    return tl.load(address, here[:, None], 0.0).to(tl.float32)


@triton.jit
def store_numbers(address, here, x, COUNT: tl.constexpr):
    address = address[:, None] + tl.arange(0, COUNT)[None, :]
    tl.store(address, x.to(address.dtype.element_ty), here[:, None])


@triton.jit
def _four(x, T: tl.constexpr):
    """[T, 4] → 4 times [T], without leaving the registers of a thread."""
    even, odd = tl.split(tl.reshape(x, (T, 2, 2)))
    x0, x2 = tl.split(even)
    x1, x3 = tl.split(odd)
    return x0, x1, x2, x3


@triton.jit
def _eight(x, T: tl.constexpr):
    even, odd = tl.split(tl.reshape(x, (T, 4, 2)))
    x0, x2, x4, x6 = _four(even, T)
    x1, x3, x5, x7 = _four(odd, T)
    return x0, x1, x2, x3, x4, x5, x6, x7


@triton.jit
def joined(x0, x1, x2, x3, T: tl.constexpr):
    return tl.reshape(tl.join(tl.join(x0, x2), tl.join(x1, x3)), (T, 4))


@triton.jit
def load_with_halo(address, here, part, PARTS: tl.constexpr, T: tl.constexpr):
    """16 times [T]: the eight numbers at each address, four before and four after."""
    before = _four(load_numbers(address - 4, here & (part > 0), 4), T)
    after = _four(load_numbers(address + 8, here & (part < PARTS - 1), 4), T)
    if address.dtype.element_ty.primitive_bitwidth == 16:
        own = _eight(load_numbers(address, here, 8), T)
    else:  # a load of 16 bytes holds four
        own = _four(load_numbers(address, here, 4), T) + _four(
            load_numbers(address + 4, here, 4), T
        )
    return before + own + after


@triton.jit
def store_eight(address, here, x, T: tl.constexpr):
    """8 times [T]."""
    if address.dtype.element_ty.primitive_bitwidth == 16:
        even = joined(x[0], x[2], x[4], x[6], T)
        odd = joined(x[1], x[3], x[5], x[7], T)
        store_numbers(address, here, tl.reshape(tl.join(even, odd), (T, 8)), 8)
    else:
        store_numbers(address, here, joined(x[0], x[1], x[2], x[3], T), 4)
        store_numbers(address + 4, here, joined(x[4], x[5], x[6], x[7], T), 4)
