"""Read the graph of an ONNX file, without the onnx package and without running anything.

Each value of the graph is described by the operations on its way from the image. Where a graph
splits into towers and joins them again, both ways must consist of the same operations; they become
one, of several groups. Any other graph is refused.

Source: onnx.proto, and the operators' documentation, of onnx/onnx.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.referee.network import (
    ACTIVATION,
    DROPOUT,
    LRN,
    POOL,
    SPATIAL_NORM,
    Layer,
    Network,
    Op,
    Pixels,
    checked,
    initial_values,
    pixels_of_mean,
    pool_op,
)
from alexnet2012.utils.text import printable

MAX_NODES = 20_000
MAX_STEPS = 500  # on the way from the image
MAX_VALUES = 4 * 2**20  # of a constant that is read other than a weight: a mean image has fewer
MAX_DEPTH = 5  # of branches
MAX_OUTPUTS = 64  # of an operator
MAX_RANK = 8
_TYPES = {1: "<f4", 6: "<i4", 7: "<i8", 10: "<f2", 11: "<f8"}
_ACTIVATIONS = {"Relu": "relu", "Tanh": "tanh"}
_OTHER_ACTIVATIONS = {
    *("Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu"),
    *("Selu", "Sigmoid", "Softplus", "Softsign", "Swish", "ThresholdedRelu"),
}
_SHAPES = {  # that change no values
    *("Cast", "CastLike", "Contiguous", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze"),
    "Transpose",
}
_ENDS = {"LogSoftmax", "Softmax"}


@dataclass(frozen=True)
class _Constant:
    """A tensor of the file; ``dims`` is None where it is computed from others."""

    dims: tuple[int, ...] | None
    message: Message | None = None  # the tensor, or the one that it is a part of

    def values(self, limit: int | None = MAX_VALUES) -> npt.NDArray[np.floating] | None:
        """The numbers, flat, or None if they are not in the file or more than the limit."""
        if self.message is None or (kind := _TYPES.get(self.message.integer(2, 0))) is None:
            return None
        raw = self.message.raw(9)
        if raw is not None:
            if len(raw) % int(kind[-1]):
                raise ValueError("a tensor's numbers are cut short")
            values = np.frombuffer(raw, kind)
        elif kind == "<f8":
            values = self.message.doubles(10)
        elif kind == "<f4":
            values = self.message.floats(4)
        else:
            values = np.array(self.message.integers(7 if kind == "<i8" else 5), np.float64)
        if len(values) == 0 or (limit is not None and len(values) > limit):
            return None
        return values.astype(np.float64) if limit is not None else values

    def scalar(self) -> float | None:
        values = self.values(limit=1)
        return None if values is None else float(values[0])


@dataclass(frozen=True, eq=False)
class _Step:
    """An operation on the way from the image to a value; equal only to itself.

    ``kind``: ``layer``, ``op``, ``pad``, ``split``, ``end``, or the arithmetic with a constant,
    ``add``, ``mul`` and ``pow``; ``square``.
    """

    kind: str
    layer: Layer | None = None
    op: Op | None = None
    constant: _Constant | None = None
    number: float | None = None  # of arithmetic
    border: tuple[int, ...] = ()
    tensors: tuple[_Constant | None, _Constant | None] = (None, None)  # weights, biases
    parts: int = 1  # of a split
    sign: int = 1  # -1: the constant is subtracted, or divided by


_Way = tuple[_Step, ...]
_Value = _Constant | _Way


@dataclass
class _Node:
    """``attributes``: by name, as messages."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    attributes: Mapping[str, Message] = field(repr=False)

    def integer(self, name: str, default: int) -> int:
        found = self.attributes.get(name)
        return default if found is None else _signed(found.integer(3, 0))

    def integers(self, name: str) -> list[int] | None:
        found = self.attributes.get(name)
        return None if found is None else [_signed(value) for value in found.integers(8)]

    def number(self, name: str, default: float) -> float:
        found = self.attributes.get(name)
        return default if found is None else found.number(2, 0.0)

    def text(self, name: str) -> str:
        found = self.attributes.get(name)
        return "" if found is None else found.text(4)

    def error(self, problem: str) -> ValueError:
        return ValueError(f"node {printable(self.name or self.kind)[:60]}: {problem}")


