"""CPU kernels in C (kernels.c), optional: without them callers do the same work with torch.

They are built at installation if there is a C compiler, and run on x86 processors with AVX2.

Shapes: M rows, C channels.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_float, c_int, c_int64, c_uint64, c_void_p
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

_INSTRUCTIONS = {256: "AVX2", 512: "AVX-512"}
_LIBRARY = Path(__file__).with_name(f"_kernels{EXTENSION_SUFFIXES[0]}")


class Update(NamedTuple):
    """One parameter's tensors and rates; all tensors have the same dense layout."""

    weight: Tensor
    velocity: Tensor
    grad: Tensor
    momentum: float
    lr: float
    decay: float


class _UpdateStruct(ctypes.Structure):
    _fields_ = (
        *((name, c_void_p) for name in ("weight", "velocity", "grad")),
        ("count", c_int64),
        *((name, c_float) for name in ("momentum", "lr", "decay")),
    )


class Kernels:
    """The library's functions. Tensors are dense and on the CPU; the caller checks their dtype."""

    def __init__(self, library: ctypes.CDLL, vector_bits: int) -> None:
        self.vector_bits = vector_bits
        self._lrn, self._sgd_update = library.lrn, library.sgd_update
        self._digest, self._spatial_norm = library.digest, library.spatial_norm
        self._lrn.argtypes = [
            *(c_int, c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int),
            *(c_float, c_float, c_int),
        ]
        self._spatial_norm.argtypes = [
            *(c_int, c_void_p, c_void_p, c_void_p, c_int64, c_int, c_int, c_int, c_int),
            *(c_float, c_float, c_int),
        ]
        self._sgd_update.argtypes = [c_void_p, c_int, c_int]
        self._digest.argtypes = [c_void_p, c_int64, c_void_p, c_int]
        self._lrn.restype = self._sgd_update.restype = self._digest.restype = None

    def lrn(
        self, x: Tensor, grad: Tensor | None, out: Tensor, channels: int, scale: float, k: float
    ) -> None:
        """LRN with size 5 and β = ¾ over rows of channels, float32 or bf16: [M, C] → [M, C].

        With ``grad``, the gradient of the output, ``out`` is the gradient of ``x``.
        """
        self._lrn(
            self.vector_bits,
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            None if grad is None else grad.data_ptr(),
            out.data_ptr(),
            x.numel() // channels,
            channels,
            scale,
            k,
            torch.get_num_threads(),
        )

    def spatial_norm(
        self, x: Tensor, grad: Tensor | None, out: Tensor, scale: float, k: float
    ) -> None:
        """As :meth:`lrn`, over 5 × 5 pixels of each map, channels last: [N, C, H, W].

        Raises:
            MemoryError: there is no memory for four images per thread.
        """
        count, channels, height, width = x.shape
        failed = self._spatial_norm(
            x.dtype == torch.bfloat16,
            x.data_ptr(),
            None if grad is None else grad.data_ptr(),
            out.data_ptr(),
            count,
            height,
            width,
            channels,
            5,
            scale,
            k,
            torch.get_num_threads(),
        )
        if failed:
            raise MemoryError("no memory for normalisation")

    def sgd_update(self, updates: Sequence[Update]) -> None:
        """v ← momentum·v - lr·g - decay·w;  w ← w + v, for each update: float32 of any shape."""
        structs = (_UpdateStruct * len(updates))()
        for struct, (w, v, g, *rates) in zip(structs, updates, strict=True):
            struct.weight, struct.velocity, struct.grad = w.data_ptr(), v.data_ptr(), g.data_ptr()
            struct.count, (struct.momentum, struct.lr, struct.decay) = w.numel(), rates
        self._sgd_update(structs, len(updates), torch.get_num_threads())

    def digest(self, words: Tensor) -> tuple[int, int]:
        """Sum of int32 words, and sum of each times its place, modulo 2^64: [n] → two numbers."""
        sums = (c_uint64 * 2)()
        self._digest(words.data_ptr(), words.numel(), sums, torch.get_num_threads())
        return sums[0], sums[1]


@cache
def load() -> Kernels | str:
    """The kernels; or, if they are not available, the reason."""
    if not _LIBRARY.exists():
        return "not built: no C compiler when alexnet2012 was installed"
    try:
        # After torch, whose OpenMP library is then the one that both share, with its threads.
        library = ctypes.CDLL(str(_LIBRARY))
    except OSError as error:
        return f"cannot be loaded ({error})"
    vector_bits = library.vector_bits()
    if not vector_bits:
        return "not used: this processor has no AVX2"
    return Kernels(library, vector_bits)


def description() -> str:
    """Which instructions the kernels use, or why torch does their work."""
    loaded = load()
    if isinstance(loaded, Kernels):
        return f"C kernels with {_INSTRUCTIONS[loaded.vector_bits]}"
    return f"torch (C kernels {loaded})"


def kernels() -> Kernels | None:
    """The kernels, or None where they are not available."""
    loaded = load()
    return loaded if isinstance(loaded, Kernels) else None


def response_norm(
    x: Tensor, grad: Tensor | None, out: Tensor, towers: int | None, scale: float, k: float
) -> bool:
    """:meth:`Kernels.lrn` in each of ``towers``, or for None :meth:`Kernels.spatial_norm`.

    False if there are no kernels: nothing is computed.
    """
    available = kernels()
    if available is None:
        return False
    if towers is None:
        available.spatial_norm(x, grad, out, scale, k)
    else:
        available.lrn(x, grad, out, x.shape[1] // towers, scale, k)
    return True
