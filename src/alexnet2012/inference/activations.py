"""What a net makes of one picture, layer by layer, and the bytes in which a page reads it.

Legend: K classes, P pixels a side of a stored picture, S of the input; a layer's result is maps
[C, H, W] or units [U], of all towers, tower 0's first.
"""

from __future__ import annotations

import base64
import io
import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor, nn

from alexnet2012.config.enums import LayerOp
from alexnet2012.data.ten_crop import centre
from alexnet2012.inference.trained_model import (
    Prediction,
    TrainedModel,
    probabilities,
    top_predictions,
)
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import Layout, layer_costs
from alexnet2012.nn.flops import count_layers
from alexnet2012.tracking.image_grids import kernel_pictures
from alexnet2012.utils.shard import padded_shard_size, shard_of
from alexnet2012.utils.text import printable

GUESSES = 5
KERNEL_COLUMNS = 12
Array = npt.NDArray[np.float32]
Stages = dict[str, Tensor]  # by layer
_IN_WORDS = {
    LayerOp.lrn: "LRN",
    LayerOp.spatial_norm: "spatial norm",
    LayerOp.max_pool: "max pool",
    LayerOp.average_pool: "mean pool",
}


@dataclass(frozen=True)
class LayerActivations:
    """A layer as it is whatever the picture."""

    name: str
    kind: str  # conv or fc
    reads: str  # image, own or both
    rows: list[tuple[int, int]]  # by tower: its kernels or units, from and up to
    then: list[str]  # what follows the product, in words and in order
    result: tuple[int, ...]  # shape of the product alone
    handed_on: tuple[int, ...]  # shape of what the next layer reads
    crossing_bytes: int  # that the towers send each other before it, for one picture, forward


@dataclass(frozen=True)
class Inspection:
    """One picture in one net: all numbers are of the centre view but the guesses."""

    pixels: npt.NDArray[np.uint8]  # [S, S, 3] of the centre view
    image: Array  # [3, S, S] as the first layer reads it, the mean taken off
    results: dict[str, Array]  # of each layer, before anything follows
    handed_on: dict[str, Array]  # of each layer, as the next one reads it; fc8's are the logits
    guesses: list[Prediction]  # likeliest first
    owners: list[int]  # the tower that holds the row of each of them


