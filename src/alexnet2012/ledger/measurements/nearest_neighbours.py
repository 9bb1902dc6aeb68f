"""Figure 4 of the paper: predictions, and the nearest training images of validation images.

Images are compared by the Euclidean distance of their last hidden activations. The measurement is
the share of a query's nearest training images that have its class. Its controls are the nearest
images by raw pixels and by the activations of an untrained network of the same seed, and shuffled
labels.

Similar queries share neighbours, so queries are not independent. Differences are therefore averaged
by class, and tested by flipping the signs of whole classes.

Shapes: N queries, M training images, U hidden units, K classes, k neighbours, P pixels a side,
D values of an image.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import config_of
from alexnet2012.config.schema import EvaluateConfig
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.inference.nearest import NEAREST, nearest
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.measurements.permutation import Array, sign_flip_p
from alexnet2012.ledger.results import Lookalikes, PredictedImage
from alexnet2012.ledger.statistics import SeedMean
from alexnet2012.nn.alexnet import AlexNet

SHUFFLES = 1000
LEVEL = 0.05
QUERIES = 2000  # at most, evenly spaced over the validation images
NEAR_SHARE = 0.01  # of the training images: the nearest in pixels
TOP_CLASSES, PREDICTED_IMAGES, QUERY_IMAGES = 5, 8, 5  # paper fig. 4, left and right


@dataclass(frozen=True)
class SplitActivations:
    hidden: Tensor  # [n, U] last hidden activations
    untrained: Tensor  # [n, U] of the untrained network
    probabilities: Tensor  # [n, K]
    labels: Tensor  # [n]


@dataclass(frozen=True)
class Neighbours:
    labels: Tensor  # [N] of the queries
    train_labels: Tensor  # [M]
    by_activations: Tensor  # [N, k] training images, nearest first
    by_untrained: Tensor  # [N, k]
    by_pixels: Tensor  # [N, k]
    # [N, k] share of training images that are nearer in pixels than each one of by_activations
    nearer_in_pixels: Tensor


@dataclass(frozen=True)
class Figure4:
    lookalikes: Lookalikes
    images: Tensor  # uint8 [8 + 5·7, P, P, 3]
    neighbours: Neighbours


def figure4(run_dir: Path) -> Figure4:
    """Predictions and nearest training images of a run's validation images."""
    trained = load_trained(run_dir)
    untrained, data = _untrained(run_dir, trained), trained.data
    assert data is not None
    store = Store.open(Path(str(data.store))).narrowed(data.first_classes, data.skip_classes)
    train, val = (store.split(name, data.limit) for name in ("train", "val"))
    of_train, of_val = (activations_of(trained, untrained, store, split) for split in (train, val))

    # Evenly spaced over the split, hence over the classes; queries between predicted images.
    chosen = _evenly_spaced(len(val.paths), PREDICTED_IMAGES + QUERY_IMAGES)
    queries = chosen[1 : 2 * QUERY_IMAGES : 2]
    predicted = [index for index in chosen if index not in queries]
    indices = nearest(of_val.hidden[queries], of_train.hidden)
    lookalikes = Lookalikes(
        guesses=[_prediction(of_val, store, index) for index in predicted],
        queries=[store.classes[int(of_val.labels[index])] for index in queries],
        nearest=[[store.classes[int(c)] for c in of_train.labels[row]] for row in indices],
    )
    paths = [val.paths[index] for index in predicted]
    for index, row in zip(queries, indices.tolist(), strict=True):
        paths += [val.paths[index], *(train.paths[neighbour] for neighbour in row)]
    images = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in paths]))

    asked = _evenly_spaced(len(val.paths), QUERIES)
    distances = pixel_distances(trained, store, val, train, asked)
    by_activations = nearest(of_val.hidden[asked], of_train.hidden)
    neighbours = Neighbours(
        labels=of_val.labels[asked],
        train_labels=of_train.labels,
        by_activations=by_activations,
        by_untrained=nearest(of_val.untrained[asked], of_train.untrained),
        by_pixels=distances.topk(min(NEAREST, distances.shape[1]), largest=False).indices,
        nearer_in_pixels=shares_nearer(distances, by_activations),
    )
    return Figure4(lookalikes, images, neighbours)


@torch.no_grad()
def activations_of(
    trained: TrainedModel, untrained: AlexNet, store: Store, split: Split
) -> SplitActivations:
    """Run both networks over a split, in the split's order."""
    model = trained.model.eval()
    hidden, initial, probabilities, labels = [], [], [], []
    for batch in _loader(trained, store, split).batches():
        images = batch.images[:, 0]
        features = model.features(images)
        hidden.append(features.cpu())
        initial.append(untrained.features(images).cpu())
        probabilities.append(F.softmax(model.logits_shard(features), dim=1).cpu())
        labels.append(batch.labels.cpu())
    return SplitActivations(*map(torch.cat, (hidden, initial, probabilities, labels)))


