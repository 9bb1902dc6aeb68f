"""A network as its file describes it, whatever the format; what the file does not hold is None."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from enum import Enum
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import ConvConfig, ModelConfig, NormConfig, RecipeConfig
from alexnet2012.config.validation import scaled
from alexnet2012.nn.kernels.epilogue import Pool
from alexnet2012.nn.map_sizes import map_sizes, overhang_pixels

MAX_CONVOLUTIONS, MAX_LINEARS = 9, 5  # of what may be called an AlexNet
CHANNELS = 3
ACTIVATION, LRN, SPATIAL_NORM, POOL, DROPOUT = (
    "activation",
    "LRN",
    "spatial norm",
    "pool",
    "dropout",
)
_OPS = {LayerOp.activation: ACTIVATION, LayerOp.lrn: LRN, LayerOp.spatial_norm: SPATIAL_NORM}
Values = Mapping[str, Hashable]


@dataclass(frozen=True)
class Op:
    """What follows a layer: one of the kinds above, or any other by the name that its file uses.

    ``values``: ``kind`` of an activation or pool; ``size`` and ``stride`` of a pool; ``size``,
    ``alpha`` (the factor of the sum of squares), ``beta``, ``k`` of a normalisation, and
    ``windows``: the parts of the maps that a window of LRN does not leave; ``rate`` of dropout.
    """

    kind: str
    values: Values = field(default_factory=dict)


@dataclass(frozen=True)
class Layer:
    """A convolution, or, without a ``kernel_size``, a fully connected layer."""

    name: str
    kernels: int  # or units
    inputs: int | None  # channels or units that each of them reads
    groups: int
    kernel_size: tuple[int, int] | None = None  # height, width
    stride: tuple[int, int] | None = None
    border: tuple[int, ...] | None = None  # pixels of zeros: top, left, bottom, right
    dilation: int = 1
    bias: bool = True
    init_std: float | str | None = None  # or the name of another distribution
    init_bias: float | None = None
    ops: Sequence[Op] | None = None  # after it, in order

    @property
    def parameters(self) -> int | None:
        """Weights and biases."""
        if self.inputs is None:
            return None
        weights = self.kernels * self.inputs * math.prod(self.kernel_size or ())
        return weights + self.kernels * self.bias


@dataclass(frozen=True)
class Pixels:
    """What a network does to the pixels of an image before the first layer."""

    mean: str | None  # that it subtracts: MEAN_IMAGE, MEAN_COLOUR or "none"
    scale: float | None  # of what it reads, relative to grey levels of 0 to 255


MEAN_IMAGE, MEAN_COLOUR = "mean image", "mean colour"


@dataclass(frozen=True)
class Network:
    """``training``: settings of a recipe that only training uses, by key."""

    format: str  # "an ONNX graph"
    convolutions: Sequence[Layer]
    linears: Sequence[Layer]
    input_size: int | None = None
    pixels: Pixels | None = None
    others: Sequence[str] = ()  # anything else in the file that an AlexNet has not
    training: Values | None = None
    trained: bool = False  # initial values are not visible, because it was trained
    measured: bool = False  # initial values are those of the tensors, within sampling error
    holds_dropout: bool = True
    tensors_only: bool = False  # of a state dict
    named: bool = False  # the names of the layers are those of a recipe

    @property
    def layers(self) -> Sequence[Layer]:
        return [*self.convolutions, *self.linears]


def network_of_recipe(
    recipe: RecipeConfig,
    classes: int,
    model: ModelConfig | None = None,
    source: str = "a recipe",
) -> Network:
    """The network that a recipe describes, at the width and input size of ``model``."""
    model = model or ModelConfig(input_size=recipe.input_size)
    activation = Op(ACTIVATION, {"kind": model.activation.value})
    size, channels = model.input_size, CHANNELS
    sizes = map_sizes(recipe, size)
    convolutions: list[Layer] = []
    for name, conv in recipe.convs.items():
        split = bool(convolutions) and not conv.reads_both_towers
        groups = recipe.towers if split else 1
        convolutions.append(
            Layer(
                name,
                kernels := scaled(conv.kernels, model.width, recipe.towers),
                channels // groups,
                groups,
                kernel_size=(conv.kernel_size,) * 2,
                stride=(conv.stride,) * 2,
                border=border_of(conv, size),
                init_std=conv.init_std,
                init_bias=conv.init_bias,
                ops=[
                    activation if op is LayerOp.activation else _op(op, recipe) for op in conv.after
                ],
            )
        )
        size, channels = sizes[name], kernels
    inputs = channels * size**2
    linears: list[Layer] = []
    for name, linear in recipe.hidden.items():
        units = scaled(linear.units, model.width, recipe.towers)
        groups = 1 if linear.reads_both_towers else recipe.towers
        ops = [activation]
        if recipe.dropout_rate:
            ops.append(Op(DROPOUT, {"rate": recipe.dropout_rate}))
        layer = Layer(name, units, inputs // groups, groups, ops=ops)
        linears.append(replace(layer, init_std=linear.init_std, init_bias=linear.init_bias))
        inputs = units
    if recipe.fc8_bottleneck.present:
        units = scaled(recipe.fc8_bottleneck.units, model.width, recipe.towers)
        linears.append(Layer("fc8_bottleneck", units, inputs, 1, ops=()))
        inputs = units
    head = recipe.fc8
    last = Layer(
        "fc8", classes, inputs, 1, init_std=head.init_std, init_bias=head.init_bias, ops=()
    )
    return Network(
        source,
        convolutions,
        [*linears, last],
        input_size=model.input_size,
        pixels=Pixels(MEAN_IMAGE, 1.0),
        training=dict(_training(recipe)),
        named=True,
    )


def border_of(conv: ConvConfig, size: int) -> tuple[int, ...]:
    """Pixels of zeros around maps of ``size`` pixels a side: top, left, bottom, right."""
    end = conv.padding
    if conv.overhang:
        end += overhang_pixels(size, conv.kernel_size, conv.stride, conv.padding)
    return conv.padding, conv.padding, end, end


def _op(op: LayerOp, recipe: RecipeConfig) -> Op:
    if op is LayerOp.lrn:
        windows = 1 if recipe.lrn_across_towers else recipe.towers
        return norm_op(LRN, recipe.lrn, recipe.lrn.size, windows)
    if op is LayerOp.spatial_norm:
        return norm_op(SPATIAL_NORM, recipe.spatial_norm, recipe.spatial_norm.size**2)
    if op is LayerOp.dropout:
        return Op(DROPOUT, {"rate": recipe.conv_dropout_rate})
    kind = "max" if op is LayerOp.max_pool else "average"
    return pool_op(kind, (recipe.pool.size,) * 2, (recipe.pool.stride,) * 2)


def norm_op(kind: str, norm: NormConfig, window: int, windows: int | None = None) -> Op:
    """``window``: the number of values in it."""
    alpha = norm.alpha / window if norm.divide_by_window else norm.alpha
    values = {"size": norm.size, "alpha": alpha, "beta": norm.beta, "k": norm.k}
    return Op(kind, values if windows is None else {**values, "windows": windows})


def pool_op(
    kind: str, size: Sequence[int], stride: Sequence[int], border: Sequence[int] = ()
) -> Op:
    """``border``: pixels on each side, as of a convolution."""
    values: dict[str, Hashable] = {"kind": kind, "size": tuple(size), "stride": tuple(stride)}
    return Op(POOL, {**values, "border": tuple(border) if any(border) else (0, 0, 0, 0)})


def _training(recipe: RecipeConfig) -> Iterable[tuple[str, Hashable]]:
    yield "shuffle", recipe.shuffle.value
    for group in ("optimizer", "augment"):
        for key, value in asdict(getattr(recipe, group)).items():
            if isinstance(value, dict):
                yield f"{group}.{key}", ", ".join(f"{k} {v:g}" for k, v in value.items()) or "none"
            else:
                yield f"{group}.{key}", value.value if isinstance(value, Enum) else value


def checked(network: Network) -> Network:
    """The network, with fully connected layers written as convolutions turned into those.

    Raises:
        ValueError: it is no AlexNet.
    """
    if empty := [layer.name for layer in network.layers if layer.kernels < 1 or layer.inputs == 0]:
        raise ValueError(f"{empty[0]} has no weights")
    network = _without_dense_convolutions(network)
    counts = len(network.convolutions), len(network.linears)
    if not (3 <= counts[0] <= MAX_CONVOLUTIONS and 1 <= counts[1] <= MAX_LINEARS):
        raise ValueError(
            f"has {counts[0]} convolutions and {counts[1]} fully connected layers, which is no "
            f"AlexNet: 3 to {MAX_CONVOLUTIONS} and 1 to {MAX_LINEARS} can be compared"
        )
    return network


def _without_dense_convolutions(network: Network) -> Network:
    """A convolution whose kernels are as large as its maps is fully connected.

    So are the 1×1 convolutions after it. Fills in the inputs of the first fully connected layer
    where the file does not say them.
    """
    size, convolutions = network.input_size, list(network.convolutions)
    dense: list[Layer] = []
    for index, conv in enumerate(network.convolutions):
        if size is None or conv.stride is None or conv.border is None or conv.kernel_size is None:
            return network
        before, size = size, _output_size(conv, size)
        if size == 1 and conv.kernel_size == (before, before) and index >= 3:
            dense = list(network.convolutions[index:])
            convolutions = convolutions[:index]
            break
        for op in conv.ops or ():
            size = _pooled_size(op, size)
        if size < 1:
            raise ValueError(f"its maps have no pixels left after {conv.name}")
    if dense:
        area = [(before**2 if i == 0 else 1) for i in range(len(dense))]
        linears = [
            replace(
                layer,
                inputs=None if layer.inputs is None else layer.inputs * pixels,
                kernel_size=None,
                stride=None,
                border=None,
            )
            for layer, pixels in zip(dense, area, strict=True)
        ]
        return replace(network, convolutions=convolutions, linears=[*linears, *network.linears])
    linears = list(network.linears)
    if linears and linears[0].inputs is None and size is not None:
        inputs = convolutions[-1].kernels * size**2 // linears[0].groups
        linears[0] = replace(linears[0], inputs=inputs)
    return replace(network, linears=linears)


def maps_side(convolutions: Sequence[Layer], size: int | None) -> int | None:
    """Pixels a side after the last convolution and its pools; None if the file does not tell."""
    for conv in convolutions:
        if size is None or conv.stride is None or conv.ops is None:
            return None
        size = _output_size(conv, size)
        for op in conv.ops:
            size = _pooled_size(op, size)
    return size


def _output_size(conv: Layer, size: int) -> int:
    assert conv.kernel_size is not None and conv.stride is not None and conv.border is not None
    reach = conv.dilation * (conv.kernel_size[0] - 1) + 1
    return (size + conv.border[0] + conv.border[2] - reach) // conv.stride[0] + 1


def _pooled_size(op: Op, size: int) -> int:
    """Rounded up, as in Caffe and the 2012 code; where every window fits, it is the same."""
    window, stride, border = (op.values.get(key) for key in ("size", "stride", "border"))
    if op.kind != POOL or not all(isinstance(v, tuple) for v in (window, stride, border)):
        return size
    padded = size + border[0] + border[2]  # type: ignore[index]
    return Pool(window[0], stride[0]).output_size(padded)  # type: ignore[index]


def initial_values(
    layers: Sequence[Layer], tensors: Sequence[tuple[Any, npt.NDArray[np.floating] | None]]
) -> tuple[list[Layer], bool]:
    """The layers with their initial spread and biases, and whether they were trained.

    Training makes the biases of a layer differ from each other; as long as none do, the weights
    are the initial ones. ``tensors``: weights, or a function that returns them, and biases; None
    where they are not in the file.
    """
    biases = [bias for _, bias in tensors if bias is not None and len(bias) > 1]
    if not biases or not all((bias == bias[0]).all() for bias in biases):
        return list(layers), bool(biases)
    result = []
    for layer, (weight, bias) in zip(layers, tensors, strict=True):
        values = weight() if callable(weight) else weight
        std = None if values is None or values.size == 0 else float(np.std(values))
        first = None if bias is None or len(bias) == 0 else float(bias[0])
        result.append(replace(layer, init_std=std, init_bias=first))
    return result, False


def pixels_of_mean(mean: npt.NDArray[np.floating], scale: float | None) -> Pixels:
    """``mean``: [H, W, 3] or [3], or any other order in which the colours are last."""
    if not mean.any():
        return Pixels("none", scale)
    flat = mean.reshape(-1, mean.shape[-1])
    return Pixels(MEAN_COLOUR if (flat == flat[0]).all() else MEAN_IMAGE, scale)