def read_onnx(data: bytes) -> Network:
    """The network of an ONNX file.

    Raises:
        ValueError: it is damaged, or no chain of layers; the message is one line.
    """
    model = Message(memoryview(data))
    graph = model.message(7)
    if not graph.messages(1):
        raise ValueError("is not an ONNX graph, or has no operators")
    if model.messages(25):
        raise ValueError("calls functions of its own; inline them with onnx.inliner")
    return checked(_Reader(graph).network())


class _Reader:
    """The values of a graph by name, node after node."""

    def __init__(self, graph: Message) -> None:
        self.values: dict[str, _Value] = {}
        self.joins: dict[frozenset[str], _Way] = {}
        self.count = 0
        self.input_size: int | None = None
        constants = {tensor.text(8) for tensor in graph.messages(5)}
        for info in graph.messages(11):
            if (name := info.text(1)) not in constants:
                self.values[name] = ()
                self.input_size = self.input_size or _side(info)
        self.results = self.read_graph(graph)

    def read_graph(self, graph: Message, depth: int = 0) -> list[_Value]:
        """The values of a graph's outputs; a branch sees the values around it."""
        if depth > MAX_DEPTH:
            raise ValueError("its branches are nested too deeply")
        for tensor in graph.messages(5):
            self.values[tensor.text(8)] = _Constant(_dims(tensor), tensor)
        for message in graph.messages(1):
            self.count += 1
            if self.count > MAX_NODES:
                raise ValueError(f"has more than {MAX_NODES:,} operators")
            self.read(_node(message), depth)
        unknown = _Constant(None)
        return [self.values.get(info.text(1), unknown) for info in graph.messages(12)]

    def read(self, node: _Node, depth: int) -> None:
        if len(node.outputs) > MAX_OUTPUTS:
            raise node.error(f"has {len(node.outputs):,} outputs; at most {MAX_OUTPUTS} are read")
        names = [name for name in node.inputs if name]
        if unknown := [name for name in names if name not in self.values]:
            raise node.error(f"reads {printable(unknown[0])[:60]}, which nothing writes before it")
        inputs = [self.values[name] for name in names]
        ways = [value for value in inputs if isinstance(value, tuple)]
        results: Sequence[_Value]
        if node.kind == "Constant":
            results = [_constant(node)]
        elif graphs := [a.message(6) for a in node.attributes.values() if a.raw(6) is not None]:
            # torch writes an If where it cannot tell whether a dimension is to be removed.
            found = [self.read_graph(graph, depth + 1) for graph in graphs]
            if node.kind != "If" or any(values != found[0] for values in found):
                raise node.error(f"{printable(node.kind)[:40]} is not supported")
            results = found[0]
        elif node.kind == "Shape" or not ways:
            results = _of_constants(node, inputs)
        elif node.kind == "Split":
            parts = len(node.outputs)
            results = [(*ways[0], _Step("split", parts=parts)) for _ in node.outputs]
        elif node.kind == "Concat":
            key = frozenset(names)  # each tower may join them for itself
            self.joins[key] = self.joins.get(key) or _joined(node, ways)
            results = [self.joins[key]]
        elif len(ways) > 1:
            results = [_combined(node, ways)]
        else:
            results = [(*ways[0], *_steps(node, inputs))]
        for name, value in zip(node.outputs, results, strict=False):
            if isinstance(value, tuple) and len(value) > MAX_STEPS:
                raise node.error(f"more than {MAX_STEPS} operations lead to it")
            self.values[name] = value

    def network(self) -> Network:
        ways = [value for value in self.results if isinstance(value, tuple)]
        ways = [way for way in ways if any(step.kind == "layer" for step in way)]
        if not ways:
            raise ValueError("no layer leads from its input to its output")
        return _network(ways[0], self.input_size)


# What nodes do