@torch.no_grad()
def pixel_distances(
    trained: TrainedModel, store: Store, val: Split, train: Split, asked: list[int]
) -> Tensor:
    """Squared distances of the asked validation images to all training images: [N, M].

    Only the queries are held in memory. Both have the mean image subtracted, which changes no
    distance and keeps the sums small.
    """
    wanted = torch.zeros(len(val.paths), dtype=torch.bool)
    wanted[asked] = True
    rows: list[Tensor] = []
    first = 0
    for batch in _loader(trained, store, val).batches():
        of_batch = wanted[first : first + len(batch.images)]
        rows.append(batch.images[of_batch, 0].flatten(1))
        first += len(of_batch)
    queries = torch.cat(rows)  # [N, D], in the order of the split, as ``asked`` is
    norms = queries.square().sum(1, keepdim=True)
    distances, first = torch.empty(len(queries), len(train.paths)), 0
    for batch in _loader(trained, store, train).batches():
        images = batch.images[:, 0].flatten(1)
        products = queries @ images.T  # the factor 2 follows: one of the queries is a large copy
        columns = slice(first, first + len(images))
        distances[:, columns] = (norms + images.square().sum(1) - 2 * products).cpu()
        first += len(images)
    return distances


def shares_nearer(distances: Tensor, indices: Tensor) -> Tensor:
    """Of distances [N, M], the share smaller than those at the indices [N, k]: [N, k]."""
    those = distances.gather(1, indices)
    columns = [(distances < those[:, [i]]).double().mean(1) for i in range(those.shape[1])]
    return torch.stack(columns, dim=1)


def neighbours_measurements(neighbours: Neighbours, *how: *How) -> list[Measurement]:
    """Whether neighbours share the query's class, and whether they are near in pixels."""
    labels, of_train = neighbours.labels.numpy(), neighbours.train_labels.numpy()
    lists = {
        "activations": neighbours.by_activations,
        "pixels": neighbours.by_pixels,
        "untrained": neighbours.by_untrained,
    }
    overlap = (neighbours.by_activations[:, :, None] == neighbours.by_pixels[:, None]).any(2)
    classes = {name: of_train[indices.numpy()] for name, indices in lists.items()}
    pixels = {
        "nearer_in_pixels": neighbours.nearer_in_pixels.float().numpy(),
        "in_both": overlap.numpy(),
        "training_images": np.array(len(of_train)),
    }
    return [
        class_measurement({"labels": labels, **classes}, *how),
        pixels_measurement({"labels": labels, **pixels}, *how),
    ]


def class_measurement(sample: Mapping[str, np.ndarray], *how: *How) -> Measurement:
    """Share of neighbours with the query's class, compared with the better of two controls.

    ``sample`` has the labels [N] of the queries, and the labels [N, k] of the nearest images by
    activations, by pixels and by an untrained network.
    """
    labels, controls = sample["labels"], ("pixels", "untrained")
    shares = {name: same_class_pct(sample[name], labels) for name in ("activations", *controls)}
    advantages = [_by_class(shares["activations"] - shares[name], labels) for name in controls]
    gains = [SeedMean.of(advantage.tolist()) for advantage in advantages]
    p_values = [sign_flip_p(advantage) for advantage in advantages]
    smaller = min(gains, key=lambda gain: gain.mean)
    agrees = None
    if max(p_values) <= LEVEL and smaller.mean > 0:
        agrees = True  # both controls are beaten, so no correction for two tests is needed
    elif any(p <= LEVEL / 2 and g.mean < 0 for p, g in zip(p_values, gains, strict=True)):
        agrees = False
    chance = _shuffled_pct(sample["activations"], labels)
    means = {name: float(values.mean()) for name, values in shares.items()}
    return Measurement(
        "fig4",
        f"{smaller} points more of the {NEAREST} nearest training images are of the same class "
        f"than with the better control: {means['activations']:.1f}%, by pixels "
        f"{means['pixels']:.1f}%, by an untrained network {means['untrained']:.1f}%, with shuffled "
        f"labels {chance:.1f}%",
        *how,
        numbers={
            "same_class_pct": means["activations"],
            "by_pixels_pct": means["pixels"],
            "untrained_pct": means["untrained"],
            "chance_pct": chance,
            "queries": len(labels),
        },
        interval=smaller.interval,
        agrees=agrees,
        agreement_note="tests whether more neighbours are of the same class than by pixels and by "
        "an untrained network, class by class, because similar queries share neighbours; the paper "
        "shows five queries and reports no number",
        p_value=max(p_values),
        sample=sample,
    )


