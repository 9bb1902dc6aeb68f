"""Activations of one image in every layer, and the binary message that carries them to the page.

Shapes: K classes, P pixels a side of a stored image, S pixels a side of the input. The output of a
layer is C maps [C, H, W] or U units [U] of all towers, tower 0 first.
"""

from __future__ import annotations

import json
import math
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet2012.config.enums import LayerOp
from alexnet2012.data.ten_crop import centre_crop
from alexnet2012.inference.trained_model import (
    Prediction,
    TrainedModel,
    probabilities,
    top_predictions,
)
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import Layout, count_layers, layer_costs
from alexnet2012.tracking.image_grids import data_uri, kernel_pictures
from alexnet2012.utils.shard import padded_shard_size, shard_of
from alexnet2012.utils.text import printable

TOP_K = 5
KERNEL_COLUMNS = 12
Array = npt.NDArray[np.float32]
LayerOutputs = dict[str, Tensor]  # by layer
_OP_NAMES = {
    LayerOp.lrn: "LRN",
    LayerOp.spatial_norm: "spatial norm",
    LayerOp.max_pool: "max pool",
    LayerOp.average_pool: "average pool",
}


@dataclass(frozen=True)
class LayerDescription:
    """A layer's shapes and exchanges, which do not depend on the image."""

    name: str
    kind: str  # conv or fc
    reads: str  # image, own (tower) or both (towers)
    rows: list[tuple[int, int]]  # [start, stop) of each tower's kernels or units
    then: list[str]  # names of the operations after the product, in order
    result: tuple[int, ...]  # shape of the product
    handed_on: tuple[int, ...]  # shape of the next layer's input
    crossing_bytes: int  # exchanged between the towers before this layer, per image, forward


@dataclass(frozen=True)
class Inspection:
    """Activations of an image's centre crop, and predictions that average all views."""

    pixels: npt.NDArray[np.uint8]  # [S, S, 3]
    image: Array  # [3, S, S], minus the mean image: the input of the first layer
    results: dict[str, Array]  # by layer: the product, before activation, pooling and LRN
    handed_on: dict[str, Array]  # by layer: the input of the next layer; for fc8, the logits
    predictions: list[Prediction]  # best first
    owners: list[int]  # for each prediction, the tower that holds the class


