"""Memory of this machine: how much is free, and arrays that its processes share."""

from __future__ import annotations

import mmap
import os
import resource
from contextlib import suppress
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt


def available_bytes() -> int:
    """Memory for a shared array: free without swapping, also within the limits of a container.

    Shared memory counts as a file: the process's limit on file sizes applies.
    """
    lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    cgroup = Path("/sys/fs/cgroup")
    for limit, usage in (
        ("memory.max", "memory.current"),
        ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes"),
    ):
        with suppress(OSError, ValueError):  # "max"
            free = min(free, int((cgroup / limit).read_text()) - int((cgroup / usage).read_text()))
    largest_file, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return max(0, free if largest_file == resource.RLIM_INFINITY else min(free, largest_file))


def machine_id() -> tuple[str, str, int]:
    """Equal in processes that can open each other's files in /proc."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return boot, str(Path("/proc/self/ns/pid").readlink()), os.getuid()


class SharedArray:
    """A uint8 array in memory that other processes of this machine can map by its ``path``.

    It is not a file on disk, so nothing is left behind however the processes end.
    """

    def __init__(self, shape: tuple[int, ...], path: str | None = None) -> None:
        if path is None:
            self._file = os.memfd_create("alexnet2012-images")
            os.ftruncate(self._file, prod(shape))
        else:
            self._file = os.open(path, os.O_RDWR)
        self.path = f"/proc/{os.getpid()}/fd/{self._file}"
        memory = mmap.mmap(self._file, prod(shape)) if prod(shape) else b""
        self.array: npt.NDArray[np.uint8] = np.frombuffer(memory, np.uint8).reshape(shape)

    def close_file(self) -> None:
        """Close the file once every process has mapped it; the array stays valid."""
        os.close(self._file)
