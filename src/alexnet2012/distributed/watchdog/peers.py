"""Another rank as a watchdog sees it: its process, its record, how long it has been silent."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet2012.distributed.watchdog.diagnosis import RankRecord
from alexnet2012.distributed.watchdog.flight_recorder import SIZE, FlightRecord

TICK_S = 1.0  # between two beats of a watchdog


@dataclass
class Peer(RankRecord):
    """Another rank. Its record is mapped on the same machine, and sent by another."""

    same_net: bool  # a tower of this replica
    near: bool  # on this machine
    pid: int
    started: str  # ticks after boot: with the pid it names a process for good
    beats: int = 0
    silent_s: float = 0.0
    behind_s: float = 0.0  # how long this process has been at an exchange that it has not begun

    @classmethod
    def at(cls, address: dict[str, Any], rank: int, *, same_net: bool) -> Peer:
        """The rank that told its :func:`address`."""
        pid, started, fd = (address[key] for key in ("pid", "started", "fd"))
        near = address["machine"] == _machine()
        record = FlightRecord(_mapped(pid, fd) if near else bytearray(SIZE))
        return cls(rank, record, same_net, near, pid, started, old=same_net and not near)

    def dead(self) -> bool:
        """Known for certain on this machine only."""
        return self.near and _started(self.pid) != self.started

    def quiet(self) -> bool:
        """Elsewhere, and two beats are missing."""
        return not self.near and self.silent_s > 2.5 * TICK_S

    def listen(self, elapsed_s: float, begun: int) -> None:
        """Once a tick: whether its watchdog has shown itself, and it has begun as much as we."""
        beats = self.record.beats
        self.silent_s = 0.0 if beats != self.beats else self.silent_s + elapsed_s
        self.beats = beats
        waited_for = self.same_net and self.record.begun < begun
        self.behind_s = self.behind_s + elapsed_s if waited_for else 0.0


def address(fd: int) -> dict[str, Any]:
    """Where peers find this process and its record, which is open as ``fd``."""
    pid = os.getpid()
    return {"pid": pid, "started": _started(pid), "machine": _machine(), "fd": fd}


def _mapped(pid: int, fd: int) -> mmap.mmap:
    with open(f"/proc/{pid}/fd/{fd}", "rb") as file:
        return mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)


def _started(pid: int) -> str:
    """When a process was started; nothing if it is no more."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in "ZX" else str(rest[18])


def _machine() -> str:
    """Where process ids and memory are shared."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
