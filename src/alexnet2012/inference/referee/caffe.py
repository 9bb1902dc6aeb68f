"""Read Caffe's networks: a ``.caffemodel``, the text of a network, or both.

A file of weights holds the network that it was trained as; with a text, the text describes the
network, and the weights must be its.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from alexnet2012.inference.importers.caffe import (
    IGNORED_TYPES,
    CaffeLayer,
    checked_size,
    input_size,
    layers_of,
)
from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.importers.prototxt import encode_prototxt
from alexnet2012.inference.referee.network import (
    ACTIVATION,
    CHANNELS,
    DROPOUT,
    LRN,
    MEAN_COLOUR,
    MEAN_IMAGE,
    POOL,
    SPATIAL_NORM,
    Layer,
    Network,
    Op,
    Pixels,
    checked,
    pool_op,
)
from alexnet2012.utils.text import printable

_DATA = {"Data", "HDF5Data", "ImageData", "MemoryData", "WindowData"}
_IGNORED = IGNORED_TYPES | _DATA | {"Silence"}
_BRANCHING = {"Concat", "Eltwise", "Slice"}
_ACTIVATIONS = {"ReLU": "relu", "TanH": "tanh"}
_OTHER_ACTIVATIONS = {"AbsVal", "BNLL", "ELU", "Power", "PReLU", "Sigmoid", "Swish"}
_POOLS = ("max", "average", "stochastic")


def read_caffe(model: bytes | None, prototxt: str | None) -> Network:
    """The network of a file of weights, of a text, or of both.

    Raises:
        ValueError: they are damaged, do not fit each other, or are no chain of layers.
    """
    weights = None if model is None else Message(memoryview(model))
    net = weights if prototxt is None else Message(memoryview(encode_prototxt(prototxt)))
    assert net is not None
    layers = layers_of(net)
    sizes = {} if weights is None else _sizes(layers_of(weights))
    if weights is not None and not sizes:
        raise ValueError("contains no layers with weights")
    size = input_size(net, layers)
    # The text of a network for deployment may leave dropout out; one for training may not.
    trains = any(layer.kind in _DATA or layer.kind.endswith("Loss") for layer in layers)
    network = Network(
        "a Caffe model" if weights is not None else "the text of a Caffe network",
        *_chain([layer for layer in layers if layer.kind not in _IGNORED], sizes),
        input_size=None if size is None else checked_size(size),
        pixels=_pixels(layers),
        holds_dropout=trains or any(layer.kind == "Dropout" for layer in layers),
    )
    return checked(network)


def _sizes(layers: Sequence[CaffeLayer]) -> dict[str, list[int]]:
    """The numbers of weights and biases of each layer that has any."""
    sizes = {layer.name: [len(blob) for blob in layer.blobs()] for layer in layers}
    return {name: counts for name, counts in sizes.items() if counts}


def _chain(
    used: Sequence[CaffeLayer], sizes: dict[str, list[int]]
) -> tuple[list[Layer], list[Layer]]:
    layers: list[Layer] = []
    channels: int | None = CHANNELS
    for layer in used:
        if layer.kind in _BRANCHING:
            raise layer.error(f"{layer.kind} is not supported; only a chain of layers is compared")
        if layer.kind in ("Convolution", "InnerProduct"):
            if layer.kind == "Convolution" and layers and layers[-1].kernel_size is None:
                raise layer.error("follows a fully connected layer")
            read = _convolution if layer.kind == "Convolution" else _linear
            layers.append(read(layer, channels, sizes.get(layer.name) if sizes else None))
            if sizes and layer.name not in sizes:
                raise layer.error("has no weights in the file")
            channels = layers[-1].kernels
            continue
        op = _op(layer)
        if not layers:
            raise layer.error(f"{op.kind} before the first layer is not supported")
        layers[-1] = replace(layers[-1], ops=[*(layers[-1].ops or ()), op])
    if sizes and (left := [name for name in sizes if name not in {layer.name for layer in used}]):
        raise ValueError(f"layer {printable(left[0])} has weights, but the text has no such layer")
    convolutions = [layer for layer in layers if layer.kernel_size is not None]
    return convolutions, layers[len(convolutions) :]


def _convolution(layer: CaffeLayer, channels: int | None, sizes: list[int] | None) -> Layer:
    settings = layer.settings("convolution")
    kernels, groups = settings.integer(1, 0), settings.integer(5, 1)

    def pair(whole: int, height: int, width: int, default: int) -> tuple[int, int]:
        both = settings.integers(whole)
        first, last = (both[0], both[-1]) if both else (default, default)
        return settings.integer(height, first), settings.integer(width, last)

    kernel_size, stride = pair(4, 11, 12, 0), pair(6, 13, 14, 1)
    if min(kernels, groups, *kernel_size, *stride) < 1 or kernels % groups:
        raise layer.error(f"{kernels} kernels of {kernel_size[0]} pixels in {groups} groups")
    vertical, horizontal = pair(3, 9, 10, 0)
    bias = bool(settings.integer(2, 1))
    inputs = None if channels is None or channels % groups else channels // groups
    if inputs is None:
        raise layer.error(f"{groups} groups cannot read {channels} maps")
    _check_sizes(layer, sizes, kernels * inputs * kernel_size[0] * kernel_size[1])
    std, value = _fillers(settings, 7)
    return Layer(
        printable(layer.name)[:40],
        kernels,
        inputs,
        groups,
        kernel_size=kernel_size,
        stride=stride,
        border=(vertical, horizontal) * 2,
        dilation=max(settings.integers(18) or [1]),
        bias=bias,
        init_std=std,
        init_bias=value,
        ops=(),
    )


def _linear(layer: CaffeLayer, _: int | None, sizes: list[int] | None) -> Layer:
    settings = layer.settings("linear")
    units = settings.integer(1, 0)
    if units < 1:
        raise layer.error("its number of outputs is missing")
    inputs = None
    if sizes is not None:
        inputs = sizes[0] // units
        _check_sizes(layer, sizes, units * inputs)
    std, value = _fillers(settings, 3)
    name, bias = printable(layer.name)[:40], bool(settings.integer(2, 1))
    return Layer(name, units, inputs, 1, bias=bias, init_std=std, init_bias=value, ops=())


def _check_sizes(layer: CaffeLayer, sizes: list[int] | None, expected: int) -> None:
    if sizes is not None and sizes[0] != expected:
        raise layer.error(f"has {sizes[0]:,} weights; its settings need {expected:,}")


def _fillers(settings: Message, first: int) -> tuple[float | str | None, float | None]:
    """How the weights and biases are filled at the start, if the file says it."""
    weight, bias = settings.messages(first), settings.messages(first + 1)
    std: float | str | None = None
    if weight:
        kind = weight[-1].text(1) or "constant"
        std = weight[-1].number(6, 1.0) if kind == "gaussian" else printable(kind)[:20]
    if not bias:
        return std, 0.0 if weight else None  # Caffe's default, where there is any filler
    return std, bias[-1].number(2, 0.0) if bias[-1].text(1) in ("", "constant") else None


def _op(layer: CaffeLayer) -> Op:
    if layer.kind in _ACTIVATIONS or layer.kind in _OTHER_ACTIVATIONS:
        leaky = layer.kind == "ReLU" and layer.settings("relu").number(1, 0.0) != 0
        kind = "leaky ReLU" if leaky else _ACTIVATIONS.get(layer.kind, layer.kind)
        return Op(ACTIVATION, {"kind": kind})
    if layer.kind == "LRN":
        return _norm(layer.settings("lrn"))
    if layer.kind == "Dropout":
        return Op(DROPOUT, {"rate": layer.settings("dropout").number(1, 0.5)})
    if layer.kind == "Pooling":
        settings = layer.settings("pooling")
        method, size = settings.integer(1, 0), settings.integer(2, 0)
        if settings.integer(12, 0):
            return Op(f"global {POOL}")
        if size < 1 or method >= len(_POOLS):
            raise layer.error("only pooling with a kernel_size is supported")
        stride, border = settings.integer(3, 1), settings.integer(4, 0)
        return pool_op(_POOLS[method], (size,) * 2, (max(stride, 1),) * 2, (border,) * 4)
    return Op(printable(layer.kind)[:40])


def _norm(settings: Message) -> Op:
    size, alpha = settings.integer(1, 5), settings.number(2, 1.0)
    values = {"size": size, "beta": settings.number(3, 0.75)}
    if settings.integer(4, 0):  # within each map, where Caffe has no k
        return Op(SPATIAL_NORM, {**values, "alpha": alpha / max(size, 1) ** 2, "k": 1.0})
    k = settings.number(5, 1.0)
    return Op(LRN, {**values, "alpha": alpha / max(size, 1), "k": k, "windows": 1})


def _pixels(layers: Sequence[CaffeLayer]) -> Pixels | None:
    """What the first data layer does; a network for deployment has none."""
    layer = next((layer for layer in layers if layer.kind in _DATA), None)
    if layer is None:
        return None
    settings, old = layer.settings("transform"), layer.settings("data")
    colours = settings.floats(5)
    image = settings.text(4) or old.text(3)
    mean = MEAN_IMAGE if image else MEAN_COLOUR if len(colours) else "none"
    return Pixels(mean, settings.number(1, 1.0) * old.number(2, 1.0))
