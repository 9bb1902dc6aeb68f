"""Exactness of the model parallelism: two towers compared with one process.

Both networks start from the same seed and train on the same images in float64. The one-process
network uses grouped convolutions and exchanges nothing, so the comparison tests the exchanges.
"""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.config.enums import Device, Precision
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.mesh import init_mesh, single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD

# Relative to a tensor's largest value. Two processes add the channels of a layer in another order
# than one, which changes the last bits of a float64 (2e-16); layers and steps amplify the change.
BOUND = 1e-10
IMAGES = 4
STEPS = 3


def worker(recipe: str, seed: int, answer: Path) -> None:
    """Compare on each of two ranks; rank 0 writes the largest differences to ``answer``."""
    mesh = init_mesh(2, device=Device.cpu)
    try:
        towers, whole = (
            AlexNet(recipe, mesh=mesh_of_model, seed=seed, precision=Precision.fp64)
            for mesh_of_model in (mesh, single_process(Device.cpu))
        )
        differences = compare(towers, whole, seed)
        if mesh.rank == 0:
            answer.write_text(json.dumps(differences), encoding="utf-8")
    finally:
        mesh.close()


def compare(towers: AlexNet, whole: AlexNet, seed: int) -> dict[str, float]:
    """Train both networks with dropout; largest difference by quantity. Collective over towers."""
    stream = torch.Generator().manual_seed(seed)
    size = towers.config.input_size
    images = 60 * torch.randn(IMAGES, 3, size, size, generator=stream, dtype=torch.float64)
    labels = torch.randint(towers.num_classes, (IMAGES,), generator=stream)
    models = (towers, whole)
    optimizers = [PaperSGD(model, load_recipe(model.recipe.name).optimizer) for model in models]
    with torch.no_grad():
        logits = [model.eval()(images) for model in models]
    worst = {"logits": _difference(*logits)}
    for step in range(STEPS):
        for model, optimizer in zip(models, optimizers, strict=True):
            model.train()
            optimizer.set_rates(LearningRates(1e-3, 1e-3))
            optimizer.zero_grad()
            F.cross_entropy(model(images), labels).backward()
        if step == 0:
            worst["gradients of every parameter"] = _worst(towers, whole, "grad")
        for optimizer in optimizers:
            optimizer.step()
    worst[f"weights after {STEPS} steps"] = _worst(towers, whole, "data")
    values = torch.tensor(list(worst.values()), dtype=torch.float64)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return dict(zip(worst, values.tolist(), strict=True))


def _worst(towers: AlexNet, whole: AlexNet, name: str) -> float:
    """Largest difference of ``data`` or ``grad`` of this tower's rows of all parameters."""
    layers = towers.layers()
    pairs = zip(towers.named_parameters(), whole.parameters(), strict=True)
    return max(
        _difference(getattr(shard, name), layers[key.split(".")[0]].rows.of(getattr(full, name)))
        for (key, shard), full in pairs
    )


def _difference(actual: Tensor, expected: Tensor) -> float:
    difference = float((actual - expected).abs().max() / expected.abs().max())
    return difference if math.isfinite(difference) else math.inf  # max() ignores NaN
