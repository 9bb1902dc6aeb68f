"""Top-1 and top-5 errors of a model, or of several averaged, with 1 or 10 views per image.

Shapes: N images, V views per image, K classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.metrics import TOP_K, ErrorCounts, label_scores, topk_errors


@torch.no_grad()
def evaluate(
    models: Sequence[nn.Module],
    batches: Iterable[Batch],
    mesh: Mesh,
    classes: int,
    on_batch: Callable[[Batch, Tensor], None] | None = None,
) -> ErrorCounts:
    """Errors of the probabilities averaged over views and models. Collective.

    ``on_batch`` is called with each batch of this replica and its probabilities [N, K].

    Source: paper sec. 4.1 (ten views) and table 2 (ensembles).
    """
    training = [model.training for model in models]
    for model in models:
        model.eval()
    totals = torch.zeros(4, dtype=torch.float64)  # images, top-1 errors, top-5 errors, loss
    for batch in batches:
        count, views = batch.images.shape[:2]
        images = batch.images.flatten(0, 1)
        # [N·V, K] → [N, V, K]; averaged over views, then over models
        predictions = [
            F.softmax(model(images), dim=1).unflatten(0, (count, views)).mean(1) for model in models
        ]
        probabilities = torch.stack(predictions).mean(0)
        errors = topk_errors(probabilities, batch.labels, ks=(1, min(TOP_K, classes)))
        of_label = label_scores(probabilities, batch.labels)
        loss = -of_label.clamp_min(1e-30).log().sum()
        counts = (count, errors[1], errors[max(errors)], float(loss))
        totals += torch.tensor(counts, dtype=torch.float64)
        if on_batch is not None:
            on_batch(batch, probabilities)
    for model, was_training in zip(models, training, strict=True):
        model.train(was_training)
    totals = totals.to(mesh.device)
    mesh.sum_over_replicas([totals], "errors")
    num_images, top1, top5, total_loss = totals.tolist()
    return ErrorCounts(int(num_images), top1, top5, total_loss / num_images, classes)
