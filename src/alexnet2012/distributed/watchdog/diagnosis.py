"""Diagnoses from the flight records of two ranks: which rank failed, and at which collective."""

from __future__ import annotations

from dataclasses import dataclass, field

from alexnet2012.distributed.watchdog.flight_recorder import FlightEntry, FlightRecord


@dataclass(frozen=True)
class Diagnosis:
    """Why a run cannot continue: one line, the same on every rank, and the ranks at fault."""

    text: str
    ranks: list[int]


@dataclass
class RankRecord:
    """A rank and its flight record."""

    rank: int
    record: FlightRecord
    same_replica: bool = field(default=True, kw_only=True)  # as the rank that reads the record
    stale: bool = field(default=False, kw_only=True)  # up to a second old: on another machine


def out_of_step(first: RankRecord, second: RankRecord) -> Diagnosis | None:
    """The first collective on which two towers disagree, or None."""
    for entry in first.record.exchanges():
        other = second.record.at(entry.number)
        if other is not None and entry[:5] != other[:5]:
            return _mismatch((first, entry), (second, other))
    return None


def exited(waiting: RankRecord, lost: RankRecord) -> Diagnosis:
    return Diagnosis(f"rank {lost.rank} exited: it {_position(waiting, lost)}", [lost.rank])


def silent(waiting: RankRecord, lost: RankRecord, silent_s: float) -> Diagnosis:
    symptom = f"rank {lost.rank} has shown no sign of life for {silent_s:g} s"
    cause = "it was stopped, or its machine is down"
    return Diagnosis(f"{symptom} ({cause}): it {_position(waiting, lost)}", [lost.rank])


def late(waiting: RankRecord, lost: RankRecord) -> Diagnosis:
    position = _position(waiting, lost, alive=True)
    remedy = f"if rank {lost.rank} is expected to be slow, raise mesh.timeout_s"
    return Diagnosis(f"rank {lost.rank} is alive but {position}; {remedy}", [lost.rank])


def _position(waiting: RankRecord, lost: RankRecord, *, alive: bool = False) -> str:
    """Where ``lost`` is in its sequence of collectives, as seen by ``waiting``."""
    expected, last = waiting.record.last(), lost.record.last()
    stale = lost.stale or (lost.same_replica and lost.record.replays)  # its count is of a beat
    if stale and expected is not None and (last is None or _order(last) < _order(expected)):
        # The waiting rank has completed this one, so the lost rank took part in it.
        last = waiting.record.before(expected)
    if last is not None and not last.ended:
        return f"{'is still' if alive else 'was'} in {_at(last)}"
    history = f"rank {lost.rank} had run no collective"
    if last is not None:
        history = f"rank {lost.rank}'s last collective was {_at(last)}"
    if expected is None or expected.ended:
        return f"{'has' if alive else 'had'} no rank waiting for it; {history}"
    reached = "has not reached" if alive else "did not reach"
    return f"{reached} {_at(expected)}; rank {waiting.rank} is waiting; {history}"


def _order(exchange: FlightEntry) -> tuple[int, int]:
    return exchange.number, exchange.position


def _at(exchange: FlightEntry) -> str:
    return f"{exchange.name} (step {exchange.step})"


def _mismatch(
    first: tuple[RankRecord, FlightEntry], second: tuple[RankRecord, FlightEntry]
) -> Diagnosis:
    for (regular, expected), (skipping, called) in ((first, second), (second, first)):
        # A rank is right if it calls what followed the preceding collective last time.
        usual = _usual(regular.record, expected.number)
        if called.name != expected.name == usual:
            text = f"rank {skipping.rank} skipped {_at(expected)} and called {_at(called)}"
            return Diagnosis(text, [skipping.rank])
    (one, entry), (two, other) = first, second
    if entry.name == other.name and entry.step == other.step:
        text = f"{_at(entry)}: rank {one.rank} sends {entry.sent_bytes} bytes"
        text += f", rank {two.rank} sends {other.sent_bytes} bytes"
    else:
        text = f"rank {one.rank} called {_at(entry)}, rank {two.rank} called {_at(other)}"
    return Diagnosis(f"{text}; check that both ranks run the same code", [one.rank, two.rank])


def _usual(record: FlightRecord, number: int) -> str | None:
    """Name of the collective that followed the predecessor of ``number`` the last time it ran."""
    before = record.at(number - 1)
    for earlier in reversed(record.exchanges()):
        if before is not None and earlier.number < number - 1 and earlier.name == before.name:
            follower = record.at(earlier.number + 1)
            return follower.name if follower is not None else None
    return None
