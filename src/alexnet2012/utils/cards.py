"""Data sheets of GPUs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple


class Card(NamedTuple):
    """Data sheet of a GPU: dense peak rates, and its link to other GPUs, per direction."""

    name: str
    device_name: str  # as the driver calls it
    memory_gb: float
    memory_gb_per_s: float
    link_gbps: float
    tflops: Mapping[str, float]  # by precision


HOPPER_TFLOPS = {"fp64": 34, "fp32": 67, "tf32": 494.5, "bf16": 989.5}  # without sparsity
CARDS = {
    # The paper used two of these. GeForce GTX 580 specifications, NVIDIA 2010; PCIe 2.0.
    "gtx580": Card(
        "GTX 580, 3 GB", "GeForce GTX 580", 3, 192.4, 64, {"fp32": 1.581, "fp64": 0.198}
    ),
    # NVIDIA A100 80GB SXM data sheet, 2021.
    "a100": Card(
        "A100 80GB SXM",
        "NVIDIA A100-SXM4-80GB",
        80,
        2039,
        2400,
        {"fp64": 9.7, "fp32": 19.5, "tf32": 156, "bf16": 312},
    ),
    # NVIDIA H100 SXM data sheet, 2023.
    "h100": Card("H100 80GB SXM", "NVIDIA H100 80GB HBM3", 80, 3350, 3600, HOPPER_TFLOPS),
    # NVIDIA H200 SXM data sheet, 2024.
    "h200": Card("H200 141GB SXM", "NVIDIA H200", 141, 4800, 3600, HOPPER_TFLOPS),
    # NVIDIA Ada GPU architecture whitepaper, 2022 (bf16 with float32 sums); PCIe 4.0.
    "rtx4090": Card(
        "RTX 4090, 24 GB",
        "NVIDIA GeForce RTX 4090",
        24,
        1008,
        256,
        {"fp64": 1.29, "fp32": 82.6, "tf32": 82.6, "bf16": 165.2},
    ),
}
_VENDOR = re.compile(r"nvidia|geforce|rtx|gtx|sxm\d?|[^a-z0-9]|\d+gb")


def find_card(given: str) -> Card | None:
    """A card by name, such as ``h100``, ``H100 SXM`` or ``NVIDIA RTX 4090``; None if unknown."""

    def short(name: str) -> str:
        return _VENDOR.sub("", name.lower())

    names = {short(name): card for key, card in CARDS.items() for name in (key, card.device_name)}
    return names.get(short(given))


def peak_flops(device_name: str, precision: str) -> float | None:
    """Peak rate of a GPU, FLOP/s; None if its data sheet is not listed or lists no such rate."""
    for card in CARDS.values():
        if card.device_name == device_name and precision in card.tflops:
            return 1e12 * card.tflops[precision]
    return None
