"""Exactness of the model parallelism: two towers compared with one process.

Both networks start from the same seed and train on the same images in float64. The one-process
network uses grouped convolutions and exchanges nothing, so the comparison tests the exchanges.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.config.enums import Device, Precision
from alexnet2012.config.schema import ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.mesh import init_mesh, single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD

# Relative to a tensor's largest value. Two processes add the channels of a layer in another order
# than one, which changes the last bits of a float64 (2e-16); layers and steps amplify the change.
BOUND = 1e-10
IMAGES = 4


@dataclass(frozen=True)
class ExactnessResult:
    """The largest difference over all elements and ranks, relative to the largest value."""

    quantity: str
    worst_relative_difference: float


def worker(recipe: str, width: float, steps: int, seed: int, answer: Path) -> None:
    """Compare on each of two ranks; rank 0 writes the differences to ``answer``."""
    mesh = init_mesh(2, device=Device.cpu)
    try:
        results = compare(
            *(
                AlexNet(
                    recipe,
                    model=ModelConfig(width=width),
                    mesh=mesh_of_model,
                    seed=seed,
                    precision=Precision.fp64,
                )
                for mesh_of_model in (mesh, single_process(Device.cpu))
            ),
            steps=steps,
            seed=seed,
        )
        if mesh.rank == 0:
            rows = [vars(result) for result in results]
            answer.write_text(json.dumps(rows), encoding="utf-8")
    finally:
        mesh.close()


def compare(towers: AlexNet, whole: AlexNet, *, steps: int, seed: int) -> list[ExactnessResult]:
    """Train both networks for ``steps`` steps with dropout. Collective over the towers.

    Args:
        whole: the one-process network.
    """
    stream = torch.Generator().manual_seed(seed)
    size = towers.config.input_size
    images = 60 * torch.randn(IMAGES, 3, size, size, generator=stream, dtype=torch.float64)
    labels = torch.randint(towers.num_classes, (IMAGES,), generator=stream)
    models = (towers, whole)
    optimizers = [PaperSGD(model, load_recipe(model.recipe.name).optimizer) for model in models]
    with torch.no_grad():
        logits = [model.eval()(images) for model in models]
    worst = {"logits": _difference(*logits)}
    for step in range(steps):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.train()
            optimizer.set_rates(LearningRates(1e-3, 1e-3))
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
        if step == 0:
            worst["gradients of every parameter"] = _worst(towers, whole, gradients=True)
        for optimizer in optimizers:
            optimizer.step()
    worst[f"weights after {steps} steps"] = _worst(towers, whole, gradients=False)
    return [ExactnessResult(quantity, _max_over_ranks(value)) for quantity, value in worst.items()]


def _worst(towers: AlexNet, whole: AlexNet, *, gradients: bool) -> float:
    """Largest difference over this tower's parameters and their rows in the whole network."""
    worst = 0.0
    layers = towers.layers()
    for (name, shard), (_, full) in zip(
        towers.named_parameters(), whole.named_parameters(), strict=True
    ):
        rows = layers[name.split(".")[0]].rows
        if gradients:
            assert shard.grad is not None
            assert full.grad is not None
            worst = max(worst, _difference(shard.grad, rows.of(full.grad)))
        else:
            worst = max(worst, _difference(shard.detach(), rows.of(full.detach())))
    return worst


def _difference(actual: Tensor, expected: Tensor) -> float:
    difference = float((actual - expected).abs().max() / expected.abs().max())
    return difference if math.isfinite(difference) else math.inf  # max() ignores NaN


def _max_over_ranks(worst: float) -> float:
    value = torch.tensor(worst, dtype=torch.float64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)
