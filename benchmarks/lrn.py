"""How fast is local response normalisation, forward and backward, on the output of conv1?

    python benchmarks/lrn.py [batch=128] [rounds=5]

Compares ours in float32 and bf16 with nn.LocalResponseNorm in float32 (on a CPU torch 2.13 has no
smaller dtype for it), on both towers' 96 maps of 55 × 55 pixels. The limit is the time to copy the
bytes that must be read and written: x and y, then x, the gradient and its result. Variants take
turns. On a GPU each is captured as a CUDA graph, as in training, and replayed twenty times. Prints
a table and writes results/lrn.json.
"""

from __future__ import annotations

import os
import statistics
from collections.abc import Callable
from typing import Any

import torch
from arms import TOGETHER, timed
from record import given, keep, show
from torch import Tensor, nn

from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.nn.lrn import local_response_norm

CHANNELS, SIDE, TOWERS = 96, 55, 2
PEER = "nn.LocalResponseNorm, float32"


def both_ways(norm: Callable[[Tensor], Tensor], x: Tensor, grad: Tensor) -> Callable[[], None]:
    def work() -> None:
        torch.autograd.grad(norm(x), x, grad)

    return work


def recorded(work: Callable[[], None]) -> Callable[[], None]:
    for _ in range(3):  # compiles kernels
        work()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    return graph.replay


def main() -> None:
    words, load_before = given(batch=128, rounds=5), os.getloadavg()[0]
    reuse_memory()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    lrn = load_recipe("paper").lrn
    shape = (words.batch, CHANNELS, SIDE, SIDE)

    def ours(dtype: torch.dtype) -> Callable[[], None]:
        x, grad = (
            torch.randn(shape, device=device).to(dtype, memory_format=torch.channels_last)
            for _ in range(2)
        )
        return both_ways(lambda x: local_response_norm(x, lrn, TOWERS), x.requires_grad_(), grad)

    def copies(dtype: torch.dtype) -> Callable[[], None]:
        source, target = (torch.randn(shape, device=device).to(dtype) for _ in range(2))

        def work() -> None:  # reads and writes five maps: two and a half copies
            target.copy_(source)
            target.copy_(source)
            target[: words.batch // 2].copy_(source[: words.batch // 2])

        return work

    norm = nn.LocalResponseNorm(lrn.size, lrn.alpha * lrn.size, lrn.beta, lrn.k)
    x, grad = torch.randn(shape, device=device), torch.randn(shape, device=device)
    arms = {
        PEER: both_ways(norm, x.requires_grad_(), grad),
        "ours, float32": ours(torch.float32),
        "ours, bf16": ours(torch.bfloat16),
        "copies, float32": copies(torch.float32),
        "copies, bf16": copies(torch.bfloat16),
    }
    on_gpu = device.type == "cuda"
    if on_gpu:
        arms = {arm: recorded(work) for arm, work in arms.items()}
    times = TOGETHER if on_gpu else 1
    seconds: dict[str, list[float]] = {arm: [] for arm in arms}
    for _ in range(words.rounds):
        for arm, work in arms.items():
            seconds[arm].append(timed(work, times, device) / times)
    rows: list[dict[str, Any]] = []
    for arm, mine in seconds.items():
        ratios = [peer / own for peer, own in zip(seconds[PEER], mine, strict=True)]
        limit = seconds["copies, bf16" if "bf16" in arm else "copies, float32"]
        rows.append(
            {
                "arm": arm,
                "ms": 1e3 * statistics.median(mine),
                "times_faster": statistics.median(ratios),
                "ratio_range": [min(ratios), max(ratios)],
                "of_limit_pct": 100 * statistics.median(limit) / statistics.median(mine),
            }
        )
    columns = {
        "": "{arm}",
        "ms": "{ms:.2f}",
        "speedup": "{times_faster:.2f}",
        "range": "{ratio_range[0]:.2f} - {ratio_range[1]:.2f}",
        "% of limit": "{of_limit_pct:.0f}%",
    }
    show(f"LRN on {list(shape)}, forward and backward, {device.type}", columns, rows)
    keep(
        "local response normalisation alone",
        ["torch"],
        load_before,
        **vars(words),
        shape=shape,
        rows=rows,
    )


if __name__ == "__main__":
    main()
