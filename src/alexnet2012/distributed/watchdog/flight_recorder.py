"""Flight recorder: the last collectives of a process, readable by others even after it has died.

The record is a ring buffer in memory shared by the processes of a machine, so the record of a
process that crashed, was killed or was stopped can still be read.

A replayed CUDA graph is one entry. The collectives within it are listed behind the ring buffer, and
a count of those that the replay has begun tells which of them it is in.
"""

from __future__ import annotations

import struct
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

KEPT = 64  # exchanges; a training step of the paper's network has ten
KEPT_OF_GRAPH = 256  # exchanges of a graph
REPLAY = "replay"  # direction of the entry of a replayed graph
# Exchanges begun, watchdog beats, how the process closed; exchanges of a graph, and how many of
# them the current replay has begun.
_HEAD = struct.Struct("<QQQQQ")
_CLOSED, _FAILED = 1, 2
_ENTRY = struct.Struct("<QQQ32s16sdd")
_MATCHING, _ENDED = 72, 80  # offsets in an entry: end of the fields equal on all ranks, end time
_GRAPH = _HEAD.size + KEPT * _ENTRY.size  # offset of the exchanges of a graph
SIZE = _GRAPH + KEPT_OF_GRAPH * _ENTRY.size
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
    position: int = 0  # from 1, in a replayed graph

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
        self._replayed: Callable[[], int] | None = None

    def set_graph(self, exchanges: Sequence[FlightEntry], replayed: Callable[[], int]) -> None:
        """List the exchanges of a graph; ``replayed()`` returns how many a replay has begun so far.

        Once all have ended, it returns their number plus one.
        """
        self._replayed = replayed
        for index, exchange in enumerate(exchanges[:KEPT_OF_GRAPH]):
            texts = exchange.layer.encode(), exchange.direction.encode()
            entry = (index + 1, 0, exchange.sent_bytes, *texts, 0.0, 0.0)
            _ENTRY.pack_into(self.memory, _GRAPH + index * _ENTRY.size, *entry)
        struct.pack_into("<Q", self.memory, 24, len(exchanges))

    def begin(self, layer: str, direction: str, sent_bytes: int) -> None:
        if direction == REPLAY:
            struct.pack_into("<Q", self.memory, 32, 0)
        self._begun += 1
        began = time.time()
        entry = (self._begun, self.step, sent_bytes, layer.encode(), direction.encode(), began, 0.0)
        _ENTRY.pack_into(self.memory, _offset(self._begun), *entry)
        struct.pack_into("<Q", self.memory, 0, self._begun)

    def end(self) -> None:
        struct.pack_into("<d", self.memory, _offset(self._begun) + _ENDED, time.time())

    def beat(self) -> None:
        struct.pack_into("<Q", self.memory, 8, self.beats + 1)
        struct.pack_into("<Q", self.memory, 32, self.replayed)

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
    def replayed(self) -> int:
        """Exchanges that the current replay has begun; in another process, as of its last beat."""
        return self._head(4) if self._replayed is None else self._replayed()

    @property
    def progress(self) -> tuple[int, int]:
        """Grows with every exchange, also within a replay."""
        return self.begun, self.replayed

    @property
    def replays(self) -> bool:
        """Whether this process has a graph with exchanges."""
        return self._head(3) > 0

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
        entry = _unpack(self.memory, _offset(number))
        return entry if number >= 1 and entry.number == number else None

    def last(self) -> FlightEntry | None:
        """The last exchange that has begun; if it is a replay, the last one within it."""
        return self._begun_of(self.begun, self.replayed)

    def before(self, exchange: FlightEntry) -> FlightEntry | None:
        """The exchange that ended before ``exchange``, which :meth:`last` has returned."""
        if exchange.position > 1:
            before = self._begun_of(exchange.number, exchange.position - 1)
            return before and before._replace(ended=before.began)
        return self._begun_of(exchange.number - 1, 1 + self._head(3))

    def _begun_of(self, number: int, replayed: int) -> FlightEntry | None:
        """Entry ``number``; if it is a replay, the last exchange of those it has begun."""
        entry, of_graph = self.at(number), self._head(3)
        if entry is None or entry.direction != REPLAY or of_graph > KEPT_OF_GRAPH:
            return entry
        if replayed == 0 or of_graph == 0:
            return self._begun_of(number - 1, 1 + of_graph)
        position = min(replayed, of_graph)
        exchange = _unpack(self.memory, _GRAPH + (position - 1) * _ENTRY.size)
        return exchange._replace(
            number=number,
            step=entry.step,
            began=entry.began,
            ended=max(entry.began, entry.ended) if replayed > of_graph else 0.0,
            position=position,
        )

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


def _unpack(memory: Any, offset: int) -> FlightEntry:
    number, step, sent_bytes, *texts, began, ended = _ENTRY.unpack_from(memory, offset)
    layer, direction = (text.rstrip(b"\0").decode(errors="replace") for text in texts)
    return FlightEntry(number, step, sent_bytes, layer, direction, began, ended)
