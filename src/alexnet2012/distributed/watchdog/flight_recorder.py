"""Flight recorder: the last collectives of a process, readable by others even after it has died.

The record is a ring buffer in memory shared by the processes of a machine, so the record of a
process that crashed, was killed or was stopped can still be read.
"""

from __future__ import annotations

import struct
import time
from typing import Any, NamedTuple

KEPT = 64  # exchanges; a training step of the paper's network has ten
_HEAD = struct.Struct("<QQQ")  # exchanges begun, watchdog beats, how the process closed
_CLOSED, _FAILED = 1, 2
_ENTRY = struct.Struct("<QQQ32s16sdd")
_MATCHING, _ENDED = 72, 80  # offsets in an entry: end of the fields equal on all ranks, end time
SIZE = _HEAD.size + KEPT * _ENTRY.size
# The collective that towers run, by direction; elsewhere the direction is the collective itself.
_TOWER_COLLECTIVES = dict.fromkeys(("forward", "inference", "input"), "all-gather")
_TOWER_COLLECTIVES["backward"] = "reduce-scatter"


class FlightEntry(NamedTuple):
    """One collective; all fields but the times are equal on every rank that takes part."""

    number: int  # from 1, over the lifetime of the process
    step: int
    sent_bytes: int  # to each peer
    layer: str
    direction: str
    began: float  # Unix time in seconds
    ended: float  # 0 while in progress; on CUDA the time when it was enqueued

    @property
    def name(self) -> str:
        return exchange_name(self.layer, self.direction)


def exchange_name(layer: str, direction: str) -> str:
    """The collective and its operand: ``all-gather conv3 forward``, ``all-reduce loss``."""
    collective = _TOWER_COLLECTIVES.get(direction)
    if collective is None:
        return f"{direction} {layer}"
    operand = layer if layer == direction else f"{layer} {direction}"
    return f"{collective} {operand}"


class FlightRecord:
    """Flight record in ``memory`` (SIZE bytes): written by its process, read by any other."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = bytearray(SIZE) if memory is None else memory
        self.step = 0  # training step of the next exchanges
        self._begun = 0

    def begin(self, layer: str, direction: str, sent_bytes: int) -> None:
        self._begun += 1
        began = time.time()
        entry = (self._begun, self.step, sent_bytes, layer.encode(), direction.encode(), began, 0.0)
        _ENTRY.pack_into(self.memory, _offset(self._begun), *entry)
        struct.pack_into("<Q", self.memory, 0, self._begun)

    def end(self) -> None:
        struct.pack_into("<d", self.memory, _offset(self._begun) + _ENDED, time.time())

    def beat(self) -> None:
        struct.pack_into("<Q", self.memory, 8, self.beats + 1)

    def close(self, *, failed: bool = False) -> None:
        """Mark that this process finished, so its exit is no fault, or that it has ``failed``."""
        struct.pack_into("<Q", self.memory, 16, _FAILED if failed else _CLOSED)

    def mismatches(self, other: FlightRecord) -> bool:
        """Whether ``other`` holds a different collective under this record's last number."""
        start = _offset(self._begun)
        mine, theirs = (r.memory[start : start + _MATCHING] for r in (self, other))
        return mine != theirs and mine[:8] == theirs[:8] and other.begun >= self._begun

    @property
    def begun(self) -> int:
        return self._head(0)

    @property
    def beats(self) -> int:
        return self._head(1)

    @property
    def closed(self) -> bool:
        return self._head(2) == _CLOSED

    @property
    def failed(self) -> bool:
        return self._head(2) == _FAILED

    def at(self, number: int) -> FlightEntry | None:
        """An exchange by its number; None before it begins and once it is overwritten."""
        entry = _ENTRY.unpack_from(self.memory, _offset(number))
        if number < 1 or entry[0] != number:
            return None
        _, step, sent_bytes, *texts, began, ended = entry
        layer, direction = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
        return FlightEntry(number, step, sent_bytes, layer, direction, began, ended)

    def last(self) -> FlightEntry | None:
        return self.at(self.begun)

    def exchanges(self) -> list[FlightEntry]:
        """All exchanges still in the ring, oldest first."""
        begun = self.begun
        entries = (self.at(number) for number in range(max(1, begun - KEPT + 1), begun + 1))
        return [entry for entry in entries if entry is not None]

    def _head(self, index: int) -> int:
        value: int = _HEAD.unpack_from(self.memory, 0)[index]
        return value


def _offset(number: int) -> int:
    return _HEAD.size + number % KEPT * _ENTRY.size
