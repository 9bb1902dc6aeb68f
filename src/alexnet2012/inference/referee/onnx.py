"""Read the graph of an ONNX file, without the onnx package and without running anything.

Each value of the graph is described by the operations on its way from the image. Where a graph
splits into towers and joins them again, both ways must consist of the same operations; they become
one, of several groups. Any other graph is refused.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.inference.importers.protobuf import Message
from alexnet2012.inference.referee.network import (
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
)
from alexnet2012.inference.referee.onnx_nodes import (
    Constant,
    Node,
    Step,
    Value,
    Way,
    constant_of,
    dims_of,
    node_of,
    of_constants,
    side_of,
    steps_of,
)
from alexnet2012.utils.text import printable

MAX_NODES = 20_000
MAX_STEPS = 500  # on the way from the image
MAX_DEPTH = 5  # of branches
MAX_OUTPUTS = 64  # of an operator


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
        self.values: dict[str, Value] = {}
        self.joins: dict[frozenset[str], Way] = {}
        self.count = 0
        self.input_size: int | None = None
        constants = {tensor.text(8) for tensor in graph.messages(5)}
        for info in graph.messages(11):
            if (name := info.text(1)) not in constants:
                self.values[name] = ()
                self.input_size = self.input_size or side_of(info)
        self.results = self.read_graph(graph)

    def read_graph(self, graph: Message, depth: int = 0) -> list[Value]:
        """The values of a graph's outputs; a branch sees the values around it."""
        if depth > MAX_DEPTH:
            raise ValueError("its branches are nested too deeply")
        for tensor in graph.messages(5):
            self.values[tensor.text(8)] = Constant(dims_of(tensor), tensor)
        for message in graph.messages(1):
            self.count += 1
            if self.count > MAX_NODES:
                raise ValueError(f"has more than {MAX_NODES:,} operators")
            self.read(node_of(message), depth)
        unknown = Constant(None)
        return [self.values.get(info.text(1), unknown) for info in graph.messages(12)]

    def read(self, node: Node, depth: int) -> None:
        if len(node.outputs) > MAX_OUTPUTS:
            raise node.error(f"has {len(node.outputs):,} outputs; at most {MAX_OUTPUTS} are read")
        names = [name for name in node.inputs if name]
        if unknown := [name for name in names if name not in self.values]:
            raise node.error(f"reads {printable(unknown[0])[:60]}, which nothing writes before it")
        inputs = [self.values[name] for name in names]
        ways = [value for value in inputs if isinstance(value, tuple)]
        results: Sequence[Value]
        if node.kind == "Constant":
            results = [constant_of(node)]
        elif graphs := [a.message(6) for a in node.attributes.values() if a.raw(6) is not None]:
            # torch writes an If where it cannot tell whether a dimension is to be removed.
            found = [self.read_graph(graph, depth + 1) for graph in graphs]
            if node.kind != "If" or any(values != found[0] for values in found):
                raise node.error(f"{printable(node.kind)[:40]} is not supported")
            results = found[0]
        elif node.kind == "Shape" or not ways:
            results = of_constants(node, inputs)
        elif node.kind == "Split":
            parts = len(node.outputs)
            results = [(*ways[0], Step("split", parts=parts)) for _ in node.outputs]
        elif node.kind == "Concat":
            key = frozenset(names)  # each tower may join them for itself
            self.joins[key] = self.joins.get(key) or _joined(node, ways)
            results = [self.joins[key]]
        elif len(ways) > 1:
            results = [_combined(node, ways)]
        else:
            results = [(*ways[0], *steps_of(node, inputs))]
        for name, value in zip(node.outputs, results, strict=False):
            if isinstance(value, tuple) and len(value) > MAX_STEPS:
                raise node.error(f"more than {MAX_STEPS} operations lead to it")
            self.values[name] = value

    def network(self) -> Network:
        ways = [value for value in self.results if isinstance(value, tuple)]
        ways = [way for way in ways if any(step.kind == "layer" for step in way)]
        if not ways:
            raise ValueError("no layer leads from its input to its output")
        return _network(max(ways, key=len), self.input_size)  # others end earlier, as features do


# Several inputs that depend on the image


def _common(ways: Sequence[Way]) -> int:
    """How many first steps the ways share."""
    count = 0
    for steps in zip(*ways, strict=False):
        if any(step is not steps[0] for step in steps):
            break
        count += 1
    return count


def _joined(node: Node, ways: Sequence[Way]) -> Way:
    """The way of towers that are joined: their common way, and each step of theirs as one."""
    count = _common(ways)
    rests = [way[count:] for way in ways]
    unlike = node.error(
        "it joins branches that differ; only towers of the same layers are compared"
    )
    if len({len(rest) for rest in rests}) != 1 or len(ways) < 2:
        raise unlike
    joined: list[Step] = []
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


def _merged(steps: Sequence[Step], towers: int, split: bool) -> Step | None:
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


def _combined(node: Node, ways: Sequence[Way]) -> Way:
    """A square, a normalisation, or an error: ``x * x``, ``x / (k + α·mean(x²))^β``."""
    if node.kind == "Mul" and len(ways) == 2 and ways[0] is ways[1]:
        return (*ways[0], Step("square"))
    x, other = sorted(ways[:2], key=len)
    count = len(x)
    is_norm = node.kind in ("Mul", "Div") and len(ways) == 2 and _common([x, other]) == count
    if is_norm and (node.kind == "Mul" or ways[0] is x):
        op = _normalisation(other[count:], power_sign=-1 if node.kind == "Mul" else 1)
        if op is not None:
            return (*x, Step("op", op=op))
    raise node.error(f"{printable(node.kind)[:40]} of two values, which no AlexNet has")


