"""Diagnosis of a diverged run: the first tensor that is not finite, and the last checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet2012.checkpoint import manifest
from alexnet2012.config.schema import RunError
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.shard import Shard


class DivergedError(RunError):
    """The loss became NaN or infinite."""


def diverged(
    model: AlexNet,
    batch: Batch,
    micro_batches: Sequence[Shard],
    run_dir: Path,
    step: int,
    loss: float,
    lr: float,
) -> DivergedError:
    """The error to raise for a loss that is not finite, the same on every rank. Collective."""
    where = first_not_finite(model, batch, micro_batches)

    def message() -> str:
        checkpoint = manifest.latest(run_dir)
        last = "no checkpoint was saved" if checkpoint is None else f"last checkpoint: {checkpoint}"
        remedy = f"start a new run with schedule.rate below {lr}"
        return f"step {step}: loss is {loss}; first non-finite: {where}; {last}; {remedy}"

    return DivergedError(run_on_rank_0(message, model.mesh))


@torch.no_grad()
def first_not_finite(model: AlexNet, batch: Batch, micro_batches: Sequence[Shard]) -> str:
    """The first tensor of a forward pass that is not finite on any rank. Collective.

    Repeats the forward pass with the current weights and with other dropout masks.
    """
    non_finite: list[tuple[int, str]] = []  # position in the forward pass, name

    def check(index: int, name: str, layer: nn.Module, inputs: Any, output: Tensor) -> None:
        parts = {"input": inputs, "parameters": layer.parameters(), "output": [output]}
        for position, (part, tensors) in enumerate(parts.items(), 3 * index):
            if not all(bool(torch.isfinite(x).all()) for x in tensors):
                non_finite.append((position, f"{part} of {name}"))

    layers = model.layers().items()
    hooks = [m.register_forward_hook(partial(check, i, name)) for i, (name, m) in enumerate(layers)]
    fused, model.fused = model.fused, False  # fused layers return outputs without their bias
    try:
        sizes = [rows.size for rows in micro_batches]
        for images, rows in zip(batch.images.split(sizes), micro_batches, strict=True):
            model(images, rows)
    finally:
        model.fused = fused
        for hook in hooks:
            hook.remove()
    firsts = gather_results(lambda: min(non_finite, default=None), model.mesh)  # of each rank
    earliest = min((first for first in firsts if first is not None), default=None)
    if earliest is None:
        return "the loss itself (all logits are finite)"
    position, name = earliest
    ranks = [rank for rank, first in enumerate(firsts) if first and first[0] == position]
    on_all = len(ranks) == model.mesh.world_size
    return name if on_all else f"{name} on rank {', '.join(map(str, ranks))}"