@torch.no_grad()
def inspect_image(trained: TrainedModel, pixels: npt.NDArray[np.uint8], views: int) -> Inspection:
    """Run the model on a stored image, uint8 [P, P, 3]; predictions equal those of ``predict``."""
    images = torch.from_numpy(pixels)[None]
    image = trained.views(images, 1)[:, 0]
    results, handed_on = layer_outputs(trained.model, image)
    row = probabilities([trained], {len(pixels): images}, views)[0]
    predictions = top_predictions(trained.classes, row, TOP_K)
    rows = padded_shard_size(len(trained.classes), trained.model.recipe.towers)
    return Inspection(
        centre_crop(images[0], trained.model.config.input_size).numpy(),
        _to_numpy(image[0]),
        {name: _to_numpy(x) for name, x in results.items()},
        {name: _to_numpy(x) for name, x in handed_on.items()},
        predictions,
        [prediction.index // rows for prediction in predictions],
    )


@torch.no_grad()
def layer_outputs(model: AlexNet, image: Tensor) -> tuple[LayerOutputs, LayerOutputs]:
    """Each layer's product, and its output after pooling and so on, for one image [1, 3, S, S]."""
    assert model.mesh.towers == 1, "activations need a model that holds all towers"
    results: LayerOutputs = {}
    inputs: LayerOutputs = {}

    def record(name: str, module: nn.Module, args: Any, output: Tensor) -> None:
        inputs[name], results[name] = args[0][0], output[0]

    with ExitStack() as hooks:
        for name, layer in model.layers().items():
            hooks.enter_context(layer.register_forward_hook(partial(record, name)))
        logits = model(image)[0]
    # The operations after a convolution are plain functions, which take no hooks.
    handed_on = {name: inputs[following] for name, following in pairwise(results)}
    for name in model.recipe.convs:
        if handed_on[name].dim() == 1:  # flattened for a fully connected layer
            maps = len(results[name])
            side = math.isqrt(handed_on[name].numel() // maps)
            handed_on[name] = handed_on[name].unflatten(0, (maps, side, side))
    return results, {**handed_on, list(results)[-1]: logits}


def describe_layers(trained: TrainedModel) -> tuple[list[LayerDescription], int]:
    """The layers of the model, and the bytes exchanged to give every tower all logits."""
    model, recipe = trained.model, trained.model.recipe
    blank = torch.zeros(1, 3, *2 * [model.config.input_size], device=model.mesh.device)
    results, handed_on = layer_outputs(model, blank)
    parameters, activations = (kind.itemsize for kind in model.types)
    layout = Layout(
        1, towers=recipe.towers, activation_bytes=activations, parameter_bytes=parameters
    )
    costs = layer_costs(recipe, count_layers(model), layout)
    crossing = {cost.name: cost.sent_bytes.get("forward", 0) * recipe.towers for cost in costs}
    layers: list[LayerDescription] = []
    for name, result in results.items():
        conv, hidden = recipe.convs.get(name), recipe.hidden.get(name)
        config = conv or hidden
        both = config is None or config.reads_both_towers
        activation = str(model.config.activation).replace("relu", "ReLU")
        rate = recipe.conv_dropout_rate if conv else recipe.dropout_rate
        steps = conv.after if conv else [LayerOp.activation, LayerOp.dropout] if hidden else []
        names = {
            **_OP_NAMES,
            LayerOp.activation: activation,
            LayerOp.dropout: f"scaled by {1 - rate:g} for dropout",
        }
        then = [names[step] for step in steps]
        shards = [shard_of(len(result), recipe.towers, tower) for tower in range(recipe.towers)]
        layers.append(
            LayerDescription(
                name,
                "conv" if conv else "fc",
                "image" if not layers else "both" if both else "own",
                [(shard.start, shard.stop) for shard in shards],
                then,
                tuple(result.shape),
                tuple(handed_on[name].shape),
                crossing[name],
            )
        )
    return layers, crossing["logits"]


def describe_model(trained: TrainedModel, views: int) -> dict[str, Any]:
    """The JSON description of the model that the page is built from."""
    layers, logits_bytes = describe_layers(trained)
    model, recipe = trained.model, trained.model.recipe
    first = model.layers()[layers[0].name].weight
    return {
        "recipe": recipe.name,
        "towers": recipe.towers,
        "width": model.config.width,
        "input_size": model.config.input_size,
        "classes": len(trained.classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "views": views,
        "norm_crosses": recipe.lrn_across_towers and recipe.towers > 1,
        "layers": [asdict(layer) for layer in layers],
        "logits_bytes": logits_bytes,
        "kernels": kernel_pictures(first, recipe.towers, columns=KERNEL_COLUMNS, zoom=1),
        "kernel_side": first.shape[-1],
        "kernel_columns": KERNEL_COLUMNS,
    }


def pack_inspection(inspection: Inspection) -> bytes:
    """The message to the page: length of the JSON (uint32), JSON, all activations as float32.

    Numbers are little endian, and the activations start at a multiple of four bytes. The JSON holds
    each layer's offsets among the activations.
    """
    numbers = bytearray()
    offsets: dict[str, dict[str, int]] = {name: {} for name in inspection.results}
    for stage, outputs in (("result", inspection.results), ("handed_on", inspection.handed_on)):
        for name, array in outputs.items():
            offsets[name][stage] = len(numbers) // 4
            numbers += array.astype("<f4").tobytes()
    predictions = [
        {
            "name": printable(best.name),
            "probability": best.probability,
            "tower": tower,
        }
        for best, tower in zip(inspection.predictions, inspection.owners, strict=True)
    ]
    # Of the mean-subtracted image, zero is shown as mid grey, and contrast is halved.
    less_mean = np.clip(np.nan_to_num(inspection.image) / 2 + 128, 0, 255).astype(np.uint8)
    images = {
        "seen": data_uri(Image.fromarray(inspection.pixels), "PNG"),
        "less_mean": data_uri(Image.fromarray(less_mean.transpose(1, 2, 0)), "PNG"),
    }
    head = json.dumps({**images, "guesses": predictions, "places": offsets}).encode()
    head += b" " * (-len(head) % 4)
    return len(head).to_bytes(4, "little") + head + numbers


def _to_numpy(x: Tensor) -> Array:
    array: Array = x.float().cpu().contiguous().numpy()
    return array
