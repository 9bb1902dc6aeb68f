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
import torch
from safetensors.torch import load_file
from torch import Tensor

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import NormConfig, PoolConfig
from alexnet2012.inference.importers.recipe_from_net import ImportedConv, ImportedModel

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


def read_state_dict(path: Path) -> Mapping[str, Tensor]:
    """Load the tensors of a ``.pth`` or ``.safetensors`` file; only tensors are unpickled."""
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # junk may raise anything
        reason = str(error).strip().splitlines()[:1] or [type(error).__name__]
        raise ValueError(f"cannot be loaded as tensors ({reason[0]})") from error
    state = loaded.get("state_dict", loaded) if isinstance(loaded, dict) else loaded
    if not isinstance(state, dict) or not all(isinstance(v, Tensor) for v in state.values()):
        raise ValueError("does not contain a state dict")
    return {str(name).removeprefix("module."): value for name, value in state.items()}


def from_state_dict(state: Mapping[str, Tensor]) -> ImportedModel:
    """The model of a state dict, with conv1 rescaled for pixel values 0-255."""
    names = {f"{layer}.{part}" for layer in (*_CONVOLUTIONS, *_LINEARS) for part in _PARTS}
    if differing := sorted(names ^ set(state)):
        problem = "is missing" if differing[0] in names else "is unexpected"
        raise ValueError(
            f"{differing[0]} {problem}; the parameter names must be those of torchvision's alexnet"
        )
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
