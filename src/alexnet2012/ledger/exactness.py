"""Two processes against one, measured: the towers' net beside the whole net in the same process.

Both start from the same seed and train on the same pictures, in float64. The whole net is made of
grouped convolutions and exchanges nothing, so what the towers exchange is what is being tested.
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
# than one does, which moves the last bits of a float64 (2e-16); the net and the steps amplify it.
BOUND = 1e-10
IMAGES = 4


@dataclass(frozen=True)
class ExactnessResult:
    """The largest difference over all elements and ranks, relative to the largest value."""

    quantity: str
    worst_relative_difference: float


def worker(recipe: str, width: float, steps: int, seed: int, answer: Path) -> None:
    """On each of two ranks: compare, and let rank 0 write the differences to ``answer``."""
    mesh = init_mesh(2, device=Device.cpu)
    try:
        found = compare(
            *(
                AlexNet(
                    recipe,
                    model=ModelConfig(width=width),
                    mesh=place,
                    seed=seed,
                    precision=Precision.fp64,
                )
                for place in (mesh, single_process(Device.cpu))
            ),
            steps=steps,
            seed=seed,
        )
        if mesh.rank == 0:
            rows = [vars(difference) for difference in found]
            answer.write_text(json.dumps(rows), encoding="utf-8")
    finally:
        mesh.close()


def compare(towers: AlexNet, whole: AlexNet, *, steps: int, seed: int) -> list[ExactnessResult]:
    """Train both nets for ``steps`` steps with dropout on. Collective over the towers."""
    draw = torch.Generator().manual_seed(seed)
    size = towers.config.input_size
    images = 60 * torch.randn(IMAGES, 3, size, size, generator=draw, dtype=torch.float64)
    labels = torch.randint(towers.num_classes, (IMAGES,), generator=draw)
    nets = (towers, whole)
    optimizers = [PaperSGD(net, load_recipe(net.recipe.name).optimizer) for net in nets]
    with torch.no_grad():
        logits = [net.eval()(images) for net in nets]
    found = {"logits": _difference(*logits)}
    for step in range(steps):
        for net, optimizer in zip(nets, optimizers, strict=True):
            net.train()
            optimizer.set_rates(LearningRates(1e-3, 1e-3))
            optimizer.zero_grad()
            F.cross_entropy(net(images), labels).backward()
        if step == 0:
            found["gradients of every parameter"] = _worst(towers, whole, gradients=True)
        for optimizer in optimizers:
            optimizer.step()
    found[f"weights after {steps} steps"] = _worst(towers, whole, gradients=False)
    return [ExactnessResult(what, _over_ranks(worst)) for what, worst in found.items()]


def _worst(towers: AlexNet, whole: AlexNet, *, gradients: bool) -> float:
    """Over all parameters, the own rows of the whole net's against the own tower's."""
    worst = 0.0
    own = towers.layers()
    for (name, mine), (_, full) in zip(
        towers.named_parameters(), whole.named_parameters(), strict=True
    ):
        rows = own[name.split(".")[0]].rows
        if gradients:
            assert mine.grad is not None
            assert full.grad is not None
            worst = max(worst, _difference(mine.grad, rows.of(full.grad)))
        else:
            worst = max(worst, _difference(mine.detach(), rows.of(full.detach())))
    return worst


def _difference(got: Tensor, want: Tensor) -> float:
    difference = float((got - want).abs().max() / want.abs().max())
    return difference if math.isfinite(difference) else math.inf  # NaN would lose any comparison


def _over_ranks(worst: float) -> float:
    value = torch.tensor(worst, dtype=torch.float64)
    dist.all_reduce(value, dist.ReduceOp.MAX)
    return float(value)
