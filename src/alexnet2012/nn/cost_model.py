"""What a training step costs one process of a data × tower mesh: memory, operations, bytes, time.

Counts follow from the layers' shapes; times follow from them and from speeds that were measured
or given. Where shares are uneven, all is of the process that holds the most.

Legend: T towers, R replicas of the net, n pictures of one replica.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.schema import RecipeConfig
from alexnet2012.nn.flops import LayerAudit
from alexnet2012.nn.layers import overhang_pixels
from alexnet2012.utils.shard import padded_shard_size

INDEX_BYTES, MASK_BYTES, LABEL_BYTES, DRAW_BYTES = 8, 1, 8, 16  # int64, bool, int64, two int64
BACKWARD_TO_FORWARD = 1.5  # numbers that a step after a layer touches: g, x → gx to x → y


class SavedForBackward(NamedTuple):
    """What a step after a convolution keeps for backward."""

    input: bool = False
    output: bool = False
    indices: bool = False  # of each output number


KEPT = {
    LayerOp.activation: SavedForBackward(output=True),
    LayerOp.lrn: SavedForBackward(input=True),  # from which backward has the denominators again
    LayerOp.spatial_norm: SavedForBackward(input=True),
    LayerOp.max_pool: SavedForBackward(input=True, indices=True),
    LayerOp.average_pool: SavedForBackward(input=True),
}


@dataclass(frozen=True)
class Layout:
    """How a global batch and a net lie on R × T processes, and the bytes of a number."""

    batch: int
    replicas: int = 1
    towers: int = 1
    activation_bytes: int = 4
    parameter_bytes: int = 4

    @property
    def processes(self) -> int:
        return self.replicas * self.towers

    @property
    def copies_weights(self) -> bool:
        """bf16: layers read rounded copies, and the gradients of these."""
        return self.activation_bytes != self.parameter_bytes

    @property
    def rows(self) -> int:
        """n: pictures of the largest replica."""
        return padded_shard_size(self.batch, self.replicas)


@dataclass(frozen=True)
class LayerCost:
    """A layer with all that follows it; but for the parameters, of one picture."""

    name: str
    parameters: int = 0
    multiply_adds: int = 0
    products: int = 0  # as large as the forward one, in backward: for weights, and for the input
    operands: int = 0  # numbers that the product reads and writes, without weights
    touched: int = 0  # numbers that the steps after it read and write, forward
    kept_bytes: int = 0
    drawn_bytes: int = 0  # for dropout, while it draws
    gathered_bytes: int = 0  # its input from all towers
    sent_bytes: Mapping[str, int] = field(default_factory=dict)  # to peers, by direction


class Link(NamedTuple):
    """A way between processes: what one of them sends in a second, and how long a message takes."""

    bytes_per_s: float
    latency_s: float = 0.0

    def seconds(self, sent_bytes: float, messages: int) -> float:
        return sent_bytes / self.bytes_per_s + messages * self.latency_s


class Peaks(NamedTuple):
    """Rates of one process that bound what it does; without a memory rate, arithmetic alone."""

    flops: float  # multiplications and additions in a second
    memory_bytes_per_s: float | None = None

    def memory_seconds(self, moved_bytes: float) -> float:
        return 0.0 if self.memory_bytes_per_s is None else moved_bytes / self.memory_bytes_per_s


class Work(NamedTuple):
    """Seconds of a step without its exchanges: by layer, forward and backward; of the update."""

    layers: Mapping[str, tuple[float, float]]
    update_s: float

    @property
    def layers_s(self) -> float:
        return sum(forward + backward for forward, backward in self.layers.values())


class StepTime(NamedTuple):
    """Seconds of one step, one part after the other."""

    layers_s: float
    update_s: float
    exchange_s: float
    gradients_s: float

    @property
    def total_s(self) -> float:
        return sum(self)


def layer_costs(
    recipe: RecipeConfig, audited: Sequence[LayerAudit], layout: Layout
) -> list[LayerCost]:
    """Every layer's costs, and the logits' with the loss as one more."""
    costs, input_is_kept = [], False
    for index, layer in enumerate(audited):
        read_next = audited[index + 1].reads if index + 1 < len(audited) else (layer.neurons,)
        cost, input_is_kept = _layer_cost(
            recipe, layer, math.prod(read_next), layout, index == 0, input_is_kept
        )
        costs.append(cost)
    classes, size = audited[-1].biases, layout.parameter_bytes
    part = padded_shard_size(classes, layout.towers) * size
    peers = layout.towers - 1
    return [
        *costs,
        LayerCost(
            "logits",
            kept_bytes=classes * size + LABEL_BYTES,
            gathered_bytes=part * layout.towers if peers else 0,
            sent_bytes={"forward": part * peers} if peers else {},
        ),
    ]


def _layer_cost(
    recipe: RecipeConfig,
    layer: LayerAudit,
    result_full: int,
    layout: Layout,
    first: bool,
    input_is_kept: bool,
) -> tuple[LayerCost, bool]:
    """Its cost, and whether its result, ``result_full`` numbers in all towers, is kept already."""
    conv, hidden = recipe.convs.get(layer.name), recipe.hidden.get(layer.name)
    size, towers = layout.activation_bytes, layout.towers
    own = conv or hidden
    whole = first or own is None or own.reads_both_towers  # the images, and what fc8 reads
    gathered = math.prod(layer.reads) if whole and not first and towers > 1 else 0
    channels = layer.reads[0] // (1 if whole else towers)
    read = channels * math.prod(layer.reads[1:])
    rows = padded_shard_size(layer.biases, towers)
    now = layer.neurons // layer.biases * rows  # numbers of the map at hand
    if conv and conv.overhang:
        extra = overhang_pixels(layer.reads[1], conv.kernel_size, conv.stride, conv.padding)
        kept = channels * (layer.reads[1] + extra) ** 2  # a padded copy
    else:  # a convolution may read the very tensor that the step before keeps
        kept = 0 if conv and input_is_kept and not gathered else read
    operands, touched, other_bytes, is_kept = read + now, 0, 0, False
    for step in conv.after if conv else [LayerOp.activation] if hidden else []:
        keeps = KEPT[step]
        kept += now * (keeps.input and not is_kept)
        touched += 2 * now
        if step in (LayerOp.max_pool, LayerOp.average_pool):
            now = result_full // towers
        kept += now * keeps.output
        other_bytes += now * INDEX_BYTES * keeps.indices
        is_kept = keeps.output
    if hidden:  # dropout
        touched, other_bytes, is_kept = touched + 2 * now, now * MASK_BYTES, False
    sent = gathered // towers * (towers - 1) * size
    return LayerCost(
        name=layer.name,
        parameters=rows * (layer.weights // layer.biases + 1),
        multiply_adds=layer.multiply_adds // layer.biases * rows,
        products=1 if first else 2,
        operands=operands,
        touched=touched,
        kept_bytes=kept * size + other_bytes,
        drawn_bytes=rows * DRAW_BYTES if hidden else 0,
        gathered_bytes=gathered * size,
        sent_bytes={"forward": sent, "backward": sent} if sent else {},
    ), is_kept


def memory_bytes(costs: Sequence[LayerCost], layout: Layout) -> dict[str, int]:
    """What one process holds, as if all at once, less what passes within a layer."""
    count = sum(cost.parameters for cost in costs)
    parameters = layout.parameter_bytes * count
    copies = {"weights as activations": layout.activation_bytes * count}
    return {
        "weights": parameters,
        "momentum": parameters,
        "gradients": parameters,
        **(copies if layout.copies_weights else {}),
        "activations kept for backward": layout.rows * sum(cost.kept_bytes for cost in costs),
        "draws of dropout": layout.rows * max(cost.drawn_bytes for cost in costs),
        "largest exchange": layout.rows * max(cost.gathered_bytes for cost in costs),
    }


def gradient_bytes(costs: Sequence[LayerCost], layout: Layout) -> int:
    """What a process sends to average its gradients over the replicas, round a ring."""
    size = layout.parameter_bytes * sum(cost.parameters for cost in costs)
    return 2 * (layout.replicas - 1) * -(-size // layout.replicas)


def bounded_work(costs: Sequence[LayerCost], layout: Layout, peaks: Peaks) -> Work:
    """The least time at given rates: a product waits for arithmetic or for memory, whichever is
    slower; every other step reads and writes its maps once; the update reads three and writes two
    numbers a weight, and copies one each way where layers read copies.
    """
    layers, parameters = {}, 0
    for cost in costs:
        parameters += cost.parameters
        moved = (layout.rows * cost.operands + cost.parameters) * layout.activation_bytes
        product = max(
            2 * layout.rows * cost.multiply_adds / peaks.flops, peaks.memory_seconds(moved)
        )
        steps = peaks.memory_seconds(layout.rows * cost.touched * layout.activation_bytes)
        layers[cost.name] = (
            product + steps,
            cost.products * product + BACKWARD_TO_FORWARD * steps,
        )
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
    """Nothing overlaps: layers, exchanges, gradients and the update follow each other."""
    exchange_s = gradients_s = 0.0
    if layout.towers > 1:
        assert tower_link is not None
        exchange_s = sum(
            tower_link.seconds(layout.rows * sent, layout.towers - 1)
            for cost in costs
            for sent in cost.sent_bytes.values()
        )
    if layout.replicas > 1:
        assert data_link is not None
        tensors = 2 * sum(cost.parameters > 0 for cost in costs)  # each travels by itself
        messages = tensors * 2 * (layout.replicas - 1)
        gradients_s = data_link.seconds(gradient_bytes(costs, layout), messages)
    return StepTime(work.layers_s, work.update_s, exchange_s, gradients_s)


def efficiency(time: StepTime, layout: Layout) -> float:
    """Images/s against as many times those of one process that does the whole batch alone.

    That one runs every tower's layers at the same speeds, and updates the net once.
    """
    alone_s = layout.processes * time.layers_s + layout.towers * time.update_s
    return alone_s / (layout.processes * time.total_s)
