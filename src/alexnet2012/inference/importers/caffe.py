"""Caffe's files: nets (``.caffemodel``) and mean images (``.binaryproto``).

Both are protocol buffers. The few fields that matter here are read by their numbers, old layers
(V1, of the published bvlc_alexnet) and new ones alike; Source: caffe.proto of BVLC/caffe.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import NormConfig, PoolConfig
from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.importers.recipe_from_net import ImportedConv, ImportedNet

MAX_INPUT_SIZE = 1024
INPUT_SIZE = 227  # of bvlc_alexnet, where a file does not say
Blob = npt.NDArray[np.float32]


class _Numbers(NamedTuple):
    """Of the fields of a layer."""

    name: int
    kind: int
    blobs: int
    convolution: int
    dropout: int
    linear: int
    lrn: int
    pooling: int
    relu: int
    transform: int
    data: int


_OLD = _Numbers(4, 5, 6, 10, 12, 17, 18, 19, 30, 36, 11)  # V1LayerParameter
_NEW = _Numbers(1, 2, 7, 106, 108, 117, 118, 121, 123, 100, 107)  # LayerParameter
_OLD_KINDS = {
    1: "Accuracy", 4: "Convolution", 5: "Data", 6: "Dropout", 12: "ImageData", 14: "InnerProduct",
    15: "LRN", 17: "Pooling", 18: "ReLU", 20: "Softmax", 21: "SoftmaxWithLoss", 22: "Split",
    23: "TanH", 29: "MemoryData",
}  # fmt: skip
_NO_PART_OF_THE_NET = {
    "Accuracy", "Data", "DummyData", "ImageData", "Input", "MemoryData", "Softmax",
    "SoftmaxWithLoss", "Split",
}  # fmt: skip


@dataclass(frozen=True)
class CaffeLayer:
    """A layer of either generation."""

    message: Message
    numbers: _Numbers

    @property
    def kind(self) -> str:
        if self.numbers is _NEW:
            return self.message.text(self.numbers.kind)
        number = self.message.integer(self.numbers.kind, 0)
        return _OLD_KINDS.get(number, f"type {number}")

    @property
    def name(self) -> str:
        return self.message.text(self.numbers.name)

    def settings(self, of: str) -> Message:
        return self.message.message(getattr(self.numbers, of))

    def blobs(self) -> list[Blob]:
        return [_values(blob) for blob in self.message.messages(self.numbers.blobs)]


def read_caffemodel(data: bytes) -> ImportedNet:
    """The net of a ``.caffemodel``, its colours in the order RGB.

    Raises:
        ValueError: no such file, or a net with layers that no recipe has.
    """
    net = Message(memoryview(data))
    layers = [CaffeLayer(message, _OLD) for message in net.messages(2)]
    layers += [CaffeLayer(message, _NEW) for message in net.messages(100)]
    parts = [layer for layer in layers if layer.kind not in _NO_PART_OF_THE_NET]
    if not any(layer.blobs() for layer in parts):
        raise ValueError("holds no layers with weights")
    convolutions: list[ImportedConv] = []
    linears: list[tuple[Blob, Blob]] = []
    pools, norms, rates, activations = [], [], [], []
    for layer in parts:
        kind = layer.kind
        if kind == "Convolution" and not linears:
            convolutions.append(_convolution(layer, first=not convolutions))
            continue
        if kind == "InnerProduct":
            linears.append(_linear(layer))
            continue
        if kind == "Dropout":
            rates.append(layer.settings("dropout").number(1, 0.5))
            continue
        if kind in ("ReLU", "TanH"):
            if layer.settings("relu").number(1, 0.0) != 0:
                raise ValueError(f"layer {layer.name}: a leaky ReLU, which no recipe has")
            activations.append(Activation.relu if kind == "ReLU" else Activation.tanh)
            step = LayerOp.activation
        elif kind == "Pooling":
            pool, step = _pooling(layer)
            pools.append(pool)
        elif kind == "LRN":
            norms.append(_norm(layer))
            step = LayerOp.lrn
        else:
            raise ValueError(f"layer {layer.name}: {kind}, which no recipe has")
        if not linears:
            if not convolutions:
                raise ValueError(f"layer {layer.name}: {kind} before the first convolution")
            after = [*convolutions[-1].after, step]
            convolutions[-1] = replace(convolutions[-1], after=after)
        elif step is not LayerOp.activation:
            raise ValueError(f"layer {layer.name}: {kind} after a fully connected layer")
    if len(activations) != len(convolutions) + max(len(linears) - 1, 0):
        raise ValueError("not every layer but the last is followed by one ReLU or TanH")
    scale, mean = _transform(layers)
    if convolutions:
        convolutions[0] = replace(convolutions[0], weight=convolutions[0].weight * scale)
    return ImportedNet(
        convolutions,
        linears,
        activation=_only(activations, Activation.relu, "activations"),
        dropout_rate=_only(rates, 0.0, "dropout ratios"),
        input_size=_checked_size(_input_size(net, layers)),
        pool=_only(pools, PoolConfig(size=3, stride=2), "pooling windows"),
        lrn=_only(norms, NormConfig(5, 1.0, 0.75, 1.0, True), "normalisations"),
        mean=mean,
    )


def read_mean_image(data: bytes) -> Blob:
    """The mean image of a ``.binaryproto``: float32 [P, P, 3], RGB.

    Raises:
        ValueError: it holds no picture of three colours.
    """
    blob = Message(memoryview(data))
    values = _values(blob)
    side = round((len(values) / 3) ** 0.5)
    if side == 0 or len(values) != 3 * side**2:
        raise ValueError(f"holds {len(values):,} numbers, which make no square of three colours")
    return np.ascontiguousarray(values.reshape(3, side, side)[::-1].transpose(1, 2, 0))


def _convolution(layer: CaffeLayer, first: bool) -> ImportedConv:
    settings = layer.settings("convolution")
    for number, what in ((9, "pad_h"), (11, "kernel_h"), (13, "stride_h")):
        if settings.integers(number):
            raise ValueError(f"layer {layer.name}: has {what}; only square kernels are read")
    if settings.integer(18, 1) != 1:
        raise ValueError(f"layer {layer.name}: dilated, which no recipe is")
    kernels, size = settings.integer(1, 0), settings.integer(4, 0)
    weight, bias = _weight_and_bias(layer, kernels, (size, size))
    if first:
        if weight.shape[1] != 3:
            raise ValueError(f"layer {layer.name}: reads {weight.shape[1]} channels, not 3")
        weight = weight[:, ::-1]  # Caffe reads pictures as BGR
    return ImportedConv(
        weight,
        bias,
        stride=settings.integer(6, 1),
        padding=settings.integer(3, 0),
        groups=settings.integer(5, 1),
        after=(),
    )


def _linear(layer: CaffeLayer) -> tuple[Blob, Blob]:
    # Rows read maps flattened channel, row, column, as here.
    return _weight_and_bias(layer, layer.settings("linear").integer(1, 0), ())


def _weight_and_bias(layer: CaffeLayer, rows: int, kernel: tuple[int, ...]) -> tuple[Blob, Blob]:
    blobs = layer.blobs()
    each = rows * int(np.prod(kernel))
    if not blobs or each == 0 or len(blobs[0]) % each:
        raise ValueError(f"layer {layer.name}: its weights are not those of {rows} outputs")
    bias = blobs[1] if len(blobs) > 1 else np.zeros(rows, np.float32)
    if len(bias) != rows:
        raise ValueError(f"layer {layer.name}: has {len(bias)} biases for {rows} outputs")
    return blobs[0].reshape(rows, -1, *kernel), bias


def _pooling(layer: CaffeLayer) -> tuple[PoolConfig, LayerOp]:
    settings = layer.settings("pooling")
    method = settings.integer(1, 0)
    if method > 1 or settings.integer(4, 0) or settings.integer(2, 0) == 0:
        raise ValueError(f"layer {layer.name}: only square pools without a border are read")
    pool = PoolConfig(size=settings.integer(2, 0), stride=settings.integer(3, 1))
    return pool, (LayerOp.max_pool, LayerOp.average_pool)[method]


def _norm(layer: CaffeLayer) -> NormConfig:
    settings = layer.settings("lrn")
    if settings.integer(4, 0):
        raise ValueError(f"layer {layer.name}: normalises within maps; only across maps is read")
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
    """What the data layer multiplies pixels with, and the mean colour that it subtracts, RGB."""
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


def _input_size(net: Message, layers: Sequence[CaffeLayer]) -> int:
    """Pixels a side: the crop of a data layer, or the shape of an input."""
    for layer in layers:
        crop = layer.settings("transform").integer(3, 0) or layer.settings("data").integer(5, 0)
        if layer.kind in ("Data", "ImageData") and crop:
            return crop
        if layer.kind == "Input":
            shape = layer.message.message(143).message(1).integers(1)
            if len(shape) == 4:
                return shape[3]
    shape = net.integers(4) or net.message(8).integers(1)
    return shape[3] if len(shape) == 4 else INPUT_SIZE


def _checked_size(size: int) -> int:
    if not 1 <= size <= MAX_INPUT_SIZE:  # a damaged number would be a net of any size
        raise ValueError(f"reads pictures of {size} pixels; 1 to {MAX_INPUT_SIZE} can be")
    return size


def _only(values: Sequence[Any], default: Any, what: str) -> Any:
    different = [value for i, value in enumerate(values) if value not in values[:i]]
    if len(different) > 1:
        raise ValueError(f"has different {what}: {', '.join(map(str, different))}")
    return different[0] if different else default


def _values(blob: Message) -> Blob:
    single = blob.floats(5)
    return single if len(single) else blob.doubles(8).astype(np.float32)
