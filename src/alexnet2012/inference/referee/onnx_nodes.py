"""What the operators of an ONNX graph do, one by one; :mod:`~.onnx` follows them through the graph.

Source: onnx.proto, and the operators' documentation, of onnx/onnx.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.referee.network import ACTIVATION, DROPOUT, LRN, Layer, Op, pool_op
from alexnet2012.utils.text import printable

MAX_VALUES = 4 * 2**20  # of a constant that is read other than a weight: a mean image has fewer
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
_ENDS = {"ArgMax", "LogSoftmax", "Softmax", "TopK"}  # of the outputs, which they do not change


@dataclass(frozen=True)
class Constant:
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
class Step:
    """An operation on the way from the image to a value; equal only to itself.

    ``kind``: ``layer``, ``op``, ``pad``, ``split``, ``end``, or the arithmetic with a constant,
    ``add``, ``mul`` and ``pow``; ``square``.
    """

    kind: str
    layer: Layer | None = None
    op: Op | None = None
    constant: Constant | None = None
    number: float | None = None  # of arithmetic
    border: tuple[int, ...] = ()
    tensors: tuple[Constant | None, Constant | None] = (None, None)  # weights, biases
    parts: int = 1  # of a split
    sign: int = 1  # -1: the constant is subtracted, or divided by


Way = tuple[Step, ...]
Value = Constant | Way


@dataclass
class Node:
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


def steps_of(node: Node, inputs: Sequence[Value]) -> Sequence[Step]:
    """The operations of a node of one input that depends on the image."""
    constants = [value for value in inputs if isinstance(value, Constant)]
    kind = node.kind
    if kind in _SHAPES:
        return ()
    if kind in ("Conv", "Gemm", "MatMul"):
        return [_layer(node, inputs, constants)]
    if kind in _ACTIVATIONS or kind in _OTHER_ACTIVATIONS:
        return [Step("op", op=Op(ACTIVATION, {"kind": _ACTIVATIONS.get(kind, kind)}))]
    if kind in ("MaxPool", "AveragePool"):
        return _pool(node)
    if kind == "LRN":
        return [Step("op", op=_lrn(node))]
    if kind == "Dropout":
        rate = node.number("ratio", 0.5)
        if constants and (given := constants[0].scalar()) is not None:  # since opset 12
            rate = given
        return [Step("op", op=Op(DROPOUT, {"rate": round(rate, 6)}))]
    if kind == "Pad" and node.text("mode") in ("", "constant"):
        return _pad(node, constants)
    if kind in ("Add", "Sub", "Mul", "Div", "Pow") and constants:
        return [_arithmetic(node, constants[0], first=isinstance(inputs[0], Constant))]
    return [Step("end" if kind in _ENDS else "op", op=Op(printable(kind)[:40]))]


def _layer(node: Node, inputs: Sequence[Value], constants: Sequence[Constant]) -> Step:
    if not constants or isinstance(inputs[0], Constant) or constants[0].dims is None:
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
        return Step("layer", layer=layer, tensors=(weight, bias))
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
    return Step("layer", layer=layer, tensors=(weight, bias))


def _layer_name(node: Node) -> str:
    """That of its weights, which a module's path is part of, or of the node."""
    weight = node.inputs[1] if len(node.inputs) > 1 else ""
    name = weight.removesuffix(".weight") if weight.endswith(".weight") else node.name or weight
    return printable(name)[:40]


def _pool(node: Node) -> Sequence[Step]:
    size = node.integers("kernel_shape") or []
    stride = node.integers("strides") or [1] * len(size)
    if not size or len(size) != len(stride) or min(*size, *stride) < 1:
        raise node.error("its window is missing or empty")
    if math.prod(size) == 1:
        return ()
    border = _border(node, (size[0], size[1]), (stride[0], stride[1])) if len(size) == 2 else ()
    kind = "max" if node.kind == "MaxPool" else "average"
    return [Step("op", op=pool_op(kind, size, stride, border))]


def _pair(node: Node, name: str, default: int) -> tuple[int, int]:
    values = node.integers(name) or [default, default]
    if len(values) != 2 or min(values) < 1:
        raise node.error(f"{name} is {values}, not two numbers of at least 1")
    return values[0], values[1]


