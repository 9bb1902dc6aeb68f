"""Read state dicts that use the parameter names of torchvision's AlexNet.

torchvision's AlexNet is the network of Krizhevsky 2014: one tower, 64-192-384-256-256 kernels, no
normalisation, and pixels scaled to unit variance. Any numbers of kernels and units are accepted.
Models of two towers are not: a state dict does not hold the constants of their normalisation.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import NormConfig, PoolConfig
from alexnet2012.inference.importers.recipe_from_net import ImportedConv, ImportedModel
from alexnet2012.inference.importers.state_dicts import find_state_dict
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
_NAMES = {f"{layer}.{part}" for layer in (*_CONVOLUTIONS, *_LINEARS) for part in _PARTS}


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
