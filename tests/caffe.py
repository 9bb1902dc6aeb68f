"""Writes Caffe's files with protobuf, from messages of caffe.proto; and a forward pass in NumPy.

Shares no code with ``alexnet2012``. Field numbers and types are copied from BVLC/caffe's
src/caffe/proto/caffe.proto; the forward pass is Caffe's layers as their .cpp files compute them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from numpy.typing import NDArray

Array = NDArray[np.float64]
_FIELD = descriptor_pb2.FieldDescriptorProto
_KINDS = {"int": _FIELD.TYPE_INT64, "uint": _FIELD.TYPE_UINT32, "float": _FIELD.TYPE_FLOAT,
          "double": _FIELD.TYPE_DOUBLE, "string": _FIELD.TYPE_STRING, "bool": _FIELD.TYPE_BOOL,
          "enum": _FIELD.TYPE_INT32}  # fmt: skip
# name: (number, type), * repeated, + repeated and packed, & a message
_MESSAGES: dict[str, dict[str, tuple[int, str]]] = {
    "BlobShape": {"dim": (1, "+int")},
    "BlobProto": {"num": (1, "int"), "channels": (2, "int"), "height": (3, "int"),
                  "width": (4, "int"), "data": (5, "+float"), "diff": (6, "+float"),
                  "shape": (7, "&BlobShape"), "double_data": (8, "+double")},
    "Transform": {"scale": (1, "float"), "mirror": (2, "bool"), "crop_size": (3, "uint"),
                  "mean_file": (4, "string"), "mean_value": (5, "*float")},
    "Convolution": {"num_output": (1, "uint"), "bias_term": (2, "bool"), "pad": (3, "*uint"),
                    "kernel_size": (4, "*uint"), "group": (5, "uint"), "stride": (6, "*uint")},
    "InnerProduct": {"num_output": (1, "uint")},
    "LRN": {"local_size": (1, "uint"), "alpha": (2, "float"), "beta": (3, "float"),
            "norm_region": (4, "enum"), "k": (5, "float")},
    "Pooling": {"pool": (1, "enum"), "kernel_size": (2, "uint"), "stride": (3, "uint"),
                "pad": (4, "uint")},
    "Dropout": {"dropout_ratio": (1, "float")},
    "ReLU": {"negative_slope": (1, "float")},
    "Layer": {"name": (1, "string"), "type": (2, "string"), "bottom": (3, "*string"),
              "top": (4, "*string"), "blobs": (7, "*&BlobProto"),
              "transform_param": (100, "&Transform"), "convolution_param": (106, "&Convolution"),
              "dropout_param": (108, "&Dropout"), "inner_product_param": (117, "&InnerProduct"),
              "lrn_param": (118, "&LRN"), "pooling_param": (121, "&Pooling"),
              "relu_param": (123, "&ReLU")},
    "V1Layer": {"bottom": (2, "*string"), "top": (3, "*string"), "name": (4, "string"),
                "type": (5, "enum"), "blobs": (6, "*&BlobProto"), "blobs_lr": (7, "*float"),
                "convolution_param": (10, "&Convolution"), "dropout_param": (12, "&Dropout"),
                "inner_product_param": (17, "&InnerProduct"), "lrn_param": (18, "&LRN"),
                "pooling_param": (19, "&Pooling"), "relu_param": (30, "&ReLU"),
                "transform_param": (36, "&Transform")},
    "Net": {"name": (1, "string"), "layers": (2, "*&V1Layer"), "input": (3, "*string"),
            "input_dim": (4, "*int"), "layer": (100, "*&Layer")},
}  # fmt: skip
V1_TYPES = {"Convolution": 4, "Data": 5, "Dropout": 6, "InnerProduct": 14, "LRN": 15,
            "Pooling": 17, "ReLU": 18, "SoftmaxWithLoss": 21, "Concat": 3}  # fmt: skip


def _classes() -> dict[str, Any]:
    file = descriptor_pb2.FileDescriptorProto(name="caffe.proto", package="c", syntax="proto2")
    for message, its in _MESSAGES.items():
        described = file.message_type.add(name=message)
        for name, (number, kind) in its.items():
            field = described.field.add(name=name, number=number, label=_FIELD.LABEL_OPTIONAL)
            if kind[0] in "*+":
                field.label = _FIELD.LABEL_REPEATED
                field.options.packed = kind[0] == "+"
                kind = kind[1:]
            if kind[0] == "&":
                field.type, field.type_name = _FIELD.TYPE_MESSAGE, f".c.{kind[1:]}"
            else:
                field.type = _KINDS[kind]
    return message_factory.GetMessageClassesForFiles([file.name], _pool(file))


def _pool(file: Any) -> Any:
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return pool


def caffemodel(layers: list[dict[str, Any]], *, old: bool) -> bytes:
    """A model with layers as in a prototxt, and their ``blobs``; ``old``: V1 layers (2013)."""
    classes = _classes()
    net = classes["c.Net"](name="AlexNet")
    for layer in layers:
        made = net.layers.add() if old else net.layer.add()
        for key, value in layer.items():
            if key == "type":
                made.type = V1_TYPES[value] if old else value
            elif key == "blobs":
                for array in value:
                    _fill(made.blobs.add(), array, old)
            elif isinstance(value, dict):
                getattr(made, key).CopyFrom(type(getattr(made, key))(**value))
            elif isinstance(value, list):
                getattr(made, key).extend(value)
            else:
                setattr(made, key, value)
    return net.SerializeToString()


def binaryproto(mean: Array) -> bytes:
    """A mean image [3, P, P], BGR, as compute_image_mean writes it."""
    blob = _classes()["c.BlobProto"]()
    _fill(blob, mean[None], old=True)
    return blob.SerializeToString()


def _fill(blob: Any, array: Array, old: bool) -> None:
    blob.data.extend(array.ravel().tolist())
    if old:
        shape = (1,) * (4 - array.ndim) + array.shape
        blob.num, blob.channels, blob.height, blob.width = shape
    else:
        blob.shape.dim.extend(array.shape)


def alexnet_layers(
    rng: np.random.Generator,
    *,
    kernels: tuple[int, ...] = (8, 12, 12, 12, 8),
    units: int = 10,
    classes: int = 6,
    input_size: int = 227,
    pool_first: bool = False,
) -> list[dict[str, Any]]:
    """bvlc_alexnet's train_val.prototxt with fewer kernels; ``pool_first``: CaffeNet's order."""

    def blobs(shape: tuple[int, ...]) -> list[Array]:
        fan_in = np.prod(shape[1:])
        weight = rng.standard_normal(shape) * np.sqrt(2 / fan_in)
        return [weight.astype(np.float32), (rng.standard_normal(shape[0]) * 0.3).astype(np.float32)]

    layers: list[dict[str, Any]] = [
        {"name": "data", "type": "Data", "top": ["data", "label"],
         "transform_param": {"mirror": True, "crop_size": input_size, "mean_file": "mean.proto"}}
    ]  # fmt: skip
    sizes = ((11, 4, 0, 1), (5, 1, 2, 2), (3, 1, 1, 1), (3, 1, 1, 2), (3, 1, 1, 2))
    channels = 3
    for number, (count, (kernel, stride, pad, group)) in enumerate(
        zip(kernels, sizes, strict=True), 1
    ):
        settings: dict[str, Any] = {"num_output": count, "kernel_size": [kernel]}
        settings |= {"stride": [stride]} if stride > 1 else {}
        settings |= {"pad": [pad]} if pad else {}
        settings |= {"group": group} if group > 1 else {}
        layers.append(
            {"name": f"conv{number}", "type": "Convolution", "convolution_param": settings,
             "blobs": blobs((count, channels // group, kernel, kernel))}
        )  # fmt: skip
        layers.append({"name": f"relu{number}", "type": "ReLU"})
        # alpha is far larger than the .0001 of bvlc_alexnet, so that LRN matters with few kernels.
        norm = {"name": f"norm{number}", "type": "LRN",
                "lrn_param": {"local_size": 5, "alpha": 0.01, "beta": 0.75}}  # fmt: skip
        pool = {"name": f"pool{number}", "type": "Pooling",
                "pooling_param": {"pool": 0, "kernel_size": 3, "stride": 2}}  # fmt: skip
        if number <= 2:
            layers += [pool, norm] if pool_first else [norm, pool]
        elif number == 5:
            layers.append(pool)
        channels = count
    size = (((input_size - 11) // 4 + 1) - 3) // 2 + 1
    size = ((size - 3) // 2 + 1 - 3) // 2 + 1
    inputs = channels * size**2
    for number, count in ((6, units), (7, units), (8, classes)):
        layers.append(
            {"name": f"fc{number}", "type": "InnerProduct",
             "inner_product_param": {"num_output": count}, "blobs": blobs((count, inputs))}
        )  # fmt: skip
        if number < 8:
            layers.append({"name": f"relu{number}", "type": "ReLU"})
            layers.append({"name": f"drop{number}", "type": "Dropout",
                           "dropout_param": {"dropout_ratio": 0.5}})  # fmt: skip
        inputs = count
    layers.append({"name": "loss", "type": "SoftmaxWithLoss", "bottom": ["fc8", "label"]})
    return layers


def forward(layers: list[dict[str, Any]], bgr: Array) -> Array:
    """Caffe's forward pass in test mode: [N, 3, S, S], BGR minus the mean → [N, K], float64."""
    x = bgr.astype(np.float64)
    for layer in layers:
        kind = layer["type"]
        if kind == "Convolution":
            x = _convolution(x, layer["blobs"], **layer["convolution_param"])
        elif kind == "InnerProduct":
            weight, bias = layer["blobs"]
            x = x.reshape(len(x), -1) @ weight.astype(np.float64).T + bias
        elif kind == "ReLU":
            x = np.maximum(x, 0)
        elif kind == "LRN":
            settings = {"local_size": 5, "alpha": 1.0, "beta": 0.75, "k": 1.0}
            x = _across_channels(x, **(settings | layer["lrn_param"]))
        elif kind == "Pooling":
            x = _max_pool(
                x, layer["pooling_param"]["kernel_size"], layer["pooling_param"]["stride"]
            )
    return x


