"""Print the predicted costs of training as tables."""

from __future__ import annotations

from typing import Any

from rich.console import Console
from rich.table import Table

STEP_PARTS = {
    "layers": "layers, forward and backward",
    "exchanges": "exchanges between towers",
    "gradients": "gradient all-reduce over replicas",
    "update": "weight update",
    "total": "total",
}
OVERLAPPED = "if gradient sums overlap the backward pass"
MEMORY_ITEMS = {
    "weights as activations": "weights cast to the activation dtype",
    "activations kept for backward": "activations saved for backward",
    "draws of dropout": "random numbers for dropout",
}


def print_plan(plan: dict[str, Any], console: Console) -> None:
    """Print the result of :func:`plan_training`."""
    console.print(plan["net"], highlight=False)
    images, at_once = plan["pictures_of_a_replica"], plan["pictures_at_once"]
    console.print(
        f"machines: {plan['nodes']}; processes: {plan['processes']} = {plan['towers']} towers × "
        f"{plan['replicas']} replicas\nbatch size: {plan['batch']}; images per replica: {images}"
        + (f", in micro-batches of {at_once}" if at_once < images else ""),
        highlight=False,
    )
    for table in (_layers(plan), _memory(plan), _step(plan), _speeds(plan)):
        console.print(table)
    for sentence in (*plan["assumptions"], *plan["notes"]):
        console.print(f"- {sentence}", highlight=False)


def _table(title: str, *headings: str) -> Table:
    table = Table(title=title, title_justify="left")
    table.add_column(headings[0])
    for heading in headings[1:]:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    return table


def _layers(plan: dict[str, Any]) -> Table:
    table = _table(
        "One process: per image, and milliseconds per step",
        "layer",
        "million mult-adds",
        "kB saved",
        "kB sent forward",
        "kB sent backward",
        "ms forward",
        "ms backward",
    )
    total: list[float] = [0.0] * 6
    for layer in plan["layers"]:
        numbers = [layer["multiply_adds"] / 1e6, layer["kept_bytes"] / 1e3]
        numbers += [sent / 1e3 for sent in layer["sent_bytes"].values()]
        numbers += layer["step_ms"].values()
        total = [a + b for a, b in zip(total, numbers, strict=True)]
        table.add_row(layer["layer"], *map(_short, numbers))
    table.add_section()
    table.add_row("total", *map(_short, total))
    return table


def _memory(plan: dict[str, Any]) -> Table:
    table = _table("One process: memory", "item", "MB")
    memory = plan["memory_bytes"]
    for item, size in memory.items():
        table.add_row(MEMORY_ITEMS.get(item, item), f"{size / 1e6:,.1f}")
    table.add_section()
    card_gb, total, label = plan["memory_of_card_gb"], sum(memory.values()), "total"
    if card_gb is not None:
        label += f"; {'fits in' if total <= card_gb * 1e9 else 'exceeds'} {card_gb:g} GB"
    table.add_row(label, f"{total / 1e6:,.1f}")
    return table


def _step(plan: dict[str, Any]) -> Table:
    table = _table("One step", "part", "ms", "share")
    total = plan["step_ms"]["total"]
    for part, time in plan["step_ms"].items():
        if part == "total":
            table.add_section()
        table.add_row(STEP_PARTS[part], _short(time), f"{100 * time / total:.1f}%")
    overlapped, has_sums = plan["if_gradients_overlap"], plan["step_ms"]["gradients"] > 0
    if has_sums:
        step_ms = overlapped["step_ms"]
        table.add_row(OVERLAPPED, _short(step_ms), f"{100 * step_ms / total:.1f}%")
    table.add_section()
    table.add_row("images/s", _short(plan["images_per_s"]), "")
    if has_sums:
        table.add_row(OVERLAPPED, _short(overlapped["images_per_s"]), "")
    if plan["mfu_pct"] is not None:
        table.add_row("MFU (model FLOP utilisation)", f"{plan['mfu_pct']:.1f}%", "")
        if has_sums:
            table.add_row(OVERLAPPED, f"{overlapped['mfu_pct']:.1f}%", "")
    duration = _duration(plan["days_for_90_epochs_of_1_2_m"])
    table.add_row("90 epochs of 1.2 M images", duration, "")
    table.add_row("efficiency relative to one process", f"{plan['efficiency_pct']:.1f}%", "")
    table.add_row("MB of gradients sent per process", f"{plan['gradient_bytes'] / 1e6:,.1f}", "")
    return table


def _speeds(plan: dict[str, Any]) -> Table:
    table = _table("Speeds of one process", "speed", "value", "unit", "source")
    for speed in plan["speeds"]:
        table.add_row(speed["name"], _short(speed["value"]) or "0", speed["unit"], speed["source"])
    return table


def _duration(days: float) -> str:
    """In the largest unit of which there are at least two, such as ``38 minutes``."""
    units = {"days": 1.0, "hours": 24.0, "minutes": 1440.0, "seconds": 86_400.0}
    unit = next((unit for unit, per_day in units.items() if days * per_day >= 2), "seconds")
    return f"{_short(days * units[unit])} {unit}"


def _short(number: float) -> str:
    """Three significant digits, or all digits of large integers; empty for zero."""
    if number == 0:
        return ""
    return f"{number:,.0f}" if number >= 1000 else f"{number:#.3g}".rstrip(".")
