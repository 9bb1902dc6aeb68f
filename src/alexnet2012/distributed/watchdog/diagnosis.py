"""What the flight records of two ranks say of each other: who did not come, and to what."""

from __future__ import annotations

from dataclasses import dataclass, field

from alexnet2012.distributed.watchdog.flight_recorder import FlightEntry, FlightRecord


@dataclass(frozen=True)
class Diagnosis:
    """Why a run cannot go on: one line that every rank tells, and the ranks at fault."""

    text: str
    ranks: list[int]


@dataclass
class RankRecord:
    """A rank and its record, which may be a second old: of the other tower, elsewhere."""

    rank: int
    record: FlightRecord
    old: bool = field(default=False, kw_only=True)


def out_of_step(one: RankRecord, other: RankRecord) -> Diagnosis | None:
    """Two towers that mean different exchanges where they should meet, if they do."""
    for mine in one.record.exchanges():
        theirs = other.record.at(mine.number)
        if theirs is not None and not mine.alike(theirs):
            return _difference((one, mine), (other, theirs))
    return None


def exited(waiting: RankRecord, lost: RankRecord) -> Diagnosis:
    """Of a rank whose process is no more, or has left the run."""
    return Diagnosis(f"rank {lost.rank} ended: it {_position(waiting, lost)}", [lost.rank])


def silent(waiting: RankRecord, lost: RankRecord, silent_s: float) -> Diagnosis:
    """Of a rank whose watchdog is silent, too."""
    found = f"rank {lost.rank} has shown no sign of life for {silent_s:g} s"
    found += " (it was stopped, or its machine is lost)"
    return Diagnosis(f"{found}: it {_position(waiting, lost)}", [lost.rank])


def late(waiting: RankRecord, lost: RankRecord) -> Diagnosis:
    """Of a rank that lives and does not come."""
    found = f"rank {lost.rank} lives and lets others wait: it {_position(waiting, lost)}"
    return Diagnosis(f"{found}; if it has reason to be slow, raise mesh.timeout_s", [lost.rank])


def _position(waiting: RankRecord, lost: RankRecord) -> str:
    """Where a rank stands, as seen by one that may be waiting for it."""
    own, last = waiting.record.last(), lost.record.last()
    if lost.old and own is not None and (last is None or last.number < own.number):
        last = waiting.record.at(own.number - 1)  # which was made, so it took part
    if last is not None and not last.ended:
        return f"was in {_at(last)}"
    done = "it had made no exchange" if last is None else f"its last was {_at(last)}"
    if own is None or own.ended:
        return f"was not waited for; {done}"
    return f"did not come to {_at(own)}, where rank {waiting.rank} waits; {done}"


def _at(exchange: FlightEntry) -> str:
    return f"{exchange.name} (step {exchange.step})"


def _difference(
    one: tuple[RankRecord, FlightEntry], other: tuple[RankRecord, FlightEntry]
) -> Diagnosis:
    ranks = [one[0].rank, other[0].rank]
    for (party, came), (peer, went) in ((one, other), (other, one)):
        # What followed the exchange before, when it was made the last time.
        if came.name != went.name and came.name == _usual(party.record, came.number):
            text = f"rank {peer.rank} skipped {_at(came)} and came to {_at(went)}"
            return Diagnosis(text, [peer.rank])
    (party, came), (peer, went) = one, other
    if came.name == went.name and came.step == went.step:
        text = f"to {_at(came)} rank {party.rank} brings {came.sent_bytes} bytes"
        text += f", rank {peer.rank} {went.sent_bytes}"
    else:
        text = f"rank {party.rank} came to {_at(came)}, rank {peer.rank} to {_at(went)}"
    return Diagnosis(f"{text}: do both run the same code?", ranks)


def _usual(record: FlightRecord, number: int) -> str | None:
    """The name that came after that of the exchange before ``number``, last time."""
    before = record.at(number - 1)
    for earlier in reversed(record.exchanges()):
        if before is not None and earlier.number < number - 1 and earlier.name == before.name:
            follower = record.at(earlier.number + 1)
            return follower.name if follower is not None else None
    return None