def _steps(node: _Node, inputs: Sequence[_Value]) -> Sequence[_Step]:
    """The operations of a node of one input that depends on the image."""
    constants = [value for value in inputs if isinstance(value, _Constant)]
    kind = node.kind
    if kind in _SHAPES:
        return ()
    if kind in ("Conv", "Gemm", "MatMul"):
        return [_layer(node, inputs, constants)]
    if kind in _ACTIVATIONS or kind in _OTHER_ACTIVATIONS:
        return [_Step("op", op=Op(ACTIVATION, {"kind": _ACTIVATIONS.get(kind, kind)}))]
    if kind in ("MaxPool", "AveragePool"):
        return _pool(node)
    if kind == "LRN":
        return [_Step("op", op=_lrn(node))]
    if kind == "Dropout":
        rate = node.number("ratio", 0.5)
        if constants and (given := constants[0].scalar()) is not None:  # since opset 12
            rate = given
        return [_Step("op", op=Op(DROPOUT, {"rate": round(rate, 6)}))]
    if kind == "Pad" and node.text("mode") in ("", "constant"):
        return _pad(node, constants)
    if kind in ("Add", "Sub", "Mul", "Div", "Pow") and constants:
        return [_arithmetic(node, constants[0], first=isinstance(inputs[0], _Constant))]
    return [_Step("end" if kind in _ENDS else "op", op=Op(printable(kind)[:40]))]


def _layer(node: _Node, inputs: Sequence[_Value], constants: Sequence[_Constant]) -> _Step:
    if not constants or isinstance(inputs[0], _Constant) or constants[0].dims is None:
        raise node.error("its weights are not in the file")
    weight, dims = constants[0], constants[0].dims
    assert dims is not None
    bias = constants[1] if len(constants) > 1 else None
    name = _layer_name(node)
    if node.kind != "Conv":
        if len(dims) != 2:
            raise node.error(f"its weights have {len(dims)} dimensions, not 2")
        transposed = node.kind == "Gemm" and node.integer("transB", 0)
        units, read = dims if transposed else dims[::-1]
        layer = Layer(name, units, read, 1, bias=bias is not None, ops=())
        return _Step("layer", layer=layer, tensors=(weight, bias))
    if len(dims) != 4:
        raise node.error(f"its kernels have {len(dims) - 2} dimensions, not 2")
    dilations = node.integers("dilations") or [1]
    groups = node.integer("group", 1)
    if groups < 1 or dims[0] % groups:
        raise node.error(f"{dims[0]} kernels cannot have {groups} groups")
    stride = _pair(node, "strides", 1)
    layer = Layer(
        name,
        dims[0],
        dims[1],
        groups,
        kernel_size=(dims[2], dims[3]),
        stride=stride,
        border=_border(node, (dims[2], dims[3]), stride),
        dilation=max(dilations),
        bias=bias is not None,
        ops=(),
    )
    return _Step("layer", layer=layer, tensors=(weight, bias))


def _layer_name(node: _Node) -> str:
    """That of its weights, which a module's path is part of, or of the node."""
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    name = weight.removesuffix(".weight") if weight.endswith(".weight") else node.name or weight
    return printable(name)[:40]


def _pool(node: _Node) -> Sequence[_Step]:
    size = node.integers("kernel_shape") or []
    stride = node.integers("strides") or [1] * len(size)
    if not size or len(size) != len(stride) or min(*size, *stride) < 1:
        raise node.error("its window is missing or empty")
    if math.prod(size) == 1:
        return ()
    pads = node.integers("pads") or []
    border = tuple(pads) if len(pads) == 4 else ()
    kind = "max" if node.kind == "MaxPool" else "average"
    return [_Step("op", op=pool_op(kind, size, stride, border))]


def _pair(node: _Node, name: str, default: int) -> tuple[int, int]:
    values = node.integers(name) or [default, default]
    if len(values) != 2 or min(values) < 1:
        raise node.error(f"{name} is {values}, not two numbers of at least 1")
    return values[0], values[1]


