"""The device of a run, and how much of it was used: peak memory, share of the peak rate."""

from __future__ import annotations

import resource
from pathlib import Path

import torch

from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import training_flops
from alexnet2012.utils import native
from alexnet2012.utils.cards import peak_flops
from alexnet2012.utils.environment import cpu_name


def reset_peak_memory(device: torch.device) -> None:
    """Forget what earlier runs in this process allocated on a GPU."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Peak memory: of tensors on a GPU; on a CPU, of this process since it started."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # Not ru_maxrss if possible: it starts at the size of the process that started this one.
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    resident = [int(line.split()[1]) for line in lines if line.startswith("VmHWM:")]
    in_kib, *_ = *resident, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return 1024 * in_kib


def processor_name(device: torch.device) -> str:
    """The processor and what computes on it: two processes with the same name round alike."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    return f"{cpu_name()}, {native.description()}"


def model_flop_utilisation(model: AlexNet, images_per_s: float) -> dict[str, float]:
    """MFU over all processes as ``mfu_pct``; empty if the device's peak rate is unknown."""
    device = model.mesh.device
    if device.type != "cuda":
        return {}
    peak = peak_flops(torch.cuda.get_device_name(device), str(model.precision))
    return {} if peak is None else {"mfu_pct": mfu_pct(model, images_per_s, peak)}


def mfu_pct(model: AlexNet, images_per_s: float, peak: float) -> float:
    """Model FLOP utilisation, if each process of the mesh has this peak rate in FLOP/s."""
    return 100 * training_flops(model) * images_per_s / (model.mesh.world_size * peak)
