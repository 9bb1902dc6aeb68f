"""Predict what a training step costs: memory, operations, bytes and time on nodes × GPUs."""

from __future__ import annotations

from typing import Any

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import PlanConfig
from alexnet2012.diagnostics.hardware import Speeds, check_speeds, find_speeds
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import (
    LayerCost,
    Layout,
    count_layers,
    efficiency,
    gradient_bytes,
    layer_costs,
    memory_bytes,
    overlapped_step_s,
    step_flops,
    step_time,
)
from alexnet2012.nn.precision import DTYPES

PAPER_TRAINING_IMAGES = 1_200_000  # paper sec. 2
PAPER_EPOCHS = 90  # paper sec. 5
ASSUMPTIONS = (
    "Layers, exchanges, gradient all-reduce and weight update run in sequence, unless a line of "
    "the table says otherwise.",
    "All processes are equally fast; the process with the largest shard determines the time.",
    "Gradients are all-reduced tensor by tensor: bytes as in a ring, latency as along a tree; the "
    "towers of a machine share its link.",
    "Data loading, validation and checkpoints take no time.",
    "Memory is the sum over the model and one step; the overhead of libraries is not counted.",
)
MEASURED = "The measured time of a layer per image is assumed to hold at every batch size."
BOUNDED = "The times of layers are lower bounds from peak rates, not forecasts."
ONE_NODE, USEFUL_BATCH = 8, 2048  # processes, images
# You, Gitman and Ginsburg 2017: without LARS, AlexNet had been scaled to batches of 1,024 only.
BEYOND_ONE_NODE = (
    "This network's useful scale ends at about one machine: without layer-wise rates (LARS), "
    "batches of more than about 1,024 to 2,048 images cost accuracy, even with warm-up."
)


def plan_training(config: PlanConfig) -> dict[str, Any]:
    """The costs of a configuration as plain data, in the format of ``plan json=true``."""
    card = check_speeds(config)
    types = DTYPES[config.precision]
    layout = Layout(
        config.batch,
        config.nodes * config.gpus // config.mesh.towers,
        config.mesh.towers,
        activation_bytes=types.activations.itemsize,
        parameter_bytes=types.parameters.itemsize,
        micro_batch=config.data.micro_batch,
    )
    model = AlexNet(
        config.recipe, config.classes, model=config.model, mesh=single_process(Device.cpu)
    )
    costs = layer_costs(config.recipe, count_layers(model), layout)
    del model  # frees memory for the measurement
    speeds = find_speeds(config, card, costs, layout)
    arguments = costs, layout, speeds.work, speeds.tower_link, speeds.data_link
    time, overlapped_s = step_time(*arguments), overlapped_step_s(*arguments)
    images_per_s = layout.batch / time.total_s
    is_large = layout.processes > ONE_NODE or layout.batch > USEFUL_BATCH

    def mfu_pct(step_s: float) -> float | None:
        peak = speeds.peak_flops
        return None if peak is None else 100 * step_flops(costs, layout) / step_s / peak

    return {
        "net": f"recipe {config.recipe.name}, width {config.model.width:g}, "
        f"{config.model.input_size} pixels, {config.classes} classes, {config.precision}",
        "processes": layout.processes,
        "nodes": config.nodes,
        "towers": layout.towers,
        "replicas": layout.replicas,
        "batch": layout.batch,
        "pictures_of_a_replica": layout.rows,
        "pictures_at_once": layout.rows_at_once,
        "layers": [_layer(cost, layout, speeds) for cost in costs],
        "gradient_bytes": gradient_bytes(costs, layout),
        "memory_bytes": memory_bytes(costs, layout),
        "memory_of_card_gb": card.memory_gb if card else None,
        "speeds": [vars(speed) for speed in speeds.table],
        "step_ms": {
            "layers": 1e3 * time.layers_s,
            "exchanges": 1e3 * time.exchange_s,
            "gradients": 1e3 * time.gradients_s,
            "update": 1e3 * time.update_s,
            "total": 1e3 * time.total_s,
        },
        "images_per_s": images_per_s,
        "mfu_pct": mfu_pct(time.total_s),
        "if_gradients_overlap": {
            "step_ms": 1e3 * overlapped_s,
            "images_per_s": layout.batch / overlapped_s,
            "mfu_pct": mfu_pct(overlapped_s),
        },
        "days_for_90_epochs_of_1_2_m": PAPER_TRAINING_IMAGES * PAPER_EPOCHS / images_per_s / 86_400,
        "efficiency_pct": 100 * efficiency(time, layout),
        "assumptions": [BOUNDED if config.tflops or card else MEASURED, *ASSUMPTIONS],
        "notes": [BEYOND_ONE_NODE] if is_large else [],
    }


def _layer(cost: LayerCost, layout: Layout, speeds: Speeds) -> dict[str, Any]:
    """The cost of a layer in one process; operations and bytes are per image."""
    forward_s, backward_s = speeds.work.layers.get(cost.name, (0.0, 0.0))
    return {
        "layer": cost.name,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "kept_bytes": cost.kept_bytes,
        "sent_bytes": {
            direction: cost.sent_bytes.get(direction, 0) for direction in ("forward", "backward")
        },
        "step_ms": {"forward": 1e3 * forward_s, "backward": 1e3 * backward_s},
    }
