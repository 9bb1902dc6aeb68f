"""Speeds of processes and links: measured, given, or taken from a data sheet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, PlanConfig
from alexnet2012.diagnostics.step_timer import local_processes, measure
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.cost_model import (
    LayerCost,
    Layout,
    Link,
    Peaks,
    Work,
    bounded_work,
    step_flops,
)
from alexnet2012.utils.cards import CARDS, Card, find_card, peak_flops

GBPS = 1e9 / 8  # bytes per second
MEASURED, GIVEN, DATA_SHEET = "measured on this machine", "given", "data sheet"


@dataclass(frozen=True)
class Speed:
    """A speed that a plan uses, and its source."""

    name: str
    value: float
    unit: str
    source: str


@dataclass(frozen=True)
class Speeds:
    """Speeds that convert counts to times; ``table`` lists each speed with its source."""

    work: Work
    peak_flops: float | None  # of one process, if known
    tower_link: Link | None
    data_link: Link | None
    table: list[Speed]


def check_speeds(config: PlanConfig) -> Card | None:
    """Check that every speed is given, on the card's data sheet, or measurable; return the card."""
    card = find_card(config.card) if config.card is not None else None
    if config.card is not None and card is None:
        remedy = f"unknown card; use one of {', '.join(CARDS)}, or set tflops=…"
        raise ConfigError("card", config.card, remedy)
    is_measured = config.tflops is None and card is None
    if card is not None and config.tflops is None and str(config.precision) not in card.tflops:
        remedy = f"the data sheet of {card.name} lists no rate for it; set tflops=… or use one of "
        raise ConfigError("precision", config.precision, remedy + ", ".join(card.tflops))
    if is_measured and config.mesh.device is Device.cuda and not torch.cuda.is_available():
        remedy = "no GPU is visible; use cpu, or set tflops=…"
        raise ConfigError("mesh.device", config.mesh.device, remedy)
    if is_measured and config.memory_gb_per_s is not None:
        remedy = "needs tflops=… or card=…; without them the layers are measured"
        raise ConfigError("memory_gb_per_s", config.memory_gb_per_s, remedy)
    if config.link_gbps is None and config.nodes > 1:
        remedy = "set the Gbit/s between machines, which cannot be measured on one machine"
        raise ConfigError("link_gbps", None, remedy)
    known = card is not None or config.node_link_gbps is not None or config.link_gbps is not None
    if config.gpus > 1 and not known and not (is_measured and local_processes(config) > 1):
        remedy = "set the Gbit/s between processes; it is measured only with layers on a CPU"
        raise ConfigError("link_gbps", None, remedy)
    return card


def find_speeds(
    config: PlanConfig, card: Card | None, costs: Sequence[LayerCost], layout: Layout
) -> Speeds:
    """Speeds of layers, update and links; measures those neither given nor in a data sheet."""
    table: list[Speed] = []
    measured_link = None
    if config.tflops is None and card is None:
        work, measured_link = measure(config, layout)
        peak = _own_peak(config)
        rate = step_flops(costs, layout) / work.layers_s / 1e12
        table.append(Speed("all layers", rate, "TFLOP/s", MEASURED))
        table.append(Speed("weight update", 1e3 * work.update_s, "ms", MEASURED))
    else:
        peaks = _peaks(config, card, table)
        work, peak = bounded_work(costs, layout, peaks), peaks.flops
    near, far = _links(config, card, measured_link, table)
    tower_link = near if config.gpus % layout.towers == 0 else far
    data_link = near if config.nodes == 1 else far
    if data_link is not None and config.nodes > 1:
        # Each tower has its own ring, and the rings of a machine share its link.
        rings = min(config.gpus, layout.towers)
        data_link = Link(data_link.bytes_per_s / rings, data_link.latency_s)
    return Speeds(work, peak, tower_link, data_link, table)


def _own_peak(config: PlanConfig) -> float | None:
    """Peak rate of the GPU that is measured; None on a CPU or if its data sheet is not listed."""
    device = single_process(config.mesh.device).device
    if device.type != "cuda":
        return None
    return peak_flops(torch.cuda.get_device_name(device), str(config.precision))


def _peaks(config: PlanConfig, card: Card | None, table: list[Speed]) -> Peaks:
    """Peak rates of one process; given rates override the data sheet."""
    flops, memory = config.tflops, config.memory_gb_per_s
    if card is not None:
        flops = flops or card.tflops[str(config.precision)]
        memory = memory or card.memory_gb_per_s
    assert flops is not None
    source = GIVEN if config.tflops is not None else DATA_SHEET
    table.append(Speed("arithmetic", flops, "TFLOP/s", source))
    if memory is not None:
        source = GIVEN if config.memory_gb_per_s is not None else DATA_SHEET
        table.append(Speed("memory", memory, "GB/s", source))
    return Peaks(flops * 1e12, memory and memory * 1e9)


def _links(
    config: PlanConfig, card: Card | None, measured: Link | None, table: list[Speed]
) -> tuple[Link | None, Link | None]:
    """The link within a machine, and the link between machines."""
    latency_us, source = config.link_latency_us, GIVEN
    if latency_us is None:
        latency_us, source = (
            (1e6 * measured.latency_s, MEASURED) if measured else (0.0, "not given")
        )
    choices = (
        (config.node_link_gbps, GIVEN),
        (config.link_gbps if config.nodes == 1 else None, GIVEN),
        (card and card.link_gbps, DATA_SHEET),
        (measured and measured.bytes_per_s / GBPS, MEASURED),
        (config.link_gbps, "same as link_gbps"),
    )
    near_gbps, near_source = next((c for c in choices if c[0] is not None), (None, ""))
    if config.gpus > 1 and near_gbps is not None:
        table.append(Speed("link within a machine", near_gbps, "Gbit/s", near_source))
    if config.nodes > 1 and config.link_gbps is not None:
        table.append(Speed("link between machines", config.link_gbps, "Gbit/s", GIVEN))
    if config.nodes * config.gpus > 1:
        table.append(Speed("message latency", latency_us, "us", source))
    near = None if near_gbps is None else Link(near_gbps * GBPS, latency_us / 1e6)
    far = None if config.link_gbps is None else Link(config.link_gbps * GBPS, latency_us / 1e6)
    return near, far
