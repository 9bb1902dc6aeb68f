"""What a run measures at its first step, by which faults are told apart later."""

from __future__ import annotations

import torch

from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.loaders import Batch
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.tracking.likely_causes import SPREAD


@torch.no_grad()
def observe(config: TrainConfig, model: AlexNet, batch: Batch, step: int) -> dict[str, float]:
    """Mean and standard deviation of a batch; at step 0 also the spread of the initial weights.

    The spread of a layer is that of this rank's rows, on the scale of ``init_std`` in a recipe.
    """
    images = batch.images.float()
    observed = {"pixel_mean": float(images.mean()), "pixel_std": float(images.std())}
    if step > 0 or config.init_from is not None:
        return observed
    for name, layer in model.layers().items():
        prescribed = getattr(config.recipe, name).init_std
        if layer.weight.numel() > 1 and prescribed > 0:
            scale = model.init_stds[name] / prescribed  # of a narrower network
            observed[f"{SPREAD}{name}"] = float(layer.weight.float().std()) / scale
    return observed
