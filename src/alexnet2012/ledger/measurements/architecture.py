"""Claims about the architecture, counted from the built network, and its exchange traffic."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from alexnet2012.config.enums import LayerOp
from alexnet2012.config.validation import load_recipe
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Audit, AuditLayer, ExchangeTraffic
from alexnet2012.nn.cost_model import LayerCounts, Layout, layer_costs, memory_bytes
from alexnet2012.utils.shard import padded_shard_size

# Floats that the two towers exchange per image: the paper's fig. 2, half of each map or layer in
# either direction. The logits' gradient is a slice of the tower's own, so it sends nothing.
EXCHANGED_FLOATS = {"conv3": 2 * 21_632, "fc6": 2 * 4_608, "fc7": 2 * 2_048, "fc8": 2 * 2_048}
PAPER_NEURONS = 650_000  # abstract
PAPER_CONV1_NEURONS = 253_440  # fig. 2, caption
# fig. 2, caption: the input, and the layers after the first
PAPER_INPUTS, PAPER_OTHER_NEURONS = 150_528, [186_624, 64_896, 64_896, 43_264, 4_096, 4_096, 1_000]
PAPER_CONVS, PAPER_FULLY_CONNECTED, PAPER_POOLS = 5, 3, 3  # abstract, sec. 3.5
PAPER_GPU_BYTES = 3 * 10**9  # sec. 3.2
PAPER_BATCH = 128  # sec. 5


def audit_of(counts: Sequence[LayerCounts]) -> Audit:
    """The counts in the form that the report shows."""
    layers = [
        AuditLayer(
            name=layer.name,
            kernels=layer.biases,  # one bias per kernel
            weights=layer.weights,
            biases=layer.biases,
            neurons=layer.neurons,
            multiply_adds=layer.multiply_adds,
        )
        for layer in counts
    ]
    return Audit(recipe="paper", layers=layers)


@measures("size", "fig2", "fig2-layers", "conv-share", part="audit")
def architecture_measurements(counts: Sequence[LayerCounts], *how: *How) -> list[Measurement]:
    """Parameters and neurons of the network and its layers; the share of each convolution."""
    parameters = sum(layer.weights + layer.biases for layer in counts)
    neurons = sum(layer.neurons for layer in counts)
    shares_pct = {
        layer.name: 100 * (layer.weights + layer.biases) / parameters
        for layer in counts
        if layer.name.startswith("conv")
    }
    above = [name for name, share in shares_pct.items() if share > 1]
    inputs, conv1 = math.prod(counts[0].input_shape), counts[0].neurons
    others = [layer.neurons for layer in counts[1:]]
    by_caption = PAPER_CONV1_NEURONS + sum(PAPER_OTHER_NEURONS)
    return [
        Measurement(
            "size",
            f"{parameters:,} parameters; {neurons:,} neurons",
            *how,
            numbers={
                "parameters": parameters,
                "neurons": neurons,
                "multiply_adds": sum(layer.multiply_adds for layer in counts),
            },
            agrees=parameters // 10**6 == 60 and round(neurons, -4) == PAPER_NEURONS,
            agreement_note=f"60 M is {parameters / 1e6:.2f} M rounded down; {neurons:,} neurons "
            f"round to {round(neurons, -4):,}, not to {PAPER_NEURONS:,}",
        ),
        Measurement(
            "fig2",
            f"{conv1:,} neurons in layer 1",
            *how,
            numbers={"conv1_neurons": conv1},
            agrees=conv1 == PAPER_CONV1_NEURONS,
            agreement_note="96 maps of 55 × 55",
        ),
        Measurement(
            "fig2-layers",
            f"{inputs:,} in; {'; '.join(f'{n:,}' for n in others)}",
            *how,
            numbers={"inputs": inputs, "neurons_after_conv1": sum(others)},
            agrees=(inputs, others) == (PAPER_INPUTS, PAPER_OTHER_NEURONS),
            agreement_note=f"all numbers of the caption together: {by_caption:,} neurons, not "
            f"{PAPER_NEURONS:,}",
        ),
        Measurement(
            "conv-share",
            ", ".join(f"{name} {share:.2f}%" for name, share in shares_pct.items()),
            *how,
            numbers={f"{name}_pct": share for name, share in shares_pct.items()},
            agrees=not above,
            agreement_note=f"{' and '.join(above)} hold more than 1%" if above else None,
        ),
    ]


@measures("layers", part="audit")
def layers_measurement(counts: Sequence[LayerCounts], *how: *How) -> Measurement:
    """Convolutions, fully connected layers and max pools of the network."""
    convs = load_recipe("paper").convs
    pools = sum(conv.after.count(LayerOp.max_pool) for conv in convs.values())
    linears = len(counts) - len(convs)
    claimed = PAPER_CONVS, PAPER_FULLY_CONNECTED, PAPER_POOLS
    return Measurement(
        "layers",
        f"{len(convs)} convolutions, {linears} fully connected layers, {pools} max pools",
        *how,
        numbers={"convolutions": len(convs), "fully_connected": linears, "max_pools": pools},
        agrees=(len(convs), linears, pools) == claimed,
    )


@measures("memory", part="audit")
def memory_measurement(counts: Sequence[LayerCounts], *how: *How) -> Measurement:
    """Bytes of a float32 training step on one tower, and on both towers together."""

    def step_bytes(towers: int) -> int:
        layout = Layout(PAPER_BATCH, towers=towers)
        costs = layer_costs(load_recipe("paper"), counts, layout)
        return sum(memory_bytes(costs, layout).values())

    one, both = step_bytes(2), step_bytes(1)
    return Measurement(
        "memory",
        f"{one / 1e9:.2f} GB for one tower, {both / 1e9:.2f} GB for both in one process",
        *how,
        numbers={"one_tower_bytes": one, "both_towers_bytes": both},
        agrees=one < PAPER_GPU_BYTES,
        agreement_note=f"batch of {PAPER_BATCH}, float32: weights, momenta, gradients, activations "
        "saved for backward, dropout's random numbers and the largest exchange; temporaries within "
        "a layer and libraries are not counted",
    )


def expected_exchanges(summary: dict[str, Any], classes: int) -> list[ExchangeTraffic]:
    """Bytes counted in a full-size float32 run, and those computed from the layers' shapes."""
    floats = {**EXCHANGED_FLOATS, "logits": 2 * padded_shard_size(classes, 2)}
    expected = {
        (name, way): 4.0 * n for name, n in floats.items() for way in ("forward", "backward")
    }
    expected["logits", "backward"] = 0.0
    counted = summary["exchange_bytes_per_image"]
    return [
        ExchangeTraffic(
            layer=layer,
            direction=direction,
            bytes_per_image=counted.get(layer, {}).get(direction, 0.0),
            expected_bytes_per_image=expected_bytes,
        )
        for (layer, direction), expected_bytes in expected.items()
    ]
