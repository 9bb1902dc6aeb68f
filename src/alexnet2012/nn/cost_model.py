"""Cost model of a training step: memory, operations, bytes sent and time of one process.

Counts follow from the layers' shapes; times follow from the counts and from measured or given
speeds. Where shards are uneven, costs are those of the process with the largest shard.

Shapes: T towers, R replicas of the network, n images of one replica.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import RecipeConfig
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.map_sizes import POOLS, conv_output_size, map_sizes, overhang_pixels
from alexnet2012.utils.shard import padded_shard_size

INDEX_BYTES, MASK_BYTES, LABEL_BYTES, DRAW_BYTES = 8, 1, 8, 16  # int64, bool, int64, two int64
# Memory traffic of an element-wise layer: backward reads g and x and writes gx; forward x → y.
BACKWARD_TO_FORWARD = 1.5


SAVED_FOR_BACKWARD: dict[LayerOp, tuple[str, ...]] = {
    LayerOp.activation: ("output",),
    LayerOp.lrn: ("input",),  # backward recomputes the denominators
    LayerOp.spatial_norm: ("input",),
    LayerOp.max_pool: ("input", "indices"),  # one index per output
    LayerOp.average_pool: ("input",),
    LayerOp.dropout: ("mask",),
}


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer of the full network; neurons, multiply-adds and input for one image."""

    name: str
    weights: int
    biases: int
    neurons: int
    multiply_adds: int
    input_shape: tuple[int, ...]  # of all towers: [C, H, W] or [inputs]


