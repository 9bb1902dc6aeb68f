"""How fast is local response normalisation, forward and backward, on the full-size network's maps?

    python benchmarks/lrn.py [batch=128] [rounds=5]

Compares ours in float32 and bf16 with ours without the C kernel (blocks of eager torch; only on a
CPU), with the slices of benchmarks/peers.py under torch.compile, and with nn.LocalResponseNorm (on
a CPU torch 2.13 has it in float32 only), on both towers' 96 maps of 55 × 55 pixels and 256 of
27 × 27. The limit is the time to copy the bytes that must be read and written: x and y, then x, the
gradient and its result. Variants take turns. Ratios are to the blocks in the same dtype; on a GPU,
to the compiled slices. On a GPU each variant is captured as a CUDA graph, as in training, and
replayed twenty times. The first call, which compiles, is timed apart. Prints a table and writes
results/lrn.json.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from arms import TOGETHER, timed
from peers import LRN, SlicedLRN, can_compile, compiled, empty_compiler_cache
from record import given, keep, show
from torch import Tensor, nn

from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.nn.lrn import local_response_norm
from alexnet2012.utils import native

MAPS = ((96, 55), (256, 27))  # channels and pixels per side
TOWERS = 2
DTYPES = {"float32": torch.float32, "bf16": torch.bfloat16}
OURS, BLOCKS, SLICES, MODULE = "ours", "blocks", "compiled slices", "nn.LocalResponseNorm"
COPIES = "copies"


def variants(shape: tuple[int, ...], dtype: torch.dtype, on_gpu: bool) -> dict[str, Callable]:
    """What each variant does once, by name."""
    device, norm = "cuda" if on_gpu else "cpu", load_recipe("paper").lrn
    x, grad = (
        torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
        for _ in range(2)
    )
    ours = partial(local_response_norm, norm=norm, towers=TOWERS)
    norms: dict[str, Callable[[Tensor], Tensor]] = {}
    if on_gpu or native.kernels() is not None:
        norms[OURS] = ours
    if can_compile():
        norms[SLICES] = compiled(SlicedLRN(TOWERS))
    found = {name: partial(both_ways, norm, x, grad) for name, norm in norms.items()}
    if not on_gpu:
        without_kernels = patch.object(native, "kernels", lambda: None)
        found[BLOCKS] = without_kernels(partial(both_ways, ours, x, grad))
    if on_gpu or dtype is torch.float32:
        module = nn.LocalResponseNorm(**LRN)
        found[MODULE] = partial(both_ways, module, x.contiguous(), grad.contiguous())
    found[COPIES] = partial(copy_five_maps, x, torch.empty_like(x))
    return found


def both_ways(norm: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> None:
    torch.autograd.grad(norm(x.requires_grad_()), x, grad)


@torch.no_grad()
def copy_five_maps(source: Tensor, target: Tensor) -> None:
    """Read and write five maps: two and a half copies."""
    half = len(source) // 2
    target.copy_(source)
    target.copy_(source)
    target[:half].copy_(source[:half])


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    for _ in range(3):  # compiles kernels
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def time_variants(
    shape: tuple[int, ...], rounds: int, device: torch.device
) -> list[dict[str, Any]]:
    """One row for each variant and dtype."""
    on_gpu = device.type == "cuda"
    works = {
        (name, dtype): work
        for dtype in DTYPES
        for name, work in variants(shape, DTYPES[dtype], on_gpu).items()
    }
    first_s = {key: timed(work, 1, device, warm_up=False) for key, work in works.items()}
    if on_gpu:
        works = {key: recorded(work) for key, work in works.items()}
    times = TOGETHER if on_gpu else 1
    seconds: dict[tuple[str, str], list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            seconds[key].append(timed(work, times, device) / times)
    return [row_of(*key, shape, first_s[key], seconds) for key in works]


def row_of(
    name: str,
    dtype: str,
    shape: tuple[int, ...],
    first_s: float,
    seconds: dict[tuple[str, str], list[float]],
) -> dict[str, Any]:
    base = base_of(dtype, seconds)
    pairs = zip(seconds[base, dtype], seconds[name, dtype], strict=True)
    ratios = [of_base / own for of_base, own in pairs]
    median_s = statistics.median(seconds[name, dtype])
    return {
        "maps": " × ".join(map(str, shape)),
        "arm": f"{name}, {dtype}",
        "ms": 1e3 * median_s,
        f"ratio_to_{base.split()[0]}": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "of_copy_pct": 100 * statistics.median(seconds[COPIES, dtype]) / median_s,
        "first_call_s": first_s,
    }


def base_of(dtype: str, seconds: dict[tuple[str, str], list[float]]) -> str:
    return next(name for name in (BLOCKS, SLICES, OURS) if (name, dtype) in seconds)


def main() -> None:
    words, load_before = given(batch=128, rounds=5), os.getloadavg()[0]
    reuse_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    rows = []
    with empty_compiler_cache():
        for channels, side in MAPS:
            rows += time_variants((words.batch, channels, side, side), words.rounds, device)
    (ratio,) = {key for row in rows for key in row if key.startswith("ratio_to_")}
    columns = {
        "maps": "{maps}",
        "": "{arm}",
        "ms": "{ms:.2f}",
        ratio.replace("_", " "): f"{{{ratio}:.2f}}",
        "range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
        "% of copy speed": "{of_copy_pct:.0f}%",
        "first call, s": "{first_call_s:.2f}",
    }
    show(f"LRN, forward and backward, {device.type}, median of {words.rounds}", columns, rows)
    keep("local response normalisation alone", ["torch"], load_before, **vars(words), rows=rows)


if __name__ == "__main__":
    main()
