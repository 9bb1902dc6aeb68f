"""Read Caffe's models (``.caffemodel``) and mean images (``.binaryproto``).

Both are protocol buffers, whose fields are looked up by number. Layers may be V1LayerParameter
messages, as in the published bvlc_alexnet, or LayerParameter messages.

Source: caffe.proto of BVLC/caffe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import NormConfig, PoolConfig
from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.importers.recipe_from_net import ImportedConv, ImportedModel

MAX_INPUT_SIZE = 1024
INPUT_SIZE = 227  # of bvlc_alexnet; the default if a file does not specify it
Blob = npt.NDArray[np.float32]


# Fields of a layer message, and their numbers in V1LayerParameter and in LayerParameter.
_FIELDS = (
    "name", "kind", "blobs", "convolution", "dropout", "linear", "lrn", "pooling", "relu",
    "transform", "data",
)  # fmt: skip
_V1 = dict(zip(_FIELDS, (4, 5, 6, 10, 12, 17, 18, 19, 30, 36, 11), strict=True))
_CURRENT = dict(zip(_FIELDS, (1, 2, 7, 106, 108, 117, 118, 121, 123, 100, 107), strict=True))
_V1_TYPES = {
    1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 12: "ImageData", 14: "InnerProduct",
    15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split",
    23: "TanH", 29: "MemoryData",
}  # fmt: skip
IGNORED_TYPES = {
    "Accuracy", "Data", "DummyData", "ImageData", "Input", "MemoryData", "Softmax",
    "SoftmaxWithLoss", "Split",
}  # fmt: skip


@dataclass(frozen=True)
class CaffeLayer:
    """A layer message of either version."""

    message: Message
    fields: dict[str, int]

    @property
    def kind(self) -> str:
        if self.fields is _CURRENT:
            return self.message.text(self.fields["kind"])
        number = self.message.integer(self.fields["kind"], 0)
        return _V1_TYPES.get(number, f"type {number}")

    @property
    def name(self) -> str:
        return self.message.text(self.fields["name"])

    def settings(self, name: str) -> Message:
        return self.message.message(self.fields[name])

    def blobs(self) -> list[Blob]:
        return [_values(blob) for blob in self.message.messages(self.fields["blobs"])]

    def error(self, problem: str) -> ValueError:
        return ValueError(f"layer {self.name}: {problem}")


def layers_of(net: Message) -> list[CaffeLayer]:
    """The layers of a NetParameter message."""
    layers = [CaffeLayer(message, _V1) for message in net.messages(2)]
    return [*layers, *(CaffeLayer(message, _CURRENT) for message in net.messages(100))]


def read_caffemodel(data: bytes) -> ImportedModel:
    """The model in a ``.caffemodel``, with input channels reordered from BGR to RGB."""
    net = Message(memoryview(data))
    layers = layers_of(net)
    used = [layer for layer in layers if layer.kind not in IGNORED_TYPES]
    if not any(layer.blobs() for layer in used):
        raise ValueError("contains no layers with weights")
    convolutions: list[ImportedConv] = []
    linears: list[tuple[Blob, Blob]] = []
    pools, norms, rates, activations = [], [], [], []
    for layer in used:
        kind, step = layer.kind, None
        if kind == "Convolution" and not linears:
            convolutions.append(_convolution(layer, first=not convolutions))
        elif kind == "InnerProduct":
            # Maps are flattened in the order channel, row, column, as in this package.
            linears.append(_weight_and_bias(layer, layer.settings("linear").integer(1, 0), ()))
        elif kind == "Dropout":
            rates.append(layer.settings("dropout").number(1, 0.5))
        elif kind in ("ReLU", "TanH"):
            if layer.settings("relu").number(1, 0.0) != 0:
                raise layer.error("leaky ReLU is not supported")
            activations.append(Activation.relu if kind == "ReLU" else Activation.tanh)
            step = LayerOp.activation
        elif kind == "Pooling":
            pool, step = _pooling(layer)
            pools.append(pool)
        elif kind == "LRN":
            norms.append(_norm(layer))
            step = LayerOp.lrn
        else:
            raise layer.error(f"{kind} is not supported")
        if step and not linears:
            if not convolutions:
                raise layer.error(f"{kind} before the first convolution is not supported")
            after = [*convolutions[-1].after, step]
            convolutions[-1] = replace(convolutions[-1], after=after)
        elif step not in (None, LayerOp.activation):
            raise layer.error(f"{kind} after a fully connected layer is not supported")
    if len(activations) != len(convolutions) + max(len(linears) - 1, 0):
        raise ValueError("every layer but the last must be followed by exactly one ReLU or TanH")
    scale, mean = _transform(layers)
    if convolutions:
        convolutions[0] = replace(convolutions[0], weight=convolutions[0].weight * scale)
    return ImportedModel(
        convolutions,
        linears,
        activation=_single(activations, Activation.relu, "activation functions"),
        dropout_rate=_single(rates, 0.0, "dropout ratios"),
        input_size=checked_size(input_size(net, layers) or INPUT_SIZE),
        pool=_single(pools, PoolConfig(size=3, stride=2), "pooling windows"),
        lrn=_single(norms, NormConfig(5, 1.0, 0.75, 1.0, True), "LRN settings"),
        mean=mean,
    )


def read_mean_image(data: bytes) -> Blob:
    """The mean image in a ``.binaryproto``: float32 [P, P, 3], RGB; P pixels a side."""
    values = _values(Message(memoryview(data)))
    side = round((len(values) / 3) ** 0.5)
    if side == 0 or len(values) != 3 * side**2:
        raise ValueError(f"has {len(values):,} values, which do not form a square RGB image")
    return np.ascontiguousarray(values.reshape(3, side, side)[::-1].transpose(1, 2, 0))


def _convolution(layer: CaffeLayer, first: bool) -> ImportedConv:
    settings = layer.settings("convolution")
    for number, name in ((9, "pad_h"), (11, "kernel_h"), (13, "stride_h")):
        if settings.integers(number):
            raise layer.error(f"{name} is set, but only square kernels are supported")
    if settings.integer(18, 1) != 1:
        raise layer.error("dilated convolution is not supported")
    kernels, size = settings.integer(1, 0), settings.integer(4, 0)
    weight, bias = _weight_and_bias(layer, kernels, (size, size))
    if first:
        if weight.shape[1] != 3:
            raise layer.error(f"has {weight.shape[1]} input channels, not 3")
        weight = weight[:, ::-1]  # Caffe reads images as BGR
    stride, padding, groups = (settings.integer(*field) for field in ((6, 1), (3, 0), (5, 1)))
    return ImportedConv(weight, bias, stride, padding, groups, after=())


def _weight_and_bias(layer: CaffeLayer, rows: int, kernel: tuple[int, ...]) -> tuple[Blob, Blob]:
    blobs = layer.blobs()
    size = rows * int(np.prod(kernel))  # of one input channel
    if not blobs or size == 0 or len(blobs[0]) == 0 or len(blobs[0]) % size:
        raise layer.error(f"its weights do not fit {rows} outputs")
    bias = blobs[1] if len(blobs) > 1 else np.zeros(rows, np.float32)
    if len(bias) != rows:
        raise layer.error(f"has {len(bias)} biases for {rows} outputs")
    return blobs[0].reshape(rows, -1, *kernel), bias


def _pooling(layer: CaffeLayer) -> tuple[PoolConfig, LayerOp]:
    settings = layer.settings("pooling")
    method, size = settings.integer(1, 0), settings.integer(2, 0)
    if method > 1 or settings.integer(4, 0) or size == 0:
        raise layer.error("only square pooling without padding is supported")
    step = (LayerOp.max_pool, LayerOp.average_pool)[method]
    return PoolConfig(size=size, stride=settings.integer(3, 1)), step


def _norm(layer: CaffeLayer) -> NormConfig:
    settings = layer.settings("lrn")
    if settings.integer(4, 0):
        raise layer.error("only LRN across channels is supported")
    return NormConfig(
        size=settings.integer(1, 5),
        alpha=settings.number(2, 1.0),
        beta=settings.number(3, 0.75),
        k=settings.number(5, 1.0),
        divide_by_window=True,
    )


def _transform(
    layers: Sequence[CaffeLayer],
) -> tuple[np.float32, tuple[float, float, float] | None]:
    """The data layer's scale of pixel values, and the mean colour that it subtracts (R, G, B)."""
    for layer in layers:
        settings = layer.settings("transform")
        mean = settings.floats(5)
        scale = np.float32(settings.number(1, 1.0))
        if len(mean) == 3:
            blue, green, red = (float(value) for value in mean)
            return scale, (red, green, blue)
        if scale != 1:
            return scale, None
    return np.float32(1), None


def input_size(net: Message, layers: Sequence[CaffeLayer]) -> int | None:
    """Pixels a side of the input: the crop of a data layer, or the shape of an input layer."""
    for layer in layers:
        crop = layer.settings("transform").integer(3, 0) or layer.settings("data").integer(5, 0)
        if layer.kind in ("Data", "ImageData") and crop:
            return crop
        if layer.kind == "Input":
            shape = layer.message.message(143).message(1).integers(1)
            if len(shape) == 4:
                return shape[3]
    shape = net.integers(4) or net.message(8).integers(1)
    return shape[3] if len(shape) == 4 else None


def checked_size(size: int) -> int:
    if not 1 <= size <= MAX_INPUT_SIZE:  # a corrupt value could ask for any amount of memory
        raise ValueError(f"has an input of {size} pixels; 1 to {MAX_INPUT_SIZE} are supported")
    return size


def _single(values: Sequence[Any], default: Any, name: str) -> Any:
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    if len(different) > 1:
        raise ValueError(f"has several {name}: {', '.join(map(str, different))}; one is supported")
    return different[0] if different else default


def _values(blob: Message) -> Blob:
    single = blob.floats(5)
    return single if len(single) else blob.doubles(8).astype(np.float32)
