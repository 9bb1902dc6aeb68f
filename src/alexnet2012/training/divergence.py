"""A loss that is no longer a number: where it began."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from alexnet2012.checkpoint import manifest
from alexnet2012.config.schema import RunError
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.nn.alexnet import AlexNet


class DivergedError(RunError):
    """The loss is no longer a number."""


def diverged(
    model: AlexNet, batch: Batch, run_dir: Path, step: int, loss: float, rate: float
) -> DivergedError:
    """What to say of a step's loss that is not finite, on every rank alike. Collective."""
    where = first_not_finite(model, batch)

    def told() -> str:
        saved = manifest.latest(run_dir)
        before = "nothing was saved before" if saved is None else f"{saved} is from before"
        remedy = f"{before}; lower schedule.rate={rate} in a new run"
        return f"step {step}: the loss is {loss}, first not finite: {where}; {remedy}"

    return DivergedError(run_on_rank_0(told, model.mesh))


@torch.no_grad()
def first_not_finite(model: AlexNet, batch: Batch) -> str:
    """What is not finite first on the way of a batch, on any rank. Collective.

    The forward pass is made again, with the weights as they are and other dropout masks.
    """
    found: list[tuple[int, str]] = []

    def note(place: int, what: str, *tensors: Tensor) -> None:
        if not all(bool(torch.isfinite(x).all()) for x in tensors):
            found.append((place, what))

    def watch(place: int, name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            note(3 * place, f"what {name} reads", *inputs)
            note(3 * place + 1, f"{name}'s weights", *layer.parameters())
            note(3 * place + 2, f"what {name} gives", output)

        return hook

    layers = model.layers().items()
    hooks = [m.register_forward_hook(watch(i, name)) for i, (name, m) in enumerate(layers)]
    fused, model.fused = model.fused, False  # else layers give products without their biases
    try:
        model(batch.images, batch.rows)
    finally:
        model.fused = fused
        for hook in hooks:
            hook.remove()
    every = gather_results(lambda: min(found, default=None), model.mesh)
    firsts = [first for first in every if first is not None]
    if not firsts:
        return "the loss itself, of logits that still are"
    place, what = min(firsts)
    ranks = [rank for rank, first in enumerate(every) if first is not None and first[0] == place]
    everywhere = len(ranks) == model.mesh.world_size
    return what if everywhere else f"{what} on rank {', '.join(map(str, ranks))}"
