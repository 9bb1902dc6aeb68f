"""Optional training statistics: update ratios, first-layer kernels, misclassified images.

No result of a run depends on them. ``update_ratios`` and ``kernels`` are collective; rank 0 logs
the values.
"""

# Shapes: N images, K classes

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
from alexnet2012.tracking.image_grids import Misclassified, kernel_grids, misclassified_grid

SHOWN = 12  # misclassified images per validation, in rows of four


@torch.no_grad()
def update_ratios(model: AlexNet, optimizer: PaperSGD, mesh: Mesh) -> dict[str, float]:
    """‖last update‖ / ‖weights‖ of each layer of the whole network, without biases. Collective.

    Equal on any mesh up to rounding: squares are summed over the towers.
    """
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    weights = {name: layer.weight for name, layer in model.layers().items()}
    norms = [
        # The velocity is the last update, unless the learning rate is 0: then there is no update.
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
    """Weights of the first layer of the whole network, tower 0's kernels first. Collective."""
    name, layer = next(iter(model.layers().items()))
    return gather_rows(layer.weight.detach(), layer.rows, model.comm, name, "inference")


@dataclass
class WorstMistakes:
    """The misclassified images of a validation with the highest probability, of this replica."""

    split: Split
    classes: tuple[str, ...]
    mistakes: list[Misclassified] = field(default_factory=list)

    def update(self, batch: Batch, probabilities: Tensor) -> None:
        """Add a batch; ``probabilities`` [N, K]."""
        best, predicted = probabilities.max(1)
        wrong = torch.where(predicted != batch.labels, best, best.new_tensor(-1.0))
        for row in wrong.topk(min(SHOWN, len(wrong))).indices.tolist():
            if wrong[row] > 0:
                names = self.classes[int(batch.labels[row])], self.classes[int(predicted[row])]
                file = self.split.paths[int(batch.indices[row])]
                self.mistakes.append(Misclassified(file, *names, float(best[row])))
        self.mistakes.sort(key=lambda mistake: (-mistake.probability, mistake.file))
        del self.mistakes[SHOWN:]

    def grid(self) -> Image.Image:
        return misclassified_grid(self.mistakes)


@dataclass
class TrainStats:
    """Statistics of a run; unless enabled, nothing is computed or communicated."""

    model: AlexNet
    optimizer: PaperSGD
    mesh: Mesh
    split: Split  # of validation
    classes: tuple[str, ...]
    enabled: bool = False  # the same on every rank
    _worst: WorstMistakes | None = None

    def ratios(self) -> dict[str, float]:
        """Update ratios of the last step, by layer. Collective."""
        return update_ratios(self.model, self.optimizer, self.mesh) if self.enabled else {}

    def update(self, batch: Batch, probabilities: Tensor) -> None:
        """Add a batch of a validation; ``probabilities`` [N, K]."""
        if self.enabled and self.mesh.rank == 0:
            self._worst = self._worst or WorstMistakes(self.split, self.classes)
            self._worst.update(batch, probabilities)

    def images(self) -> dict[str, Image.Image]:
        """After a validation: kernels of each tower, and misclassified images. Collective."""
        if not self.enabled:
            return {}
        weights = kernels(self.model)
        if self.mesh.rank != 0:
            return {}
        grids = kernel_grids(weights, self.model.recipe.towers)
        images = {f"kernels-tower{tower}": grid for tower, grid in enumerate(grids)}
        if self._worst is not None:
            images["wrong-guesses"] = self._worst.grid()
        self._worst = None
        return images
