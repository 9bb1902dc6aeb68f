"""Somebody else's net, brought to the terms of a recipe.

Legend: C classes, P pixels a side of a stored picture.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import (
    ConfigError,
    ConvConfig,
    LinearConfig,
    ModelConfig,
    NormConfig,
    PoolConfig,
    RecipeConfig,
)
from alexnet2012.nn.alexnet import AlexNet

IMAGENET_MEAN = (123.68, 116.78, 103.94)  # R, G, B, grey levels: of ILSVRC 2012's training pictures


@dataclass(frozen=True)
class ImportedConv:
    """A convolution of a foreign net."""

    weight: npt.NDArray[np.float32]  # [kernels, channels of a group, H, W]
    bias: npt.NDArray[np.float32]
    stride: int
    padding: int
    groups: int
    after: Sequence[LayerOp]


@dataclass(frozen=True)
class ImportedNet:
    """What a file holds of a net, in RGB."""

    convolutions: Sequence[ImportedConv]
    linears: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]  # weight and bias
    activation: Activation
    dropout_rate: float  # as most trainers have it: what is kept is scaled up in training
    input_size: int
    pool: PoolConfig
    lrn: NormConfig  # over all maps, whatever their groups
    mean: tuple[float, float, float] | None = None  # R, G, B; None: the file does not say

    @property
    def num_classes(self) -> int:
        return len(self.linears[-1][1])


def as_alexnet(net: ImportedNet, base: RecipeConfig, name: str) -> AlexNet:
    """The net of a recipe like it, with its weights; what only training needs is ``base``'s.

    Raises:
        ValueError: no recipe has such a net.
    """
    convs = [f"conv{i}" for i in range(1, len(net.convolutions) + 1)]
    if not 1 <= len(convs) <= 6 or len(net.linears) != 3:
        raise ValueError(
            f"it has {len(convs)} convolutions and {len(net.linears)} fully connected layers, "
            "and an AlexNet has five and three"
        )
    groups = {conv.groups for conv in net.convolutions}
    towers = max(groups)
    if not groups <= {1, towers}:
        raise ValueError(f"its convolutions have {sorted(groups)} groups; all but 1 must be equal")
    layers: dict[str, ConvConfig | LinearConfig] = {}
    for number in range(1, 7):
        layer = f"conv{number}"
        like = getattr(base, layer)
        if number > len(convs):
            layers[layer] = replace(like, present=False)
            continue
        conv = net.convolutions[number - 1]
        layers[layer] = replace(
            like,
            present=True,
            kernels=len(conv.weight),
            kernel_size=conv.weight.shape[2],
            stride=conv.stride,
            padding=conv.padding,
            overhang=False,
            reads_both_towers=number > 1 and conv.groups == 1,
            after=list(conv.after),
        )
    for layer, (weight, _) in zip(("fc6", "fc7"), net.linears, strict=False):
        like = getattr(base, layer)
        layers[layer] = replace(like, present=True, units=len(weight), reads_both_towers=True)
    recipe = replace(
        base,
        name=name,
        input_size=net.input_size,
        towers=towers,
        lrn=net.lrn,
        lrn_across_towers=True,
        pool=net.pool,
        dropout_rate=net.dropout_rate,
        **layers,  # type: ignore[arg-type]
    )
    config = ModelConfig(activation=net.activation, input_size=net.input_size)
    try:
        model = AlexNet(recipe, net.num_classes, model=config)
        model.load_full_state_dict(_state(net, convs))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return model


def _state(net: ImportedNet, convs: Sequence[str]) -> Mapping[str, Tensor]:
    parameters = {
        name: (conv.weight, conv.bias) for name, conv in zip(convs, net.convolutions, strict=True)
    }
    kept = np.float32(1 - net.dropout_rate)
    for name, (weight, bias) in zip(("fc6", "fc7", "fc8"), net.linears, strict=True):
        # Here dropout scales down at test and leaves training alone, so what is read after it
        # weighs more: twice, at one half, which is exact.
        parameters[name] = (weight if name == "fc6" else weight / kept, bias)
    return {
        f"{name}.{part}": torch.from_numpy(np.array(values))
        for name, both in parameters.items()
        for part, values in zip(("weight", "bias"), both, strict=True)
    }