def _convolution(
    x: Array,
    blobs: list[Array],
    num_output: int,
    kernel_size: list[int],
    stride: list[int] | None = None,
    pad: list[int] | None = None,
    group: int = 1,
) -> Array:
    (k,), (s,), (p,) = kernel_size, stride or [1], pad or [0]
    weight, bias = (blob.astype(np.float64) for blob in blobs)
    x = np.pad(x, ((0, 0), (0, 0), (p, p), (p, p)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (k, k), axis=(2, 3))[:, :, ::s, ::s]
    parts = [
        np.einsum("nchwij,ocij->nohw", channels, kernels, optimize=True)
        for channels, kernels in zip(
            np.split(windows, group, axis=1), np.split(weight, group), strict=True
        )
    ]
    return np.concatenate(parts, axis=1) + bias[:, None, None]


def _across_channels(x: Array, local_size: int, alpha: float, beta: float, k: float) -> Array:
    half, squares = local_size // 2, np.pad(x**2, ((0, 0), (local_size // 2,) * 2, (0, 0), (0, 0)))
    sums = sum(squares[:, shift : shift + x.shape[1]] for shift in range(2 * half + 1))
    return x / (k + alpha / local_size * sums) ** beta


def _max_pool(x: Array, size: int, stride: int) -> Array:
    windows = np.lib.stride_tricks.sliding_window_view(x, (size, size), axis=(2, 3))
    return windows[:, :, ::stride, ::stride].max(axis=(4, 5))