def pixels_measurement(sample: Mapping[str, np.ndarray], *how: *How) -> Measurement:
    """Share of neighbours that are among the nearest training images in pixels, too.

    ``sample`` has the labels [N] of the queries, the share of training images that are nearer in
    pixels than each neighbour [N, k], whether it is among the k nearest in pixels [N, k], and the
    number of training images.
    """
    labels, nearer = sample["labels"], sample["nearer_in_pixels"]
    smallest = NEAREST / int(sample["training_images"])
    near_share = max(NEAR_SHARE, smallest)
    near_by_class = _by_class(100 * (nearer < near_share).mean(1), labels)
    mean, p_value = SeedMean.of(near_by_class.tolist()), sign_flip_p(near_by_class - 50)
    if smallest > NEAR_SHARE:  # too few images to say how far from 50% the share is
        mean = replace(mean, interval=None)
    rank_pct, overlap_pct = 100 * float(np.median(nearer)), 100 * float(sample["in_both"].mean())
    bounds = f" (95% {mean.interval[0]:.1f} to {mean.interval[1]:.1f})" if mean.interval else ""
    return Measurement(
        "fig4-pixels",
        f"{mean.mean:.1f}%{bounds} of the neighbours are among the {100 * near_share:.0f}% of the "
        f"training images that are nearest in pixels; half have more than {rank_pct:.0f}% of them "
        f"nearer, and {overlap_pct:.1f}% are among the {NEAREST} nearest",
        *how,
        numbers={
            "near_in_pixels_pct": mean.mean,
            "median_rank_pct": rank_pct,
            "overlap_pct": overlap_pct,
            "queries": len(labels),
        },
        interval=mean.interval,
        agrees=bool(mean.mean < 50) if p_value <= LEVEL else None,
        agreement_note="tests whether fewer than half of the neighbours are near in pixels, class "
        "by class; the paper shows five queries and reports no number",
        p_value=p_value,
        sample=sample,
    )


FROM_SAMPLE = {"fig4": class_measurement, "fig4-pixels": pixels_measurement}


def same_class_pct(neighbour_labels: np.ndarray, labels: np.ndarray) -> Array:
    """Share of each query's neighbours [N, k] that have its label [N]: [N]."""
    shares: Array = 100 * (neighbour_labels == labels[:, None]).mean(1)
    return shares


def _shuffled_pct(neighbour_labels: np.ndarray, labels: np.ndarray) -> float:
    """The same with shuffled labels of the queries: mean over queries, median over shuffles."""
    stream = np.random.default_rng(0)
    shuffled = (stream.permutation(labels) for _ in range(SHUFFLES))
    return float(np.median([same_class_pct(neighbour_labels, order).mean() for order in shuffled]))


def _by_class(values: Array, labels: np.ndarray) -> Array:
    """Mean of the queries' values [N] by class, of those classes that have queries."""
    return np.array([values[labels == label].mean() for label in np.unique(labels)])


def _untrained(run_dir: Path, trained: TrainedModel) -> AlexNet:
    """The network that a run started from."""
    model = trained.model
    config = config_of(manifest.read_progress(manifest.latest(run_dir) or run_dir))
    return AlexNet(
        model.recipe,
        len(trained.classes),
        model=model.config,
        mesh=model.mesh,
        seed=config.seed,
        precision=model.precision,
    ).eval()


def _loader(trained: TrainedModel, store: Store, split: Split) -> EvalLoader:
    """The centre crops of a split."""
    config, model = EvaluateConfig(), trained.model
    return EvalLoader(
        replace(store, mean_image=trained.mean_image),
        split,
        model.recipe.augment,
        input_size=model.config.input_size,
        views=1,
        batch_size=config.batch_size,
        placement=LoaderPlacement(device=model.mesh.device, threads=config.decode_threads),
    )


def _evenly_spaced(images: int, count: int) -> list[int]:
    return [int(position) for position in np.linspace(0, images - 1, min(images, count))]


def _prediction(of_val: SplitActivations, store: Store, index: int) -> PredictedImage:
    probabilities = of_val.probabilities[index]
    top = probabilities.topk(min(TOP_CLASSES, len(probabilities)))
    return PredictedImage(
        label=store.classes[int(of_val.labels[index])],
        guesses=[store.classes[int(class_index)] for class_index in top.indices],
        probabilities=[float(value) for value in top.values],
    )