def _border(node: Node, size: tuple[int, int], stride: tuple[int, int]) -> tuple[int, ...]:
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


def _lrn(node: Node) -> Op:
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


def _pad(node: Node, constants: Sequence[Constant]) -> Sequence[Step]:
    pads: Sequence[float] | None = node.integers("pads")
    if pads is None and constants and (values := constants[0].values()) is not None:
        pads = values.tolist()
    if pads is None or not any(pads):
        return ()
    if len(pads) != 8:  # of the channels in a normalisation, which knows its window
        return [Step("pad")]
    top, left, bottom, right = (int(pads[i]) for i in (2, 3, 6, 7))
    return [Step("pad", border=(top, left, bottom, right))]


def _arithmetic(node: Node, constant: Constant, first: bool) -> Step:
    number = constant.scalar()
    if node.kind in ("Sub", "Div") and first:
        return Step("op", op=Op(f"{node.kind} from a constant"))
    if node.kind == "Pow" and number == 2:
        return Step("square")
    if node.kind == "Div":
        inverse = None if not number else 1 / number
        return Step("mul", constant=constant, number=inverse, sign=-1)
    kind = {"Sub": "add", "Add": "add", "Mul": "mul", "Pow": "pow"}[node.kind]
    sign = -1 if node.kind == "Sub" else 1
    number = number if number is None or kind != "add" else sign * number
    return Step(kind, constant=constant, number=number, sign=sign)


def node_of(message: Message) -> Node:
    attributes = {attribute.text(1): attribute for attribute in message.messages(5)}
    return Node(message.text(4), message.text(3), message.texts(1), message.texts(2), attributes)


def constant_of(node: Node) -> Constant:
    found = node.attributes.get("value")
    if found is None:
        number = node.attributes.get("value_float")
        return Constant(None) if number is None else Constant((), _scalar(number.number(2, 0.0)))
    tensor = found.message(5)
    return Constant(dims_of(tensor), tensor)


def _scalar(value: float) -> Message:
    """A tensor of one float64."""
    raw = np.array([value], "<f8").tobytes()
    return Message(memoryview(b"\x10\x0b\x4a\x08" + raw))  # data_type 11, raw_data


def of_constants(node: Node, inputs: Sequence[Value]) -> Sequence[Value]:
    """The results of a node that no pixel reaches."""
    first = inputs[0] if inputs else None
    unknown: Value = Constant(None)
    if not isinstance(first, Constant) or first.dims is None:
        return [unknown] * len(node.outputs)
    if node.kind in ("Cast", "DequantizeLinear", "Identity"):
        exact = node.kind == "Identity"
        return [first if exact else Constant(first.dims)] * len(node.outputs)
    if node.kind == "Transpose":
        order = node.integers("perm") or list(range(len(first.dims)))[::-1]
        if sorted(order) == list(range(len(first.dims))):
            return [Constant(tuple(first.dims[i] for i in order), first.message)]
    if node.kind == "Split" and first.dims:
        axis, parts = node.integer("axis", 0), len(node.outputs)
        if -len(first.dims) <= axis < len(first.dims) and first.dims[axis] % parts == 0:
            dims = list(first.dims)
            dims[axis] //= parts
            return [Constant(tuple(dims), first.message)] * parts
    return [unknown] * len(node.outputs)


def dims_of(tensor: Message) -> tuple[int, ...]:
    dims = tuple(map(_signed, tensor.integers(1)))
    if len(dims) > MAX_RANK or any(not 0 <= size < 2**31 for size in dims):
        raise ValueError(f"a tensor has the shape {list(dims)[:9]}")
    return dims


def side_of(info: Message) -> int | None:
    """Pixels a side of an input [N, 3, S, S]."""
    sizes = [dim.integer(1, 0) for dim in info.message(2).message(1).message(2).messages(1)]
    if len(sizes) == 4 and sizes[1] == 3 and sizes[2] == sizes[3]:
        return sizes[3] if 0 < sizes[3] < 2**16 else None
    return None


def _signed(value: int) -> int:
    value &= 2**64 - 1
    return value - 2**64 if value >= 2**63 else value