def _border(node: _Node, size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, ...]:
    """Top, left, bottom, right."""
    pads, auto = node.integers("pads"), node.text("auto_pad")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        whole = [max(k - s, 0) for k, s in zip(size, stride, strict=True)]
        less, more = [n // 2 for n in whole], [n - n // 2 for n in whole]
        return (*less, *more) if auto == "SAME_UPPER" else (*more, *less)
    if pads is None:
        return (0, 0, 0, 0)
    if len(pads) != 4:
        raise node.error(f"pads is {pads[:9]}, not four numbers")
    return tuple(pads)


def _lrn(node: _Node) -> Op:
    size = node.integer("size", 0)
    if size < 1:
        raise node.error("its size is missing")
    values = {
        "size": size,
        "alpha": node.number("alpha", 1e-4) / size,
        "beta": node.number("beta", 0.75),
        "k": node.number("bias", 1.0),
        "windows": 1,
    }
    return Op(LRN, values)


def _pad(node: _Node, constants: Sequence[_Constant]) -> Sequence[_Step]:
    pads: Sequence[float] | None = node.integers("pads")
    if pads is None and constants and (values := constants[0].values()) is not None:
        pads = values.tolist()
    if pads is None or not any(pads):
        return ()
    if len(pads) != 8:  # of the channels in a normalisation, which knows its window
        return [_Step("pad")]
    top, left, bottom, right = (int(pads[i]) for i in (2, 3, 6, 7))
    return [_Step("pad", border=(top, left, bottom, right))]


def _arithmetic(node: _Node, constant: _Constant, first: bool) -> _Step:
    number = constant.scalar()
    if node.kind in ("Sub", "Div") and first:
        return _Step("op", op=Op(f"{node.kind} from a constant"))
    if node.kind == "Pow" and number == 2:
        return _Step("square")
    if node.kind == "Div":
        inverse = None if not number else 1 / number
        return _Step("mul", constant=constant, number=inverse, sign=-1)
    kind = {"Sub": "add", "Add": "add", "Mul": "mul", "Pow": "pow"}[node.kind]
    sign = -1 if node.kind == "Sub" else 1
    number = number if number is None or kind != "add" else sign * number
    return _Step(kind, constant=constant, number=number, sign=sign)


# Several inputs that depend on the image


def _common(ways: Sequence[_Way]) -> int:
    """How many first steps the ways share."""
    count = 0
    for steps in zip(*ways, strict=False):
        if any(step is not steps[0] for step in steps):
            break
        count += 1
    return count


def _joined(node: _Node, ways: Sequence[_Way]) -> _Way:
    """The way of towers that are joined: their common way, and each step of theirs as one."""
    count = _common(ways)
    rests = [way[count:] for way in ways]
    unlike = node.error(
        "it joins branches that differ; only towers of the same layers are compared"
    )
    if len({len(rest) for rest in rests}) != 1 or len(ways) < 2:
        raise unlike
    joined: list[_Step] = []
    split = False  # whether a step reads the maps of its own branch only
    for steps in zip(*rests, strict=True):
        first = steps[0]
        if any(step.kind != first.kind for step in steps):
            raise unlike
        if first.kind == "split" and not split and not joined:
            if first.parts != len(ways):
                raise unlike
            split = True
            continue
        merged = _merged(steps, len(ways), split)
        if merged is None:
            raise unlike
        joined.append(merged)
        split = split or first.kind == "layer"
    return (*ways[0][:count], *joined)


def _merged(steps: Sequence[_Step], towers: int, split: bool) -> _Step | None:
    first = steps[0]
    if first.kind == "layer":
        layers = [step.layer for step in steps if step.layer is not None]
        shape = replace(layers[0], name="", kernels=0)
        if any(replace(layer, name="", kernels=0) != shape for layer in layers):
            return None
        groups = layers[0].groups * (towers if split else 1)
        if not split and groups > 1:
            return None
        kernels = sum(layer.kernels for layer in layers)
        return replace(first, layer=replace(layers[0], kernels=kernels, groups=groups))
    if any(step.op != first.op or step.number != first.number for step in steps):
        return None
    if first.op is not None and first.op.kind == LRN and split:
        windows = {"windows": towers * int(str(first.op.values["windows"]))}
        return replace(first, op=Op(LRN, {**first.op.values, **windows}))
    return replace(first)


def _combined(node: _Node, ways: Sequence[_Way]) -> _Way:
    """A square, a normalisation, or an error: ``x * x``, ``x / (k + α·mean(x²))^β``."""
    if node.kind == "Mul" and len(ways) == 2 and ways[0] is ways[1]:
        return (*ways[0], _Step("square"))
    x, other = sorted(ways[:2], key=len)
    count = len(x)
    is_norm = node.kind in ("Mul", "Div") and len(ways) == 2 and _common([x, other]) == count
    if is_norm and (node.kind == "Mul" or ways[0] is x):
        op = _normalisation(other[count:], power_sign=-1 if node.kind == "Mul" else 1)
        if op is not None:
            return (*x, _Step("op", op=op))
    raise node.error(f"{printable(node.kind)[:40]} of two values, which no AlexNet has")


def _normalisation(steps: Sequence[_Step], power_sign: int) -> Op | None:
    """Of the steps from x to what x is divided by."""
    steps = [step for step in steps if step.kind != "pad"]
    kinds = [step.op.kind if step.op is not None else step.kind for step in steps]
    if kinds != ["square", POOL, "mul", "add", "pow"]:
        return None
    _, pool, alpha, k, beta = steps
    assert pool.op is not None
    size = pool.op.values["size"]
    numbers = alpha.number, k.number, beta.number
    if not isinstance(size, tuple) or None in numbers or pool.op.values["kind"] != "average":
        return None
    scale = _rounded(float(alpha.number or 0) / math.prod(size))
    values = {
        "size": max(size),
        "alpha": scale,
        "beta": _rounded(power_sign * float(beta.number or 0)),
        "k": _rounded(float(k.number or 0)),
    }
    across_maps = len(size) == 3 and size[1:] == (1, 1)
    return Op(LRN, {**values, "windows": 1}) if across_maps else Op(SPATIAL_NORM, values)


def _rounded(value: float) -> float:
    return float(f"{value:.6g}")


# The network


def _network(way: _Way, input_size: int | None) -> Network:
    layers: list[Layer] = []
    tensors: list[tuple[Any, npt.NDArray[np.floating] | None]] = []
    before: list[_Step] = []
    others: list[str] = []
    border = (0, 0, 0, 0)
    holds_dropout = False
    for step in _biased(way):
        if step.kind == "layer":
            assert step.layer is not None
            layer = step.layer
            if layer.border is not None:
                layer = replace(
                    layer, border=tuple(map(sum, zip(layer.border, border, strict=True)))
                )
            layers.append(layer)
            weight, bias = step.tensors
            tensors.append((_reader(weight), None if bias is None else bias.values()))
            border = (0, 0, 0, 0)
            continue
        if step.kind == "pad" and step.border:
            border = tuple(map(sum, zip(border, step.border, strict=True)))  # type: ignore[assignment]
            continue
        if not layers:
            before.append(step)
            continue
        op = _op_of(step, layers[-1])
        if op is not None:
            holds_dropout |= op.kind == DROPOUT
            layers[-1] = replace(layers[-1], ops=[*(layers[-1].ops or ()), op])
    pixels, rest = _pixels(before)
    others += [f"{name} before the first layer" for name in rest]
    layers, trained = initial_values(layers, tensors)
    convolutions = [layer for layer in layers if layer.kernel_size is not None]
    linears = [layer for layer in layers if layer.kernel_size is None]
    if layers != [*convolutions, *linears]:
        raise ValueError("has a convolution after a fully connected layer")
    return Network(
        "an ONNX graph",
        convolutions,
        linears,
        input_size=input_size,
        pixels=pixels,
        others=others,
        trained=trained,
        measured=True,
        holds_dropout=holds_dropout,
    )


def _reader(weight: _Constant | None) -> Callable[[], npt.NDArray[np.floating] | None]:
    return lambda: None if weight is None else weight.values(limit=None)


def _biased(way: _Way) -> list[_Step]:
    """A constant that is added to what a layer without biases returns is its bias."""
    steps: list[_Step] = []
    for step in way:
        last = steps[-1] if steps else None
        if (
            step.kind == "add"
            and last is not None
            and last.layer is not None
            and not last.layer.bias
        ):
            layer = replace(last.layer, bias=True)
            steps[-1] = replace(last, layer=layer, tensors=(last.tensors[0], step.constant))
        else:
            steps.append(step)
    return steps


def _op_of(step: _Step, layer: Layer) -> Op | None:
    """What follows a layer; ``outputs × c`` of a hidden fully connected layer is dropout's."""
    if step.kind == "op" and step.op is not None:
        return step.op
    if step.kind == "mul" and step.number is not None and 0 < step.number <= 1:
        if step.number == 1:
            return None
        if layer.kernel_size is None:
            return Op(DROPOUT, {"rate": round(1 - step.number, 6)})
    names = {"add": "a constant added", "mul": "a constant factor", "pow": "a power"}
    return Op(names[step.kind]) if step.kind in names else None


def _pixels(steps: Sequence[_Step]) -> tuple[Pixels | None, list[str]]:
    """What is done to the pixels: x → (x + shift) · factor; and the operations that are not that.

    Grey levels of 0 to 255 have means above 1. What is divided by before the mean is subtracted,
    the mean is divided by, too.
    """
    scale, pixels, rest = 1.0, None, []
    for step in steps:
        values = None if step.constant is None else step.constant.values()
        if step.kind == "add" and values is not None and pixels is None and step.constant:
            mean = -step.sign * values
            if 0 < abs(mean).max() <= 1 and scale == 1:
                scale = 1 / 255  # the pixels are divided before they come to the graph
            pixels = pixels_of_mean(_colours_last(mean, step.constant.dims), None)
        elif step.kind == "mul" and values is not None and len(values) <= 3:
            factor = float(np.mean(values))
            scale *= factor if step.sign > 0 else 1 / factor if factor else 1.0
            pixels = pixels or Pixels(None, None)
        elif step.kind != "end":
            rest.append(step.op.kind if step.op is not None else step.kind)
    return (None if pixels is None else Pixels(pixels.mean, scale)), rest


def _colours_last(
    mean: npt.NDArray[np.floating], dims: tuple[int, ...] | None
) -> npt.NDArray[np.floating]:
    """[(1,) 3, H, W] → [H·W, 3]; other shapes are a number for each colour, or one for all."""
    if dims is not None and 3 in dims[:2] and math.prod(dims) == len(mean):
        return mean.reshape(3, -1).T
    return mean if len(mean) == 3 else np.repeat(mean[:1], 3)


# Messages


def _node(message: Message) -> _Node:
    attributes = {attribute.text(1): attribute for attribute in message.messages(5)}
    return _Node(message.text(4), message.text(3), message.texts(1), message.texts(2), attributes)


def _constant(node: _Node) -> _Constant:
    found = node.attributes.get("value")
    if found is None:
        number = node.attributes.get("value_float")
        return _Constant(None) if number is None else _Constant((), _scalar(number.number(2, 0.0)))
    tensor = found.message(5)
    return _Constant(_dims(tensor), tensor)


def _scalar(value: float) -> Message:
    """A tensor of one float64."""
    raw = np.array([value], "<f8").tobytes()
    return Message(memoryview(b"\x10\x0b\x4a\x08" + raw))  # data_type 11, raw_data


def _of_constants(node: _Node, inputs: Sequence[_Value]) -> Sequence[_Value]:
    """The results of a node that no pixel reaches."""
    first = inputs[0] if inputs else None
    unknown: _Value = _Constant(None)
    if not isinstance(first, _Constant) or first.dims is None:
        return [unknown] * len(node.outputs)
    if node.kind in ("Cast", "DequantizeLinear", "Identity"):
        exact = node.kind == "Identity"
        return [first if exact else _Constant(first.dims)] * len(node.outputs)
    if node.kind == "Transpose":
        order = node.integers("perm") or list(range(len(first.dims)))[::-1]
        if sorted(order) == list(range(len(first.dims))):
            return [_Constant(tuple(first.dims[i] for i in order), first.message)]
    if node.kind == "Split" and first.dims:
        axis, parts = node.integer("axis", 0), len(node.outputs)
        if -len(first.dims) <= axis < len(first.dims) and first.dims[axis] % parts == 0:
            dims = list(first.dims)
            dims[axis] //= parts
            return [_Constant(tuple(dims), first.message)] * parts
    return [unknown] * len(node.outputs)


def _dims(tensor: Message) -> tuple[int, ...]:
    dims = tuple(map(_signed, tensor.integers(1)))
    if len(dims) > MAX_RANK or any(not 0 <= size < 2**31 for size in dims):
        raise ValueError(f"a tensor has the shape {list(dims)[:9]}")
    return dims


def _side(info: Message) -> int | None:
    """Pixels a side of an input [N, 3, S, S]."""
    sizes = [dim.integer(1, 0) for dim in info.message(2).message(1).message(2).messages(1)]
    if len(sizes) == 4 and sizes[1] == 3 and sizes[2] == sizes[3]:
        return sizes[3] if 0 < sizes[3] < 2**16 else None
    return None


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
