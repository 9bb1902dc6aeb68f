"""What training would cost on machines that one may not have: ``python -m alexnet2012.plan …``.

Memory, operations, bytes and time of a step on nodes × gpus processes, and what each number
rests on.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import PlanConfig
from alexnet2012.diagnostics.hardware import Speeds, card_of, check_speeds, find_speeds
from alexnet2012.distributed.mesh import single_process
from alexnet2012.ledger.training_runs import PAPER_EPOCHS, PAPER_TRAINING_IMAGES
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import (
    LayerCost,
    Layout,
    efficiency,
    gradient_bytes,
    layer_costs,
    memory_bytes,
    step_time,
)
from alexnet2012.nn.flops import audit
from alexnet2012.nn.precision import DTYPES

WHAT_TAKES_TIME = {
    "layers": "layers, forward and backward",
    "exchanges": "exchanges between towers",
    "gradients": "gradients over replicas",
    "update": "update of the weights",
    "total": "together",
}
ASSUMPTIONS = (
    "Nothing overlaps: layers, exchanges, gradients and the update follow each other.",
    "All processes are equally fast; the one with the largest share decides.",
    "Gradients go tensor by tensor round rings; those of a machine share its link.",
    "Input, validation and checkpoints cost nothing.",
    "Memory is the net's and one step's, as if all at once, without the libraries' own.",
)
MEASURED = "A layer takes as long a picture as in the steps that were timed, at any batch."
BOUNDED = "Layers take the least time that the rates allow: a bound, no forecast."


def plan(config: PlanConfig) -> dict[str, Any]:
    """All that is to be said of a configuration, as plain data.

    Raises:
        ConfigError: a number is missing that cannot be measured here, or a net cannot be built.
    """
    check_speeds(config)
    types = DTYPES[config.precision]
    layout = Layout(
        config.batch,
        config.nodes * config.gpus // config.mesh.towers,
        config.mesh.towers,
        activation_bytes=types.activations.itemsize,
        parameter_bytes=types.parameters.itemsize,
    )
    card = card_of(config)
    net = AlexNet(
        config.recipe, config.classes, model=config.model, mesh=single_process(Device.cpu)
    )
    costs = layer_costs(config.recipe, audit(net), layout)
    del net  # what is measured next needs the memory
    speeds = find_speeds(config, costs, layout)
    time = step_time(costs, layout, speeds.work, speeds.tower_link, speeds.data_link)
    images_per_s = layout.batch / time.total_s
    memory = memory_bytes(costs, layout)
    return {
        "net": f"recipe {config.recipe.name}, width {config.model.width:g}, "
        f"{config.model.input_size} pixels, {config.classes} classes, {config.precision}",
        "processes": layout.processes,
        "nodes": config.nodes,
        "towers": layout.towers,
        "replicas": layout.replicas,
        "batch": layout.batch,
        "pictures_of_a_replica": layout.rows,
        "layers": [_layer(cost, layout, speeds) for cost in costs],
        "gradient_bytes": gradient_bytes(costs, layout),
        "memory_bytes": memory,
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
        "days_for_90_epochs_of_1_2_m": PAPER_TRAINING_IMAGES * PAPER_EPOCHS / images_per_s / 86_400,
        "efficiency_pct": 100 * efficiency(time, layout),
        "assumptions": [
            BOUNDED if config.tflops or card else MEASURED,
            *ASSUMPTIONS,
        ],
    }


def _layer(cost: LayerCost, layout: Layout, speeds: Speeds) -> dict[str, Any]:
    """Of one process; operations and bytes of one picture."""
    forward_s, backward_s = speeds.work.layers.get(cost.name, (0.0, 0.0))
    return {
        "layer": cost.name,
        "parameters": cost.parameters,
        "multiply_adds": cost.multiply_adds,
        "kept_bytes": cost.kept_bytes,
        "sent_bytes": {way: cost.sent_bytes.get(way, 0) for way in ("forward", "backward")},
        "step_ms": {"forward": 1e3 * forward_s, "backward": 1e3 * backward_s},
    }


def show(found: dict[str, Any], console: Console) -> None:
    console.print(found["net"], highlight=False)
    console.print(
        f"machines {found['nodes']}, processes {found['processes']} = towers {found['towers']} × "
        f"replicas {found['replicas']},\nbatch {found['batch']}, pictures of a replica "
        f"{found['pictures_of_a_replica']}",
        highlight=False,
    )
    for table in (_layers(found), _memory(found), _step(found), _speeds(found)):
        console.print(table)
    for sentence in found["assumptions"]:
        console.print(f"- {sentence}", highlight=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    return table


def _layers(found: dict[str, Any]) -> Table:
    table = _table(
        "One process: of one picture, and milliseconds of a step",
        "layer",
        "million mult-adds",
        "kB kept",
        "kB sent forward",
        "kB sent backward",
        "ms forward",
        "ms backward",
    )
    total: list[float] = [0.0] * 6
    for layer in found["layers"]:
        sent, time = layer["sent_bytes"], layer["step_ms"]
        numbers = [
            layer["multiply_adds"] / 1e6,
            layer["kept_bytes"] / 1e3,
            sent["forward"] / 1e3,
            sent["backward"] / 1e3,
            time["forward"],
            time["backward"],
        ]
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        table.add_row(layer["layer"], *map(_short, numbers))
    table.add_section()
    table.add_row("all", *map(_short, total))
    return table


def _memory(found: dict[str, Any]) -> Table:
    table = _table("One process: memory", "what", "MB")
    memory = found["memory_bytes"]
    for what, size in memory.items():
        table.add_row(what, f"{size / 1e6:,.1f}")
    table.add_section()
    card_gb, total = found["memory_of_card_gb"], sum(memory.values())
    what = "together"
    if card_gb is not None:
        fits = "fits into" if total <= card_gb * 1e9 else "more than"
        what = f"together; {fits} {card_gb:g} GB"
    table.add_row(what, f"{total / 1e6:,.1f}")
    return table


def _step(found: dict[str, Any]) -> Table:
    table = _table("One step", "what", "ms", "share")
    total = found["step_ms"]["total"]
    for what, time in found["step_ms"].items():
        if what == "total":
            table.add_section()
        table.add_row(WHAT_TAKES_TIME[what], _short(time), f"{100 * time / total:.1f}%")
    table.add_section()
    table.add_row("images/s", _short(found["images_per_s"]), "")
    table.add_row("days for 90 epochs of 1.2 M", _short(found["days_for_90_epochs_of_1_2_m"]), "")
    table.add_row("efficiency against one process", f"{found['efficiency_pct']:.1f}%", "")
    sent = found["gradient_bytes"] / 1e6
    table.add_row("MB of gradients that a process sends", f"{sent:,.1f}", "")
    return table


def _speeds(found: dict[str, Any]) -> Table:
    table = _table("What it rests on: one process", "speed", "value", "unit", "source")
    for speed in found["speeds"]:
        table.add_row(speed["name"], _short(speed["value"]) or "0", speed["unit"], speed["source"])
    return table


def _short(number: float) -> str:
    """Three digits or all that are whole; nothing for zero."""
    if number == 0:
        return ""
    return f"{number:,.0f}" if number >= 1000 else f"{number:#.3g}".rstrip(".")


def run(config: PlanConfig, run_dir: Path) -> None:
    found = plan(config)
    if config.json:
        print(json.dumps(found, indent=1))
    else:
        show(found, Console())


def main() -> None:
    hydra_main("plan", PlanConfig, run)


if __name__ == "__main__":
    main()