@torch.no_grad()
def inspect_image(net: TrainedModel, pixels: npt.NDArray[np.uint8], views: int) -> Inspection:
    """What the net makes of a stored picture [P, P, 3]; the guesses are those of ``predict``."""
    pictures = torch.from_numpy(pixels)[None]
    image = net.views(pictures, 1)[:, 0]
    results, handed_on = stages(net.model, image)
    found = probabilities([net], {len(pixels): pictures}, views)[0]
    guesses = top_predictions(net.classes, found, GUESSES)
    rows = padded_shard_size(len(net.classes), net.model.recipe.towers)
    return Inspection(
        centre(pictures[0], net.model.config.input_size).numpy(),
        _plain(image[0]),
        {name: _plain(x) for name, x in results.items()},
        {name: _plain(x) for name, x in handed_on.items()},
        guesses,
        [guess.index // rows for guess in guesses],
    )


@torch.no_grad()
def stages(model: AlexNet, image: Tensor) -> tuple[Stages, Stages]:
    """Results and what is handed on, by layer, of an image [1, 3, S, S] in a whole net.

    What a layer hands on is what the next one was called with: what follows a convolution is
    plain functions, at which nothing can be hooked.
    """
    assert model.mesh.towers == 1, "look at the whole net"
    results: Stages = {}
    read: Stages = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            read[name], results[name] = inputs[0][0], output[0]

        return hook

    handles = [m.register_forward_hook(record(n)) for n, m in model.layers().items()]
    try:
        logits = model(image)[0]
    finally:
        for handle in handles:
            handle.remove()
    handed_on = {name: read[following] for name, following in pairwise(results)}
    for name in model.recipe.convs:
        if handed_on[name].dim() == 1:  # flattened for a fully connected layer
            maps = len(results[name])
            side = math.isqrt(handed_on[name].numel() // maps)
            handed_on[name] = handed_on[name].unflatten(0, (maps, side, side))
    return results, {**handed_on, list(results)[-1]: logits}


def describe_layers(net: TrainedModel) -> tuple[list[LayerActivations], int]:
    """The net's layers, and the bytes that cross so that every tower has all logits."""
    model, recipe = net.model, net.model.recipe
    blank = torch.zeros(1, 3, *2 * [model.config.input_size], device=model.mesh.device)
    results, handed_on = stages(model, blank)
    parameters, activations = (kind.itemsize for kind in model.types)
    layout = Layout(
        1, towers=recipe.towers, activation_bytes=activations, parameter_bytes=parameters
    )
    costs = {cost.name: cost for cost in layer_costs(recipe, count_layers(model), layout)}
    crossing = {
        name: cost.sent_bytes.get("forward", 0) * recipe.towers for name, cost in costs.items()
    }
    layers: list[LayerActivations] = []
    for name, result in results.items():
        conv, hidden = recipe.convs.get(name), recipe.hidden.get(name)
        own = conv or hidden
        both = own is None or own.reads_both_towers
        activation = str(model.config.activation).replace("relu", "ReLU")
        then = [_IN_WORDS.get(step, activation) for step in conv.after] if conv else []
        if hidden:
            then = [activation, f"times {1 - recipe.dropout_rate:g} for dropout"]
        parts = [shard_of(len(result), recipe.towers, tower) for tower in range(recipe.towers)]
        layers.append(
            LayerActivations(
                name,
                "conv" if conv else "fc",
                "image" if not layers else "both" if both else "own",
                [(part.start, part.stop) for part in parts],
                then,
                tuple(result.shape),
                tuple(handed_on[name].shape),
                crossing[name],
            )
        )
    return layers, crossing["logits"]


def describe_net(net: TrainedModel, views: int) -> dict[str, Any]:
    """What the page is told of a net before there is any picture."""
    layers, logits_bytes = describe_layers(net)
    model, recipe = net.model, net.model.recipe
    first = model.layers()[layers[0].name].weight
    return {
        "recipe": recipe.name,
        "towers": recipe.towers,
        "width": model.config.width,
        "input_size": model.config.input_size,
        "classes": len(net.classes),
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "views": views,
        "norm_crosses": recipe.lrn_across_towers and recipe.towers > 1,
        "layers": [asdict(layer) for layer in layers],
        "logits_bytes": logits_bytes,
        "kernels": kernel_pictures(first, recipe.towers, columns=KERNEL_COLUMNS, zoom=1),
        "kernel_side": first.shape[-1],
        "kernel_columns": KERNEL_COLUMNS,
    }


def packed(looked: Inspection) -> bytes:
    """A JSON text, its length before it as four bytes, and all numbers behind it as float32.

    Everything is little endian, and the numbers begin at a multiple of four. Per layer the JSON
    says where among the numbers its ``result`` and what it ``handed_on`` begin.
    """
    arrays: list[Array] = []
    places: dict[str, dict[str, int]] = {name: {} for name in looked.results}
    count = 0
    for stage, found in (("result", looked.results), ("handed_on", looked.handed_on)):
        for name, array in found.items():
            places[name][stage] = count
            arrays.append(array)
            count += array.size
    guesses = [
        {
            "name": printable(guess.name),
            "probability": guess.probability if math.isfinite(guess.probability) else None,
            "tower": tower,
        }
        for guess, tower in zip(looked.guesses, looked.owners, strict=True)
    ]
    pictures = {"seen": _png(looked.pixels), "less_mean": _png(_shown(looked.image))}
    head = json.dumps({**pictures, "guesses": guesses, "places": places}).encode()
    head += b" " * (-len(head) % 4)
    numbers = b"".join(array.astype("<f4").tobytes() for array in arrays)
    return len(head).to_bytes(4, "little") + head + numbers


def _shown(image: Array) -> npt.NDArray[np.uint8]:
    """[3, S, S] less the mean as a picture [S, S, 3]: zero is mid grey, at half contrast."""
    levels: npt.NDArray[np.uint8] = np.clip(np.nan_to_num(image) / 2 + 128, 0, 255).astype(np.uint8)
    return levels.transpose(1, 2, 0)


def _plain(x: Tensor) -> Array:
    array: Array = x.float().cpu().contiguous().numpy()
    return array


def _png(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
