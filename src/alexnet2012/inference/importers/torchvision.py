"""Read and write state dicts that use the parameter names of torchvision's AlexNet.

torchvision's AlexNet is the network of Krizhevsky 2014: one tower, 64-192-384-256-256 kernels, no
normalisation, and pixels scaled to unit variance. Any numbers of kernels and units are accepted.
Models of two towers are not: a state dict does not hold the constants of their normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import NormConfig, PoolConfig
from alexnet2012.inference.importers.recipe_from_net import ImportedConv, ImportedModel
from alexnet2012.inference.importers.state_dicts import find_state_dict
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.text import printable

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # R, G, B, of pixels in [0, 1]
INPUT_SIZE = 224
# Kernel size, stride, padding, and whether max pooling follows.
_CONVOLUTIONS = {
    "features.0": (11, 4, 2, True),
    "features.3": (5, 1, 2, True),
    "features.6": (3, 1, 1, False),
    "features.8": (3, 1, 1, False),
    "features.10": (3, 1, 1, True),
}
_PARTS = ("weight", "bias")
_LINEARS = ("classifier.1", "classifier.4", "classifier.6")
_LAYERS = (*_CONVOLUTIONS, *_LINEARS)
_NAMES = {f"{layer}.{part}" for layer in _LAYERS for part in _PARTS}


def read_state_dict(path: Path, entry: str | None = None) -> Mapping[str, Tensor]:
    """The tensors of a file of ``torch.save`` or safetensors; see :func:`find_state_dict`."""
    found = find_state_dict(path, _NAMES, entry)
    problems = [f"{name} is missing" for name in sorted(_NAMES - set(found.tensors))]
    problems += [f"{printable(name)} is unexpected" for name in found.unexpected]
    if problems:
        remedy = "the parameter names must be those of torchvision's alexnet"
        raise ValueError(f"{problems[0]}; {remedy}")
    return found.tensors


def from_state_dict(state: Mapping[str, Tensor]) -> ImportedModel:
    """The model of a state dict, with conv1 rescaled for pixel values 0-255."""
    for name, value in state.items():
        if value.layout != torch.strided or value.is_quantized or not value.is_floating_point():
            kind = str(value.layout).removeprefix("torch.")
            raise ValueError(f"{name} is {kind} {value.dtype}; save dense tensors of floats")
        if value.is_meta or value.untyped_storage().nbytes() < value.numel() * value.itemsize:
            raise ValueError(f"{name} has no data of its own; save the tensors that it is made of")
    arrays = {name: np.asarray(value.float().numpy()) for name, value in state.items()}
    channels = 3
    convolutions: list[ImportedConv] = []
    for layer, (size, stride, padding, pooled) in _CONVOLUTIONS.items():
        weight, bias = _checked(arrays, layer, (channels, size, size))
        if not convolutions:
            weight = weight / (255 * np.array(STD, np.float32)[:, None, None])
        after = [LayerOp.activation, LayerOp.max_pool] if pooled else [LayerOp.activation]
        convolutions.append(ImportedConv(weight, bias, stride, padding, 1, after))
        channels = len(bias)
    inputs, linears = channels * 6 * 6, []
    for layer in _LINEARS:
        linears.append(_checked(arrays, layer, (inputs,)))
        inputs = len(linears[-1][1])
    red, green, blue = (255 * value for value in MEAN)
    return ImportedModel(
        convolutions,
        linears,
        activation=Activation.relu,
        dropout_rate=0.5,
        input_size=INPUT_SIZE,
        pool=PoolConfig(size=3, stride=2),
        lrn=NormConfig(5, 1.0, 0.75, 1.0, True),  # unused: no layer has LRN
        mean=(red, green, blue),
    )


def to_state_dict(model: AlexNet, mean_image: npt.NDArray[np.float32]) -> dict[str, Tensor]:
    """The inverse of :func:`from_state_dict`: float32 tensors for ``torchvision.models.alexnet``.

    Their input is normalised as torchvision does it if :func:`has_torchvisions_mean`, and is pixel
    values 0-255 minus the mean image otherwise.

    Raises:
        ValueError: the network computes something else than torchvision's; the message says what.
    """
    if difference := _difference(model):
        raise ValueError(f"{difference}, unlike torchvision's alexnet; use onnx or torch")
    full = {name: value.float().cpu() for name, value in model.full_state_dict().items()}
    if has_torchvisions_mean(mean_image):
        full["conv1.weight"] = full["conv1.weight"] * (255 * torch.tensor(STD)[:, None, None])
    for name in ("fc7.weight", "fc8.weight"):  # see recipe_from_net
        full[name] = full[name] * (1 - model.recipe.dropout_rate)
    layers = zip((*model.recipe.convs, *model.recipe.hidden, "fc8"), _LAYERS, strict=True)
    return {
        f"{theirs}.{part}": full[f"{ours}.{part}"].contiguous()
        for ours, theirs in layers
        for part in _PARTS
    }


def has_torchvisions_mean(mean_image: npt.NDArray[np.float32]) -> bool:
    """Whether a mean image [P, P, 3] is the colour that torchvision subtracts."""
    return bool(np.allclose(mean_image, 255 * np.array(MEAN), rtol=0, atol=1e-3))


def alexnet_logits(state: Mapping[str, Tensor], images: Tensor) -> Tensor:
    """The forward pass of ``torchvision.models.alexnet``: [N, 3, 224, 224] → [N, K]."""
    x = images
    for layer, (_, stride, padding, pooled) in _CONVOLUTIONS.items():
        weight, bias = (state[f"{layer}.{part}"] for part in _PARTS)
        x = F.relu(F.conv2d(x, weight, bias, stride, padding))
        x = F.max_pool2d(x, 3, 2) if pooled else x
    x = F.adaptive_avg_pool2d(x, 6).flatten(1)
    for layer in _LINEARS:
        x = F.linear(x, state[f"{layer}.weight"], state[f"{layer}.bias"])
        x = x if layer == _LINEARS[-1] else F.relu(x)
    return x


def _difference(model: AlexNet) -> str | None:
    """What a network has that torchvision's alexnet has not."""
    recipe, pool = model.recipe, (model.recipe.pool.size, model.recipe.pool.stride)
    if model.config.activation is not Activation.relu:
        return f"its activation is {model.config.activation.value}"
    if len(recipe.convs) != len(_CONVOLUTIONS) or [*recipe.hidden] != ["fc6", "fc7"]:
        return f"its layers are {', '.join(model.layers())}"
    if recipe.fc8_bottleneck.present:
        return "it has a layer fc8_bottleneck"
    for (name, conv), theirs in zip(recipe.convs.items(), _CONVOLUTIONS.values(), strict=True):
        *window, pooled = theirs
        if conv.overhang or [conv.kernel_size, conv.stride, conv.padding] != window:
            return f"the kernels of {name} have another size, stride or padding"
        expected = {LayerOp.activation, LayerOp.max_pool} if pooled else {LayerOp.activation}
        if {*conv.after} != expected or len(conv.after) > 2:  # max pooling and ReLU commute
            return f"{name} is followed by {', '.join(map(str, conv.after)) or 'nothing'}"
    for name, layer in model.layers().items():
        if layer.groups > 1:
            return f"{name} reads only the maps of its own tower"
    if pool != (3, 2):
        return f"its pooling has size {pool[0]} and stride {pool[1]}"
    if model.config.input_size != INPUT_SIZE:
        return f"its input has {model.config.input_size} pixels a side"
    return None


def _checked(arrays: Mapping[str, Any], layer: str, row: tuple[int, ...]) -> tuple[Any, Any]:
    weight, bias = (arrays[f"{layer}.{part}"] for part in _PARTS)
    if weight.ndim != len(row) + 1 or weight.shape[1:] != row or bias.shape != weight.shape[:1]:
        expected = ", ".join(map(str, ("rows", *row)))
        halves = weight.shape[1:2] == (row[0] // 2,) and weight.shape[2:] == row[1:]
        towers = "; it reads half of the maps, as in a two-tower model" if halves else ""
        raise ValueError(
            f"{layer}.weight has shape {list(weight.shape)} and must have [{expected}]{towers}"
        )
    return weight, bias
