"""The flight record: what a process exchanged last, legible to others after it has died.

A ring of the last exchanges, in memory that the processes of a machine share: the record of one
that was killed, stopped or has crashed is as good as a living one's.
"""

from __future__ import annotations

import struct
import time
from typing import Any, NamedTuple

KEPT = 64  # exchanges; a step of the paper's net has ten
_HEAD = struct.Struct("<QQQ")  # exchanges begun, beats of the watchdog, how it left
_LEFT, _FAILED = 1, 2
_ENTRY = struct.Struct("<QQQ32s16sdd")
_ALIKE, _ENDED = 72, 80  # where in an entry: the end of what is alike on all ranks, the time
SIZE = _HEAD.size + KEPT * _ENTRY.size


class FlightEntry(NamedTuple):
    """One exchange, alike on all that took part but for the times."""

    number: int  # from 1, over the life of the process
    step: int
    sent_bytes: int  # to each peer
    layer: str
    direction: str
    began: float  # seconds since 1970
    ended: float  # 0 while under way; on CUDA when it was handed over

    @property
    def name(self) -> str:
        return self.layer if self.layer == self.direction else f"{self.layer} {self.direction}"

    def alike(self, other: FlightEntry) -> bool:
        """Whether two ranks mean the same exchange."""
        return self[:5] == other[:5]


class FlightRecord:
    """Written by the process that it is of, read by any; ``memory`` has SIZE bytes."""

    def __init__(self, memory: Any = None) -> None:
        self.memory = bytearray(SIZE) if memory is None else memory
        self.step = 0  # that the next exchanges belong to
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

    def leave(self, *, failed: bool = False) -> None:
        """This process has done its part, and that it ends is no fault; or it has failed."""
        struct.pack_into("<Q", self.memory, 16, _FAILED if failed else _LEFT)

    def differs(self, other: FlightRecord) -> bool:
        """Whether another record has another exchange in the place of this one's last."""
        start = _offset(self._begun)
        mine, theirs = (r.memory[start : start + _ALIKE] for r in (self, other))
        return mine != theirs and mine[:8] == theirs[:8] and other.begun >= self._begun

    @property
    def begun(self) -> int:
        return self._head(0)

    @property
    def beats(self) -> int:
        return self._head(1)

    @property
    def left(self) -> bool:
        return self._head(2) == _LEFT

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
        """All that are kept, oldest first."""
        begun = self.begun
        kept = (self.at(number) for number in range(max(1, begun - KEPT + 1), begun + 1))
        return [exchange for exchange in kept if exchange is not None]

    def _head(self, index: int) -> int:
        value: int = _HEAD.unpack_from(self.memory, 0)[index]
        return value


def _offset(number: int) -> int:
    return _HEAD.size + number % KEPT * _ENTRY.size
