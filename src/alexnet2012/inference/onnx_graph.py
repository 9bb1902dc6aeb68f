"""Build the ONNX graph of a model operator by operator; the only module that imports onnx.

Compared with a traced graph, it is small, its constants keep the public parameter names, and
normalisation is ONNX's LRN operator, which runtimes optimise.

Shapes: N images, S pixels a side of the input, K classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import ConvConfig, NormConfig
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.map_sizes import map_sizes, overhang_pixels

OPSET, IR_VERSION = 18, 10  # released in 2022 and 2024; current runtimes support both


def onnx_model(model: AlexNet, mean: npt.NDArray[np.float32], metadata: str) -> onnx.ModelProto:
    """An ONNX model: ``images`` [N, 3, S, S], RGB values 0-255 → ``logits`` [N, K], float32.

    The graph subtracts ``mean`` [3, S, S]; ``metadata`` is JSON under the key ``alexnet2012``.
    """
    graph = _Graph(model)
    x = graph.add("Sub", ["images", graph.constant("mean_image", mean)])
    size = model.config.input_size
    sizes = map_sizes(model.recipe, size)
    for name, conv in model.recipe.convs.items():
        x = graph.convolution(name, conv, x, size)
        size = sizes[name]
    x = graph.add("Flatten", [x], axis=1)
    for name in model.recipe.hidden:
        x = graph.dropout(name, graph.activation(graph.linear(name, x)), model.recipe.dropout_rate)
    if model.recipe.fc8_bottleneck.present:
        x = graph.linear("fc8_bottleneck", x)
    x = graph.linear("fc8", x)
    graph.nodes.append(helper.make_node("Identity", [x], ["logits"]))
    side = model.config.input_size
    proto = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "alexnet2012",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, side, side])],
            [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", model.num_classes])],
            graph.constants,
        ),
        opset_imports=[helper.make_opsetid("", OPSET)],
        ir_version=IR_VERSION,
        producer_name="alexnet2012",
        producer_version=version("alexnet2012"),
    )
    helper.set_model_props(proto, {"alexnet2012": metadata})
    onnx.checker.check_model(proto, full_check=True)
    return proto


class _Graph:
    """Collects the nodes and constants of a graph; every method returns the name of its output."""

    def __init__(self, model: AlexNet) -> None:
        self.model = model
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, value: npt.NDArray[Any] | np.generic) -> str:
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(value), name))
        return name

    def add(self, kind: str, inputs: Sequence[str], **attributes: Any) -> str:
        output = f"{kind.lower()}_{len(self.nodes)}"
        self.nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def convolution(self, name: str, conv: ConvConfig, x: str, size: int) -> str:
        groups = self.model.layers()[name].groups
        end = conv.padding
        if conv.overhang:
            end += overhang_pixels(size, conv.kernel_size, conv.stride, conv.padding)
        pads, strides = [conv.padding] * 2 + [end] * 2, [conv.stride] * 2
        inputs = [x, *self._parameters(name)]
        x = self.add("Conv", inputs, pads=pads, strides=strides, group=groups)
        for step in conv.after:
            if step is LayerOp.dropout:
                x = self.dropout(name, x, self.model.recipe.conv_dropout_rate)
            else:
                x = self._layer_op(step, x)
        return x

    def linear(self, name: str, x: str) -> str:
        groups = self.model.layers()[name].groups
        splits = [self._split(x, groups, 1)]
        splits += [self._split(tensor, groups, 0) for tensor in self._parameters(name)]
        towers = [self.add("Gemm", inputs, transB=1) for inputs in zip(*splits, strict=True)]
        return self.add("Concat", towers, axis=1) if groups > 1 else towers[0]

    def dropout(self, layer: str, x: str, rate: float) -> str:
        return self.add("Mul", [x, self.constant(f"{layer}.kept", np.float32(1 - rate))])

    def activation(self, x: str) -> str:
        return self.add("Relu" if self.model.config.activation is Activation.relu else "Tanh", [x])

    def _layer_op(self, step: LayerOp, x: str) -> str:
        recipe = self.model.recipe
        if step is LayerOp.activation:
            return self.activation(x)
        if step is LayerOp.lrn:
            return self._local_response_norm(x, recipe.lrn)
        if step is LayerOp.spatial_norm:
            return self._spatial_norm(x, recipe.spatial_norm)
        kind = "MaxPool" if step is LayerOp.max_pool else "AveragePool"
        window, strides = [recipe.pool.size] * 2, [recipe.pool.stride] * 2
        return self.add(kind, [x], kernel_shape=window, strides=strides, ceil_mode=1)

    def _local_response_norm(self, x: str, norm: NormConfig) -> str:
        # ONNX divides alpha by the window size.
        alpha = norm.alpha if norm.divide_by_window else norm.alpha * norm.size
        settings = {"size": norm.size, "alpha": alpha, "beta": norm.beta, "bias": norm.k}
        towers = 1 if self.model.recipe.lrn_across_towers else self.model.local_towers
        parts = [self.add("LRN", [part], **settings) for part in self._split(x, towers, 1)]
        return self.add("Concat", parts, axis=1) if towers > 1 else parts[0]

    def _spatial_norm(self, x: str, norm: NormConfig) -> str:
        border, prefix = norm.size // 2, f"norm_{len(self.nodes)}"
        alpha = norm.alpha if norm.divide_by_window else norm.alpha * norm.size**2
        mean = self.add("AveragePool", [self.add("Mul", [x, x])], kernel_shape=[norm.size] * 2,
                        pads=[border] * 4, count_include_pad=1)  # fmt: skip
        scaled = self.add("Mul", [mean, self.constant(f"{prefix}.alpha", np.float32(alpha))])
        sums = self.add("Add", [scaled, self.constant(f"{prefix}.k", np.float32(norm.k))])
        power = self.constant(f"{prefix}.power", np.float32(-norm.beta))
        return self.add("Mul", [x, self.add("Pow", [sums, power])])

    def _parameters(self, name: str) -> list[str]:
        names = [f"{name}.weight", f"{name}.bias"]
        return [self.constant(full, self.model.get_parameter(full).numpy()) for full in names]

    def _split(self, x: str, count: int, axis: int) -> list[str]:
        if count == 1:
            return [x]
        outputs = [f"{x}_tower_{tower}" for tower in range(count)]
        self.nodes.append(helper.make_node("Split", [x], outputs, axis=axis, num_outputs=count))
        return outputs
