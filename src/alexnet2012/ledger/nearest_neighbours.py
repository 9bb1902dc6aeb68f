"""Figure 4 of the paper: predictions, and the nearest training images of validation images.

Images are compared by the Euclidean distance of their last hidden activations. The measurement is
the share of a query's nearest training images that have its class, over all validation images.

Shapes: N validation images, M training images, U hidden units, K classes, k neighbours,
P pixels a side.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from alexnet2012.config.schema import EvaluateConfig
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.inference.nearest import NEAREST, nearest
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.results import Lookalikes, PredictedImage

SHUFFLES = 1000
TOP_CLASSES, PREDICTED_IMAGES, QUERY_IMAGES = 5, 8, 5  # paper fig. 4, left and right


@dataclass(frozen=True)
class SplitActivations:
    hidden: Tensor  # [n, U] last hidden activations
    probabilities: Tensor  # [n, K]
    labels: Tensor  # [n]


@dataclass(frozen=True)
class Neighbours:
    indices: Tensor  # [N, k] training images, nearest first
    labels: Tensor  # [N] of the validation images
    train_labels: Tensor  # [M]


@dataclass(frozen=True)
class Figure4:
    lookalikes: Lookalikes
    images: Tensor  # uint8 [8 + 5·7, P, P, 3]
    neighbours: Neighbours


@torch.no_grad()
def activations_of(
    trained: TrainedModel, store: Store, split: Split, config: EvaluateConfig
) -> SplitActivations:
    """Run a network over a split, in the split's order."""
    model = trained.model.eval()
    loader = EvalLoader(
        replace(store, mean_image=trained.mean_image),
        split,
        model.recipe.augment,
        input_size=model.config.input_size,
        views=1,
        batch_size=config.batch_size,
        placement=LoaderPlacement(device=model.mesh.device, threads=config.decode_threads),
    )
    hidden, probabilities, labels = [], [], []
    for batch in loader.batches():
        features = model.features(batch.images[:, 0])
        hidden.append(features.cpu())
        probabilities.append(F.softmax(model.logits_shard(features), dim=1).cpu())
        labels.append(batch.labels.cpu())
    return SplitActivations(torch.cat(hidden), torch.cat(probabilities), torch.cat(labels))


def neighbours_measurement(neighbours: Neighbours, *how: *How) -> Measurement:
    """Share of neighbours with the query's class, compared with shuffled labels of the queries."""
    # A permutation test, because similar queries share neighbours: they are not an independent
    # sample, and an interval over queries would be too narrow.
    labels = neighbours.labels
    neighbour_labels = neighbours.train_labels[neighbours.indices]
    classes = int(neighbours.train_labels.max()) + 1
    shares_pct = 100 * F.one_hot(neighbour_labels, classes).double().mean(1)  # [N, K]

    def same_class_pct(labels: Tensor) -> float:
        return float(shares_pct.gather(1, labels[:, None]).mean())

    measured, stream = same_class_pct(labels), torch.Generator().manual_seed(0)
    shuffled = [
        same_class_pct(labels[torch.randperm(len(labels), generator=stream)])
        for _ in range(SHUFFLES)
    ]
    low, chance, high = np.quantile(shuffled, (0.025, 0.5, 0.975)).tolist()
    return Measurement(
        "fig4",
        f"{measured:.1f}% of the {NEAREST} nearest training images are of the same class; "
        f"with shuffled labels {chance:.1f}% (95% {low:.1f} to {high:.1f})",
        *how,
        numbers={"same_class_pct": measured, "chance_pct": chance, "queries": len(labels)},
        agrees=None if low <= measured <= high else measured > high,
        agreement_note="tests whether more neighbours than by chance are of the same class, over "
        "all validation images; the paper shows five queries and reports no number",
    )


def figure4(run_dir: Path) -> Figure4:
    """Predictions and nearest training images of a run's validation images."""
    config = EvaluateConfig(checkpoint=str(run_dir), views=1)
    trained = load_trained(run_dir)
    assert trained.data is not None
    store = Store.open(Path(str(trained.data.store))).narrowed(trained.data.first_classes)
    train, val = (store.split(name, trained.data.limit) for name in ("train", "val"))
    of_train, of_val = (activations_of(trained, store, split, config) for split in (train, val))
    indices = nearest(of_val.hidden, of_train.hidden)

    # Evenly spaced over the split, hence over the classes; queries between predicted images.
    positions = np.linspace(0, len(val.paths) - 1, PREDICTED_IMAGES + QUERY_IMAGES)
    chosen = positions.astype(int).tolist()
    queries = chosen[1 : 2 * QUERY_IMAGES : 2]
    predicted = [index for index in chosen if index not in queries]
    lookalikes = Lookalikes(
        guesses=[_prediction(of_val, store, index) for index in predicted],
        queries=[store.classes[int(of_val.labels[index])] for index in queries],
        nearest=[[store.classes[int(c)] for c in of_train.labels[indices[i]]] for i in queries],
    )
    paths = [val.paths[index] for index in predicted]
    for index in queries:
        paths += [val.paths[index], *(train.paths[int(neighbour)] for neighbour in indices[index])]
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))
    return Figure4(lookalikes, images, Neighbours(indices, of_val.labels, of_train.labels))


def _prediction(of_val: SplitActivations, store: Store, index: int) -> PredictedImage:
    probabilities = of_val.probabilities[index]
    top = probabilities.topk(min(TOP_CLASSES, len(probabilities)))
    return PredictedImage(
        label=store.classes[int(of_val.labels[index])],
        guesses=[store.classes[int(class_index)] for class_index in top.indices],
        probabilities=[float(value) for value in top.values],
    )
