"""Files of AlexNets in other people's layouts, with one thing changed; shares no code with ours.

Weights are random and small, or, for ONNX, not there at all: their shapes are what is read.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import caffe
import numpy as np
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

KERNELS = (6, 16, 24, 24, 16)  # a sixteenth of the paper's
SIZES, GROUPS = (11, 5, 3, 3, 3), (1, 2, 1, 2, 2)
UNITS = (256, 256)
TORCHVISION = ("features.0", "features.3", "features.6", "features.8", "features.10",
               "classifier.1", "classifier.4", "classifier.6")  # fmt: skip
TIMM = ("features.0", "features.3", "features.6", "features.8", "features.10",
        "pre_logits.fc1", "pre_logits.fc2", "head.fc")  # fmt: skip
OURS = ("conv1", "conv2", "conv3", "conv4", "conv5", "fc6", "fc7", "fc8")


def state_dict(
    names: Sequence[str] = TORCHVISION,
    *,
    kernels: Sequence[int] = KERNELS,
    sizes: Sequence[int] = SIZES,
    groups: Sequence[int] = GROUPS,
    units: Sequence[int] = UNITS,
    classes: int = 1000,
    channels: int = 3,
    maps: int = 6,
    without: Sequence[str] = (),
    initial: tuple[float, float] | None = None,
) -> dict[str, Tensor]:
    """Tensors of a trained network, or with ``initial`` σ and biases of one that is not.

    timm's fully connected layers are convolutions.
    """
    torch.manual_seed(0)
    shapes: list[tuple[int, ...]] = []
    for count, size, group in zip(kernels, sizes, groups, strict=True):
        shapes.append((count, channels // group, size, size))
        channels = count
    dense = "pre_logits.fc1" in names
    shapes.append((units[0], channels, maps, maps) if dense else (units[0], channels * maps**2))
    inputs = units[0]
    for count in units[1:]:
        shapes.append((count, inputs, 1, 1) if dense else (count, inputs))
        inputs = count
    shapes.append((classes, inputs))
    std, bias = initial or (0.01, None)
    state = {}
    for name, shape in zip(names, shapes, strict=True):
        state[f"{name}.weight"] = torch.randn(shape) * std
        filled = torch.randn(shape[0]) if bias is None else torch.full(shape[:1], bias)
        state[f"{name}.bias"] = filled
    return {name: value for name, value in state.items() if name not in without}


Node = tuple[str, Mapping[str, Any]]


def onnx_file(nodes: Sequence[Node], *, size: int = 224) -> bytes:
    """A chain of operators as torch writes them; ``weight`` of a node: the shape of its weights.

    The numbers of weights are in another file, which does not exist.
    """
    made, constants, x = [], [], "image"
    for index, (kind, attributes) in enumerate(nodes):
        attributes = dict(attributes)
        inputs, shape = [x], attributes.pop("weight", None)
        if shape is not None:
            name = attributes.pop("name")
            bias = np.random.default_rng(index).standard_normal(shape[:1]).astype(np.float32)
            constants.append(_elsewhere(f"{name}.weight", shape))
            constants.append(numpy_helper.from_array(bias, f"{name}.bias"))
            inputs += [f"{name}.weight", f"{name}.bias"]
        for value in attributes.pop("constants", ()):
            array = np.asarray(value, np.float32)
            tensor = helper.make_tensor(
                f"c{index}", TensorProto.FLOAT, array.shape, array.ravel().tolist()
            )
            constants.append(tensor)
            inputs.append(tensor.name)
        x = f"x{index}"
        made.append(helper.make_node(kind, inputs, [x], name=f"node{index}", **attributes))
    return _model(made, constants, x, size)


def _model(nodes: Sequence[Any], constants: Sequence[Any], output: str, size: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "main",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        constants,
    )
    data: bytes = helper.make_model(graph, producer_name="pytorch").SerializeToString()
    return data


def _elsewhere(name: str, dims: Sequence[int]) -> Any:
    tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=dims)
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="weights.bin")
    return tensor


def torchvision_nodes(
    *, kernels: Sequence[int] = (64, 192, 384, 256, 256), units: int = 4096
) -> list[Node]:
    """torchvision.models.alexnet in evaluation mode, from pixels that are normalised outside."""
    nodes: list[Node] = []
    channels = 3
    for index, (count, size) in enumerate(zip(kernels, SIZES, strict=True)):
        stride, pad = (4, 2) if index == 0 else (1, size // 2)
        weight = (count, channels, size, size)
        settings = {"strides": [stride] * 2, "pads": [pad] * 4, "kernel_shape": [size] * 2}
        nodes.append(("Conv", {"name": TORCHVISION[index], "weight": weight, **settings}))
        nodes.append(("Relu", {}))
        if index in (0, 1, 4):
            nodes.append(("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2]}))
        channels = count
    # What AdaptiveAvgPool2d becomes where its input has the size that it should return.
    nodes.append(("AveragePool", {"kernel_shape": [1, 1], "strides": [1, 1]}))
    nodes.append(("Flatten", {"axis": 1}))
    inputs = channels * 36
    for name, count in zip(TORCHVISION[5:], (units, units, 1000), strict=True):
        nodes.append(("Gemm", {"name": name, "weight": (count, inputs), "transB": 1}))
        nodes += [("Relu", {})] if count == units else []
        inputs = count
    return nodes


def towers_file(kernels: Sequence[int] = KERNELS) -> bytes:
    """The paper's network as two towers of separate layers, joined where the paper joins them."""
    nodes: list[Any] = []
    constants: list[Any] = []

    def add(kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"v{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def layer(kind: str, name: str, x: str, shape: Sequence[int], **attributes: Any) -> str:
        for part, dims in (("weight", shape), ("bias", shape[:1])):
            constants.append(_elsewhere(f"{name}.{part}", dims))
        return add("Relu", [add(kind, [x, f"{name}.weight", f"{name}.bias"], **attributes)])

    mean = helper.make_tensor("mean", TensorProto.FLOAT, [3, 1, 1], [123.7, 116.8, 103.9])
    constants.append(mean)
    pixels = add("Sub", ["image", "mean"])
    xs, channels = [pixels, pixels], 3
    for index, (count, size) in enumerate(zip(kernels, SIZES, strict=True)):
        if index == 2:
            both = [add("Concat", xs, axis=1) for _ in xs]  # each tower joins them for itself
            xs, channels = both, 2 * channels
        stride, pad = (4, 2) if index == 0 else (1, size // 2)
        shape = (count // 2, channels, size, size)
        for tower, x in enumerate(xs):
            x = layer("Conv", f"conv{index + 1}_{tower}", x, shape,
                      strides=[stride] * 2, pads=[pad] * 4)  # fmt: skip
            if index < 2:
                x = add("LRN", [x], size=5, alpha=5e-4, beta=0.75, bias=2.0)
            if index in (0, 1, 4):
                x = add("MaxPool", [x], kernel_shape=[3, 3], strides=[2, 2])
            xs[tower] = x
        channels = count // 2
    x, inputs = add("Flatten", [add("Concat", xs, axis=1)]), 2 * channels * 36
    for name in ("fc6", "fc7"):
        halves = [
            layer("Gemm", f"{name}_{t}", x, (UNITS[0] // 2, inputs), transB=1) for t in (0, 1)
        ]
        x, inputs = add("Dropout", [add("Concat", halves, axis=1)]), UNITS[0]
    constants += [_elsewhere("fc8.weight", (1000, inputs)), _elsewhere("fc8.bias", (1000,))]
    x = add("Softmax", [add("Gemm", [x, "fc8.weight", "fc8.bias"], transB=1)])
    return _model(nodes, constants, x, 224)


def caffe_layers(**changes: Mapping[str, Any] | None) -> list[dict[str, Any]]:
    """bvlc_alexnet a sixteenth as wide, with the settings of some layers changed or the layer gone.

    Its LRN is that of #145 but for k, and its borders are none.
    """
    rng = np.random.default_rng(0)
    layers = caffe.alexnet_layers(rng, kernels=KERNELS, units=UNITS[0], classes=1000)
    for layer in layers:
        if layer["type"] == "LRN":
            layer["lrn_param"]["alpha"] = 1e-4
        if (changed := changes.get(layer["name"], {})) is not None:
            for key, value in changed.items():
                settings = isinstance(value, Mapping) and key.endswith("_param")
                layer[key] = {**layer.get(key, {}), **value} if settings else value
    return [layer for layer in layers if changes.get(layer["name"], {}) is not None]


def prototxt(layers: Sequence[Mapping[str, Any]]) -> str:
    """The text of these layers, without weights."""

    def fields(values: Mapping[str, Any], indent: str) -> str:
        lines = []
        for key, value in values.items():
            for one in value if isinstance(value, list) else [value]:
                if isinstance(one, Mapping):
                    lines.append(f"{indent}{key} {{\n{fields(one, indent + '  ')}{indent}}}\n")
                elif isinstance(one, str):
                    lines.append(f'{indent}{key}: "{one}"  # a name\n')
                else:
                    lines.append(f"{indent}{key}: {str(one).lower()}\n")
        return "".join(lines)

    plain = [{k: v for k, v in layer.items() if k != "blobs"} for layer in layers]
    return 'name: "AlexNet"\n' + "".join(f"layer {{\n{fields(layer, '  ')}}}\n" for layer in plain)
