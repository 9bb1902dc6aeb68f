"""Figure 4: what a net guesses, and which training pictures it holds to be like a given one.

Likeness is the distance between last hidden activations. The number behind the picture: how many
of the nearest training pictures are of the query's class, over all validation pictures.

Legend: N validation pictures, M training pictures, U hidden units, K classes, k nearest.
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
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.results import Lookalikes, PredictedImage

SHUFFLES = 1000
GUESSES, GUESSED, QUERIES = 5, 8, 5  # guesses a picture; pictures on the left and on the right


@dataclass(frozen=True)
class HiddenActivations:
    """What a net makes of a split, centre view."""

    hidden: Tensor  # [n, U] last hidden activations
    probabilities: Tensor  # [n, K]
    labels: Tensor  # [n]


@torch.no_grad()
def seen(
    net: TrainedModel, store: Store, split: Split, config: EvaluateConfig
) -> HiddenActivations:
    """Run a net over a split, in its order."""
    model = net.model.eval()
    loader = EvalLoader(
        replace(store, mean_image=net.mean_image),
        split,
        model.recipe.augment,
        input_size=model.config.input_size,
        views=1,
        batch_size=config.batch_size,
        placement=LoaderPlacement(device=model.mesh.device, threads=config.decode_threads),
    )
    hidden, probabilities, labels = [], [], []
    for batch in loader.batches():
        activations = model.features(batch.images[:, 0])
        hidden.append(activations.cpu())
        probabilities.append(F.softmax(model.fc8(activations), dim=1).cpu())
        labels.append(batch.labels.cpu())
    return HiddenActivations(torch.cat(hidden), torch.cat(probabilities), torch.cat(labels))


def lookalikes_measurement(
    neighbours: Tensor,
    labels: Tensor,
    of_neighbours: Tensor,
    scale: Scale,
    caveat: str | None,
    command: str,
) -> Measurement:
    """Whether the nearest are of the query's class more often than by chance.

    Chance is what the same neighbours give when the queries' labels are shuffled: queries that are
    alike share neighbours, so they are no independent sample and an interval over them would be
    too narrow.

    Args:
        neighbours: [N, k] indices of training pictures.
        labels: [N] of the queries.
        of_neighbours: [M] labels of the training pictures.
    """
    by_class = F.one_hot(of_neighbours[neighbours], int(of_neighbours.max()) + 1).double().mean(1)
    shares = 100 * by_class  # [N, K]: of a query's neighbours, per cent

    def same(labels: Tensor) -> float:
        return float(shares.gather(1, labels[:, None]).mean())

    found, stream = same(labels), torch.Generator().manual_seed(0)
    shuffled = [
        same(labels[torch.randperm(len(labels), generator=stream)]) for _ in range(SHUFFLES)
    ]
    low, chance, high = np.quantile(shuffled, (0.025, 0.5, 0.975)).tolist()
    return Measurement(
        claim="fig4",
        value=f"{found:.1f}% of the {NEAREST} nearest training pictures are of the same class; "
        f"with shuffled labels {chance:.1f}% (95% {low:.1f} to {high:.1f})",
        scale=scale,
        command=command,
        numbers={"same_class_pct": found, "chance_pct": chance, "queries": len(labels)},
        caveat=caveat,
        agrees=None if low <= found <= high else found > high,
        agreement_note="whether more than chance are of the same class, over all validation "
        "pictures; the paper shows five and gives no number",
    )


def look_alike(
    run: Path, scale: Scale, caveat: str | None, command: str
) -> tuple[Lookalikes, Tensor, Measurement]:
    """The figure's content, its pictures [8 + 5·7, P, P, 3], and the number behind it."""
    config = EvaluateConfig(checkpoint=str(run), views=1)
    net = load_trained(run)
    assert net.data is not None
    store = Store.open(Path(str(net.data.store))).narrowed(net.data.first_classes)
    train, val = (store.split(name, net.data.limit) for name in ("train", "val"))
    of_train, of_val = (seen(net, store, split, config) for split in (train, val))
    neighbours = nearest(of_val.hidden, of_train.hidden)
    likeness = lookalikes_measurement(
        neighbours, of_val.labels, of_train.labels, scale, caveat, command
    )

    # Evenly over the split, and so over the classes; the queries between the guessed.
    places = np.linspace(0, len(val.paths) - 1, GUESSED + QUERIES).astype(int).tolist()
    queries = places[1 : 2 * QUERIES : 2]
    guessed = [place for place in places if place not in queries]
    found = Lookalikes(
        guesses=[_guess(of_val, store, place) for place in guessed],
        queries=[store.classes[int(of_val.labels[place])] for place in queries],
        nearest=[
            [store.classes[int(of_train.labels[index])] for index in neighbours[place]]
            for place in queries
        ],
    )
    shown = [val.paths[place] for place in guessed]
    for place in queries:
        shown += [val.paths[place], *(train.paths[int(index)] for index in neighbours[place])]
    pictures = torch.from_numpy(np.stack([np.asarray(Image.open(path)) for path in shown]))
    return found, pictures, likeness


def _guess(of_val: HiddenActivations, store: Store, place: int) -> PredictedImage:
    probabilities = of_val.probabilities[place]
    top = probabilities.topk(min(GUESSES, len(probabilities)))
    return PredictedImage(
        label=store.classes[int(of_val.labels[place])],
        guesses=[store.classes[int(index)] for index in top.indices],
        probabilities=[float(value) for value in top.values],
    )
