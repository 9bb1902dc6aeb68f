"""What is watched of a training beside its losses and errors; no number of a run depends on it.

``update_ratios`` and ``kernels`` are collective: every rank enters them alike, rank 0 tells.
"""

# Shapes: N pictures, K classes

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from PIL import Image
from torch import Tensor

from alexnet2012.data.loaders import Batch
from alexnet2012.data.store import Split
from alexnet2012.distributed.collectives import gather_rows
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.tracking.image_grids import (
    COLUMNS,
    Misclassified,
    kernel_grids,
    misclassified_grid,
)

SHOWN = 3 * COLUMNS  # wrong guesses


@torch.no_grad()
def update_ratios(model: AlexNet, optimizer: PaperSGD, mesh: Mesh) -> dict[str, float]:
    """‖last update‖ / ‖weights‖ of each layer of the whole net, biases left out. Collective.

    The same on any mesh, to rounding: squares are summed over the towers.
    """
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    weights = {name: layer.weight for name, layer in model.layers().items()}
    norms = [
        # The velocity is what was added; a layer whose rate is 0 stands still, whatever it holds.
        torch.stack((optimizer.velocity(w).norm() * (rates[id(w)] != 0), w.norm()))
        for w in weights.values()
    ]
    squares = torch.stack(norms).double().square()  # [layers, 2]
    if mesh.tower_group is not None:
        with mesh.watchdog.exchange("update ratios", "all-reduce"):
            dist.all_reduce(squares, group=mesh.tower_group)
    return {
        name: math.sqrt(update / max(weight, 1e-300))
        for name, (update, weight) in zip(weights, squares.tolist(), strict=True)
    }


@torch.no_grad()
def kernels(model: AlexNet) -> Tensor:
    """The first layer's weights of the whole net, tower 0's kernels first. Collective."""
    name, layer = next(iter(model.layers().items()))
    return gather_rows(layer.weight.detach(), layer.rows, model.comm, name, "inference")


@dataclass
class WorstMistakes:
    """The likeliest wrong guesses of a validation, of the pictures that this replica is shown."""

    split: Split
    classes: tuple[str, ...]
    found: list[Misclassified] = field(default_factory=list)

    def look(self, batch: Batch, probabilities: Tensor) -> None:
        """Remember the worst of a batch; ``probabilities`` [N, K]."""
        best, guessed = probabilities.max(1)
        wrong = torch.where(guessed != batch.labels, best, best.new_tensor(-1.0))
        for row in wrong.topk(min(SHOWN, len(wrong))).indices.tolist():
            if wrong[row] > 0:
                names = self.classes[int(batch.labels[row])], self.classes[int(guessed[row])]
                file = self.split.paths[int(batch.indices[row])]
                self.found.append(Misclassified(file, *names, float(best[row])))
        self.found = sorted(self.found, key=lambda g: (-g.probability, g.file))[:SHOWN]

    def sheet(self) -> Image.Image:
        return misclassified_grid(self.found)


@dataclass
class TrainStats:
    """What a run watches; nothing where nobody looks, and then nothing is computed or exchanged."""

    model: AlexNet
    optimizer: PaperSGD
    mesh: Mesh
    split: Split  # of the validation
    classes: tuple[str, ...]
    wanted: bool = False  # the same on every rank
    _guesses: WorstMistakes | None = None

    def ratios(self) -> dict[str, float]:
        """By layer, of the last step. Collective."""
        return update_ratios(self.model, self.optimizer, self.mesh) if self.wanted else {}

    def look(self, batch: Batch, probabilities: Tensor) -> None:
        """See a batch of a validation."""
        if self.wanted and self.mesh.rank == 0:
            self._guesses = self._guesses or WorstMistakes(self.split, self.classes)
            self._guesses.look(batch, probabilities)

    def pictures(self) -> dict[str, Image.Image]:
        """After a validation: kernels of each tower, and a sheet of wrong guesses. Collective."""
        if not self.wanted:
            return {}
        weights = kernels(self.model)
        if self.mesh.rank != 0:
            return {}
        sheets = kernel_grids(weights, self.model.recipe.towers)
        found = {f"kernels-tower{tower}": sheet for tower, sheet in enumerate(sheets)}
        if self._guesses is not None:
            found["wrong-guesses"] = self._guesses.sheet()
        self._guesses = None
        return found