def _normalisation(steps: Sequence[Step], power_sign: int) -> Op | None:
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


def _network(way: Way, input_size: int | None) -> Network:
    layers: list[Layer] = []
    tensors: list[tuple[Any, npt.NDArray[np.floating] | None]] = []
    before: list[Step] = []
    steps = _biased(_padded(way))
    count = sum(step.layer is not None for step in steps)
    for step in steps:
        if step.layer is not None:
            weight, bias = step.tensors
            layers.append(step.layer)
            tensors.append((_reader(weight), None if bias is None else bias.values()))
        elif not layers:
            before.append(step)
        elif (op := _op_of(step, last=len(layers) == count)) is not None:
            layers[-1] = replace(layers[-1], ops=[*(layers[-1].ops or ()), op])
    pixels, rest = _pixels(before)
    layers, trained = initial_values(layers, tensors)
    convolutions = [layer for layer in layers if layer.kernel_size is not None]
    linears = [layer for layer in layers if layer.kernel_size is None]
    if layers != [*convolutions, *linears]:
        raise ValueError("has a convolution after a fully connected layer")
    return Network(
        "an ONNX graph",
        convolutions,
        linears,
        input_size=None if rest else input_size,  # it may be another after a Resize
        pixels=pixels,
        others=[f"{name} before the first layer" for name in rest],
        trained=trained,
        measured=True,
        holds_dropout=any(op.kind == DROPOUT for layer in layers for op in layer.ops or ()),
    )


def _reader(weight: Constant | None) -> Callable[[], npt.NDArray[np.floating] | None]:
    return lambda: None if weight is None else weight.values(limit=None)


def _padded(way: Way) -> Iterator[Step]:
    """Zeros that an operator of their own adds are the border of the next layer or pool."""
    border: Sequence[int] = (0, 0, 0, 0)
    for step in way:
        if step.kind == "pad":
            border = _sums(border, step.border or (0, 0, 0, 0))
            continue
        if step.layer is not None and step.layer.border is not None:
            whole = _sums(step.layer.border, border)
            step, border = replace(step, layer=replace(step.layer, border=whole)), (0, 0, 0, 0)
        elif step.op is not None and step.op.kind == POOL:
            own = step.op.values["border"]
            assert isinstance(own, tuple)
            values = {**step.op.values, "border": _sums(own, border)}
            step, border = replace(step, op=Op(POOL, values)), (0, 0, 0, 0)
        yield step


def _sums(first: Sequence[int], second: Sequence[int]) -> tuple[int, ...]:
    return tuple(a + b for a, b in zip(first, second, strict=True))


def _biased(way: Iterable[Step]) -> list[Step]:
    """A constant that is added to what a layer without biases returns is its bias."""
    steps: list[Step] = []
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


def _op_of(step: Step, last: bool) -> Op | None:
    """What follows a layer; ``outputs × c`` of any but the last one is dropout's."""
    if step.kind == "op" and step.op is not None:
        return step.op
    if step.kind == "mul" and step.number == 1:
        return None
    if step.kind == "mul" and step.number is not None and 0 < step.number < 1 and not last:
        return Op(DROPOUT, {"rate": round(1 - step.number, 6)})
    names = {
        "add": "a constant added",
        "mul": "a constant factor",
        "pow": "a power",
        "square": "a square",
        "split": "a split",
    }
    return Op(names[step.kind]) if step.kind in names else None


def _pixels(steps: Sequence[Step]) -> tuple[Pixels | None, list[str]]:
    """What is done to the pixels: x → (x + shift) · factor; and the operations that are not that.

    Grey levels of 0 to 255 have means above 1. What is divided by before the mean is subtracted,
    the mean is divided by, too.
    """
    scale, rest = 1.0, []
    mean, known = None, False
    for step in steps:
        values = None if step.constant is None else step.constant.values()
        if step.kind == "add" and values is not None and mean is None and step.constant:
            subtracted = -step.sign * values
            if 0 < abs(subtracted).max() <= 1 and scale == 1:
                scale = 1 / 255  # the pixels are divided before they come to the graph
            mean = pixels_of_mean(_colours_last(subtracted, step.constant.dims), None).mean
        elif step.kind == "mul" and values is not None and len(values) <= 3:
            factor = float(np.mean(values))
            scale *= factor if step.sign > 0 else 1 / factor if factor else 1.0
        elif step.kind != "end":
            rest.append(step.op.kind if step.op is not None else step.kind)
            continue
        known = True
    return (Pixels(mean, scale) if known else None), rest


def _colours_last(
    mean: npt.NDArray[np.floating], dims: tuple[int, ...] | None
) -> npt.NDArray[np.floating]:
    """[(1,) 3, H, W] → [H·W, 3]; other shapes are a number for each colour, or one for all."""
    if dims is not None and 3 in dims[:2] and math.prod(dims) == len(mean):
        return mean.reshape(3, -1).T
    return mean if len(mean) == 3 else np.repeat(mean[:1], 3)
