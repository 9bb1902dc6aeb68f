"""Convert a model of another framework to a recipe and an :class:`AlexNet` with its weights."""

from __future__ import annotations

from collections.abc import Sequence
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

IMAGENET_MEAN = (123.68, 116.78, 103.94)  # R, G, B, 0-255: ILSVRC 2012's training images


@dataclass(frozen=True)
class ImportedConv:
    """A convolution, with the operations that follow it."""

    weight: npt.NDArray[np.float32]  # [kernels, channels per group, H, W]
    bias: npt.NDArray[np.float32]
    stride: int
    padding: int
    groups: int
    after: Sequence[LayerOp]


@dataclass(frozen=True)
class ImportedModel:
    """A model as read from a file; the first convolution takes RGB."""

    convolutions: Sequence[ImportedConv]
    linears: Sequence[tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]]  # (weight, bias)
    activation: Activation
    dropout_rate: float  # with the usual scaling: kept activations are scaled up in training
    input_size: int
    pool: PoolConfig
    lrn: NormConfig  # across all maps, regardless of groups
    mean: tuple[float, float, float] | None = None  # R, G, B; None if not in the file

    @property
    def num_classes(self) -> int:
        return len(self.linears[-1][1])


def as_alexnet(imported: ImportedModel, base: RecipeConfig, name: str) -> AlexNet:
    """Build the equivalent model; settings that only training uses come from ``base``."""
    convs = [f"conv{i}" for i in range(1, len(imported.convolutions) + 1)]
    if not 1 <= len(convs) <= 6 or len(imported.linears) != 3:
        raise ValueError(
            f"has {len(convs)} convolutions and {len(imported.linears)} fully connected layers; "
            "1 to 6 convolutions and 3 fully connected layers are supported"
        )
    groups = {conv.groups for conv in imported.convolutions}
    if not groups <= {1, max(groups)}:
        raise ValueError(
            f"its convolutions have {sorted(groups)} groups; all grouped convolutions must have "
            "the same number of groups"
        )
    layers: dict[str, ConvConfig | LinearConfig] = {}
    for number in range(1, 7):
        layer = f"conv{number}"
        defaults = getattr(base, layer)
        if number > len(convs):
            layers[layer] = replace(defaults, present=False)
            continue
        conv = imported.convolutions[number - 1]
        layers[layer] = replace(
            defaults,
            present=True,
            kernels=len(conv.weight),
            kernel_size=conv.weight.shape[2],
            stride=conv.stride,
            padding=conv.padding,
            overhang=False,
            reads_both_towers=number > 1 and conv.groups == 1,
            after=list(conv.after),
        )
    for layer, (weight, _) in zip(("fc6", "fc7"), imported.linears, strict=False):
        defaults = getattr(base, layer)
        layers[layer] = replace(defaults, present=True, units=len(weight), reads_both_towers=True)
    recipe = replace(
        base,
        name=name,
        input_size=imported.input_size,
        towers=max(groups),
        lrn=imported.lrn,
        lrn_across_towers=True,
        pool=imported.pool,
        dropout_rate=imported.dropout_rate,
        **layers,  # type: ignore[arg-type]
    )
    config = ModelConfig(activation=imported.activation, input_size=imported.input_size)
    try:
        model = AlexNet(recipe, imported.num_classes, model=config)
        model.load_full_state_dict(_state(imported, convs))
    except ConfigError as error:
        raise ValueError(str(error)) from error
    return model


def _state(imported: ImportedModel, convs: Sequence[str]) -> dict[str, Tensor]:
    pairs = [(conv.weight, conv.bias) for conv in imported.convolutions]
    parameters = dict(zip(convs, pairs, strict=True))
    keep_probability = np.float32(1 - imported.dropout_rate)
    for name, (weight, bias) in zip(("fc6", "fc7", "fc8"), imported.linears, strict=True):
        # In this package dropout scales activations down at test and leaves training alone, so
        # weights that read dropped-out activations are larger: by two at a rate of 0.5, exactly.
        parameters[name] = (weight if name == "fc6" else weight / keep_probability, bias)
    for name, pair in parameters.items():
        if not all(np.isfinite(values).all() for values in pair):
            raise ValueError(f"its {name} contains numbers that are not finite (NaN or infinity)")
    return {
        f"{name}.{part}": torch.from_numpy(np.array(values))
        for name, pair in parameters.items()
        for part, values in zip(("weight", "bias"), pair, strict=True)
    }
