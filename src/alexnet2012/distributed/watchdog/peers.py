"""A watchdog's view of another rank: its process, flight record and time since the last beat."""

from __future__ import annotations

import mmap
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet2012.distributed.watchdog.diagnosis import RankRecord
from alexnet2012.distributed.watchdog.flight_recorder import SIZE, FlightRecord

BEAT_INTERVAL_S = 1.0


@dataclass
class Peer(RankRecord):
    """Another rank. Its record is memory-mapped on the same machine, and received from another."""

    same_machine: bool
    pid: int
    started: str  # clock ticks after boot; with the pid it identifies a process uniquely
    beats: int = 0
    progress: tuple[int, int] = (0, 0)  # of its record at the last beat
    silent_s: float = 0.0
    behind_s: float = 0.0  # time since this rank began an exchange that the peer has not begun

    @classmethod
    def at(cls, address: dict[str, Any], rank: int, *, same_replica: bool) -> Peer:
        """The rank that published ``address``, as :func:`address` returns it."""
        pid = address["pid"]
        same_machine = address["machine"] == _machine()
        record, stale = FlightRecord(), same_replica and not same_machine
        if same_machine:
            with open(f"/proc/{pid}/fd/{address['fd']}", "rb") as file:
                record.memory = mmap.mmap(file.fileno(), SIZE, prot=mmap.PROT_READ)
        return cls(
            rank,
            record,
            same_machine,
            pid,
            address["started"],
            same_replica=same_replica,
            stale=stale,
        )

    def dead(self) -> bool:
        """Whether the process has ended; known with certainty on the same machine only."""
        return self.same_machine and _start_time(self.pid) != self.started

    def quiet(self) -> bool:
        """Whether a peer on another machine has missed two beats."""
        return not self.same_machine and self.silent_s > 2.5 * BEAT_INTERVAL_S

    def update(self, elapsed_s: float, this_rank: FlightRecord) -> None:
        """Update ``silent_s`` and ``behind_s``, once a beat, from the records of both ranks."""
        beats, progress = self.record.beats, self.record.progress
        self.silent_s = 0.0 if beats != self.beats else self.silent_s + elapsed_s
        stands_still = progress == self.progress  # its count within a replay is as old as its beat
        self.beats, self.progress = beats, progress
        is_behind = self.same_replica and stands_still and progress < this_rank.progress
        self.behind_s = self.behind_s + elapsed_s if is_behind else 0.0


def address(fd: int) -> dict[str, Any]:
    """How peers find this process and its flight record, which is open as ``fd``."""
    pid = os.getpid()
    return {"pid": pid, "started": _start_time(pid), "machine": _machine(), "fd": fd}


def _start_time(pid: int) -> str:
    """Start time of a process in clock ticks after boot; empty if it has ended."""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
            state, *rest = file.read().rsplit(")", 1)[1].split()
    except OSError:
        return ""
    return "" if state in "ZX" else str(rest[18])


def _machine() -> str:
    """Identifies the scope in which process ids and memory are shared: boot and pid namespace."""
    boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="utf-8").strip()
    return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
