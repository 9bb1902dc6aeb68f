"""Whether a run uses GPUs. Torch takes seconds to import: it is asked only if there may be one."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError
from alexnet2012.distributed.process_env import current_process
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR
from alexnet2012.utils.logs import log

# Device files of NVIDIA's driver, of NVIDIA's boards, of WSL and of AMD's driver.
GPU_FILES = ("/dev/nvidiactl", "/dev/nvhost-ctrl", "/dev/nvmap", "/dev/dxg", "/dev/kfd")

SHARED_GPU = "NCCL_MULTI_RANK_GPU_ENABLE"


def has_gpu_driver() -> bool:
    """Whether this machine may have a GPU; if not, torch need not be asked."""
    return any(Path(file).exists() for file in GPU_FILES)


def gpu_count() -> int:
    """GPUs that this process can use."""
    if not has_gpu_driver():
        return 0
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def uses_gpus(kind: Device, local_processes: int) -> bool:
    """Whether each process of this machine uses a GPU; ConfigError if cuda lacks GPUs."""
    if kind is Device.cpu:
        return False
    count = gpu_count()
    if count and os.environ.get(SHARED_GPU) == "1":  # NCCL lets ranks share one
        count = max(count, local_processes)
    if kind is Device.cuda and count < local_processes:
        remedy = f"{_gpu_shortage(count, local_processes)}; use cpu or fewer processes"
        raise ConfigError("mesh.device", kind.value, remedy)
    if kind is Device.auto and 0 < count < local_processes:
        _warn_on_cpu(count, local_processes)
    return count >= local_processes


@cache  # called several times while a run starts
def _warn_on_cpu(count: int, local_processes: int) -> None:
    """Warn in one process only: the one that launches the ranks, or torchrun's rank 0."""
    if current_process().rank == 0 and FAILURES_DIR not in os.environ:
        shortage = _gpu_shortage(count, local_processes)
        pronoun = "it" if count == 1 else "one"
        log.warning("running on the CPU: %s; set mesh=one_process to use %s", shortage, pronoun)


def _gpu_shortage(count: int, local_processes: int) -> str:
    needed = f"{local_processes} process{'es need' if local_processes > 1 else ' needs'}"
    needed += f" {local_processes} GPU{'s' if local_processes > 1 else ''}"
    return f"{needed}, {count} {'is' if count == 1 else 'are'} visible"