@dataclass(frozen=True)
class Layout:
    """How a global batch and a network are split over R × T processes, and in what dtypes."""

    batch: int
    replicas: int = 1
    towers: int = 1
    activation_bytes: int = 4
    parameter_bytes: int = 4
    micro_batch: int | None = None  # most images of a replica whose activations are in memory

    @property
    def processes(self) -> int:
        return self.replicas * self.towers

    @property
    def copies_weights(self) -> bool:
        """Whether layers compute with copies of the weights in the activations' dtype (bf16)."""
        return self.activation_bytes != self.parameter_bytes

    @property
    def rows(self) -> int:
        """n: images of the largest replica."""
        return padded_shard_size(self.batch, self.replicas)

    @property
    def micro_batches(self) -> int:
        """Parts of the largest replica's batch, one after another."""
        return 1 if self.micro_batch is None else -(-self.rows // self.micro_batch)

    @property
    def rows_at_once(self) -> int:
        """Images of the largest micro-batch."""
        return padded_shard_size(self.rows, self.micro_batches)


@dataclass(frozen=True)
class LayerCost:
    """Cost per image of a layer with parameters and of the layers after it, up to the next such."""

    name: str
    parameters: int = 0  # not per image
    multiply_adds: int = 0  # of the forward matrix product
    products: int = 0  # matrix products of that size in backward: for the weights, for the input
    operands: int = 0  # numbers that the product reads and writes, except weights
    touched: int = 0  # numbers that the layers after it read and write in forward
    kept_bytes: int = 0  # saved for backward
    drawn_bytes: int = 0  # temporary memory of dropout's random numbers
    gathered_bytes: int = 0  # its input, gathered from all towers
    sent_bytes: Mapping[str, int] = field(default_factory=dict)  # to peers, by direction


class Link(NamedTuple):
    """A connection between processes."""

    bytes_per_s: float  # that one process sends
    latency_s: float = 0.0  # per message

    def seconds(self, sent_bytes: float, messages: int) -> float:
        return sent_bytes / self.bytes_per_s + messages * self.latency_s


class Peaks(NamedTuple):
    """Peak rates of one process; without a memory rate, only arithmetic limits it."""

    flops: float  # multiplications and additions per second
    memory_bytes_per_s: float | None = None

    def memory_seconds(self, moved_bytes: float) -> float:
        return 0.0 if self.memory_bytes_per_s is None else moved_bytes / self.memory_bytes_per_s


class Work(NamedTuple):
    """Compute time of a step, without communication: layers (forward, backward) and update."""

    layers: Mapping[str, tuple[float, float]]
    update_s: float

    @property
    def layers_s(self) -> float:
        return sum(forward + backward for forward, backward in self.layers.values())


class StepTime(NamedTuple):
    """Seconds of one step by part; parts do not overlap."""

    layers_s: float
    update_s: float
    exchange_s: float
    gradients_s: float

    @property
    def total_s(self) -> float:
        return sum(self)


@torch.no_grad()
def count_layers(model: AlexNet) -> list[LayerCounts]:
    """Count every layer with parameters, by one forward pass over a single image."""
    assert model.mesh.towers == 1, "only a model with all towers in one process can be counted"
    counts: list[LayerCounts] = []

    def count(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        weight: Any = layer.weight
        counts.append(
            LayerCounts(
                name=name,
                weights=weight.numel(),
                biases=len(weight),
                neurons=output[0].numel(),
                multiply_adds=output[0].numel() * weight[0].numel(),
                input_shape=tuple(inputs[0].shape[1:]),
            )
        )

    handles = [m.register_forward_hook(partial(count, n)) for n, m in model.layers().items()]
    was_training, size = model.training, model.config.input_size
    model.eval()(torch.zeros(1, 3, size, size, device=model.mesh.device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return counts


def layer_costs(
    recipe: RecipeConfig, counts: Sequence[LayerCounts], layout: Layout
) -> list[LayerCost]:
    """Cost of every layer, then of the logits and the loss as one more entry."""
    costs, is_saved = [], False
    results = [*(math.prod(layer.input_shape) for layer in counts[1:]), counts[-1].neurons]
    for layer, result in zip(counts, results, strict=True):
        cost, is_saved = _layer_cost(recipe, layer, result, layout, layer is counts[0], is_saved)
        costs.append(cost)
    classes, size = counts[-1].biases, layout.parameter_bytes
    shard_bytes = padded_shard_size(classes, layout.towers) * size
    peers = layout.towers - 1
    logits = LayerCost(
        "logits",
        kept_bytes=classes * size + LABEL_BYTES,
        gathered_bytes=shard_bytes * layout.towers if peers else 0,
        sent_bytes={"forward": shard_bytes * peers} if peers else {},
    )
    return [*costs, logits]


def _layer_cost(
    recipe: RecipeConfig,
    layer: LayerCounts,
    result_full: int,
    layout: Layout,
    is_first: bool,
    input_is_saved: bool,
) -> tuple[LayerCost, bool]:
    """Cost of a layer with a result of this size in all towers, and whether backward saved that."""
    conv, hidden = recipe.convs.get(layer.name), recipe.hidden.get(layer.name)
    size, towers = layout.activation_bytes, layout.towers
    config = conv or hidden
    full_input = is_first or config is None or config.reads_both_towers  # config is None for fc8
    gathered = math.prod(layer.input_shape) if full_input and not is_first and towers > 1 else 0
    channels = layer.input_shape[0] // (1 if full_input else towers)
    read = channels * math.prod(layer.input_shape[1:])
    rows = padded_shard_size(layer.biases, towers)
    map_size = layer.neurons // layer.biases * rows  # of the current layer's output
    if conv and conv.overhang:
        height = layer.input_shape[1]
        extra = overhang_pixels(height, conv.kernel_size, conv.stride, conv.padding)
        saved = channels * (height + extra) ** 2  # a padded copy
    else:  # a convolution may save the same tensor as the layer before it
        saved = 0 if conv and input_is_saved and not gathered else read
    operands, touched, other_bytes, is_saved = read + map_size, 0, 0, False
    steps = conv.after if conv else [LayerOp.activation, LayerOp.dropout] if hidden else []
    drawn = 0
    for step in steps:
        saves = SAVED_FOR_BACKWARD[step]
        saved += map_size * ("input" in saves and not is_saved)
        touched += 2 * map_size
        if step in POOLS:
            map_size = result_full // towers
        is_saved = "output" in saves
        saved += map_size * is_saved
        other_bytes += map_size * INDEX_BYTES * ("indices" in saves)
        if "mask" in saves:
            other_bytes, drawn = other_bytes + map_size * MASK_BYTES, map_size
    sent = gathered // towers * (towers - 1) * size
    return LayerCost(
        name=layer.name,
        parameters=rows * (layer.weights // layer.biases + 1),
        multiply_adds=layer.multiply_adds // layer.biases * rows,
        products=1 if is_first else 2,
        operands=operands,
        touched=touched,
        kept_bytes=saved * size + other_bytes,
        drawn_bytes=drawn * DRAW_BYTES,
        gathered_bytes=gathered * size,
        sent_bytes={"forward": sent, "backward": sent} if sent else {},
    ), is_saved


def memory_bytes(costs: Sequence[LayerCost], layout: Layout) -> dict[str, int]:
    """Memory of one process, as if all were held at once; temporaries within a layer left out."""
    count = sum(cost.parameters for cost in costs)
    parameters, images = layout.parameter_bytes * count, layout.rows_at_once
    copies = {"weights as activations": layout.activation_bytes * count}
    return {
        "weights": parameters,
        "momentum": parameters,
        "gradients": parameters,
        **(copies if layout.copies_weights else {}),
        "activations kept for backward": images * sum(cost.kept_bytes for cost in costs),
        "draws of dropout": images * max(cost.drawn_bytes for cost in costs),
        "largest exchange": images * max(cost.gathered_bytes for cost in costs),
    }


def step_flops(costs: Sequence[LayerCost], layout: Layout) -> int:
    """Multiplications and additions of one process's step, in matrix products."""
    return 2 * layout.rows * sum(cost.multiply_adds * (1 + cost.products) for cost in costs)


def training_flops(model: AlexNet) -> int:
    """Multiplications and additions per training image, in all towers; ``model`` may be a shard."""
    convs, size, flops = model.recipe.convs, model.config.input_size, 0
    sizes = map_sizes(model.recipe, size)
    for index, (name, layer) in enumerate(model.layers().items()):
        pixels = conv_output_size(convs[name], size) ** 2 if name in convs else 1
        size = sizes.get(name, size)
        multiply_adds = layer.rows.total * layer.weight[0].numel() * pixels
        flops += 2 * multiply_adds * (2 if index == 0 else 3)
    return flops


def gradient_bytes(costs: Sequence[LayerCost], layout: Layout) -> int:
    """Bytes that a process sends in the ring all-reduce of its gradients over the replicas."""
    size = layout.parameter_bytes * sum(cost.parameters for cost in costs)
    return 2 * (layout.replicas - 1) * -(-size // layout.replicas)


def bounded_work(costs: Sequence[LayerCost], layout: Layout, peaks: Peaks) -> Work:
    """Roofline lower bound of the compute time.

    A matrix product takes its arithmetic or its memory time, whichever is longer. Every other layer
    reads and writes its maps once. The update reads three and writes two numbers per weight, plus a
    cast of each weight and gradient where layers compute with copies.
    """
    layers, parameters = {}, 0
    for cost in costs:
        parameters += cost.parameters
        weights_read = layout.micro_batches * cost.parameters
        moved = (layout.rows * cost.operands + weights_read) * layout.activation_bytes
        arithmetic_s = 2 * layout.rows * cost.multiply_adds / peaks.flops
        product = max(arithmetic_s, peaks.memory_seconds(moved))
        steps = peaks.memory_seconds(layout.rows * cost.touched * layout.activation_bytes)
        backward = cost.products * product + BACKWARD_TO_FORWARD * steps
        layers[cost.name] = product + steps, backward
    updated = 5 * layout.parameter_bytes
    if layout.copies_weights:
        updated += 2 * (layout.parameter_bytes + layout.activation_bytes)
    return Work(layers, peaks.memory_seconds(parameters * updated))


def step_time(
    costs: Sequence[LayerCost],
    layout: Layout,
    work: Work,
    tower_link: Link | None,
    data_link: Link | None,
) -> StepTime:
    """Time of a step, without overlap of layers, exchanges, gradient all-reduce and update."""
    exchange_s = sum(
        _exchange_s(cost, direction, layout, tower_link)
        for cost in costs
        for direction in cost.sent_bytes
    )
    gradients_s = _all_reduce_s(costs, layout, data_link) + _biases_s(layout, data_link)
    return StepTime(work.layers_s, work.update_s, exchange_s, gradients_s)


def overlapped_step_s(
    costs: Sequence[LayerCost],
    layout: Layout,
    work: Work,
    tower_link: Link | None,
    data_link: Link | None,
) -> float:
    """Seconds of a step whose gradient all-reduces run during the backward pass, fc8's first.

    A layer's all-reduce starts after its backward pass and the previous all-reduce, and has the
    link to itself.
    """
    computed_s = sum(forward_s for forward_s, _ in work.layers.values())
    computed_s += sum(_exchange_s(cost, "forward", layout, tower_link) for cost in costs)
    reduced_s = 0.0
    for cost in reversed(costs):
        _, backward_s = work.layers.get(cost.name, (0.0, 0.0))
        computed_s += backward_s
        if cost.parameters:
            reduced_s = max(computed_s, reduced_s) + _all_reduce_s([cost], layout, data_link)
        computed_s += _exchange_s(cost, "backward", layout, tower_link)
    biases_s = _biases_s(layout, data_link)
    return max(computed_s, reduced_s) + biases_s + work.update_s


def _exchange_s(cost: LayerCost, direction: str, layout: Layout, link: Link | None) -> float:
    if layout.towers == 1 or direction not in cost.sent_bytes:
        return 0.0
    assert link is not None
    messages = layout.micro_batches * (layout.towers - 1)
    return link.seconds(layout.rows * cost.sent_bytes[direction], messages)


def _all_reduce_s(costs: Sequence[LayerCost], layout: Layout, link: Link | None) -> float:
    """Seconds to all-reduce the gradients of these layers, a message for each weight.

    Bytes are those of a ring; latency is that of a reduction and a broadcast along a binary tree.
    """
    if layout.replicas == 1:
        return 0.0
    assert link is not None
    messages = sum(cost.parameters > 0 for cost in costs)
    return link.seconds(gradient_bytes(costs, layout), messages * _tree_hops(layout))


def _biases_s(layout: Layout, link: Link | None) -> float:
    """Latency of the one message that sums the gradients of all biases, after the others."""
    return 0.0 if link is None else link.seconds(0, _tree_hops(layout))


def _tree_hops(layout: Layout) -> int:
    """Consecutive messages of an all-reduce over the replicas: up and down a binary tree."""
    return 2 * math.ceil(math.log2(layout.replicas))


def efficiency(time: StepTime, layout: Layout) -> float:
    """Speedup over a single process that computes everything at these speeds, per process."""
    alone_s = layout.processes * time.layers_s + layout.towers * time.update_s
    return alone_s / (layout.processes * time.total_s)
