"""The watchdog of a rank: no rank waits for long for one that will not come.

Every exchange is written to a flight record, and compared with the other tower's before it is made.
A thread shows once a second that its process lives, and looks at the others. Whoever finds that
something is wrong says so first; all ranks take that for the cause, and end.
"""

from __future__ import annotations

import atexit
import json
import math
import mmap
import os
import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import torch.distributed as dist

from alexnet2012.config.schema import RunError
from alexnet2012.distributed.watchdog.diagnosis import (
    Diagnosis,
    RankRecord,
    exited,
    late,
    out_of_step,
    silent,
)
from alexnet2012.distributed.watchdog.failure_report import (
    AFTER_S,
    EXIT_FAILURE,
    FAILURES_DIR,
    RECORD,
    LostPeerError,
    write_failure,
)
from alexnet2012.distributed.watchdog.flight_recorder import SIZE, FlightRecord
from alexnet2012.distributed.watchdog.peers import TICK_S, Peer, address

STORE_TIMEOUT_S = 2.0  # the store may be with the rank that has stopped
CLEARED_UP_WITHIN_S = 5.0  # what became of a peer is known when an exchange with it has failed
LATE = 0.95  # of the exchanges' own limit: torch ends the process that waits
GRACE_S = 10.0  # for a rank to end by itself once it has been told why
VERDICT = "verdict"  # in the store
RECORDS = "flight.json"  # in the run directory


class Watchdog:
    """One for each process of a run; one that was not started only keeps the record."""

    def __init__(self, rank: int = 0) -> None:
        self.own = RankRecord(rank, FlightRecord())
        self.peers: list[Peer] = []
        self.folder: Path | None = None  # for the records, when something is wrong
        self._store: dist.Store | None = None
        self._stall_s, self._timeout_s = 0.0, math.inf
        self._left = threading.Event()
        self._telling = threading.Lock()
        self._told: LostPeerError | None = None
        self._exchanging = _Exchanging(self)

    @classmethod
    def start(
        cls,
        store: dist.Store,
        rank: int,
        world_size: int,
        towers: int,
        stall_s: float,
        timeout_s: float,
    ) -> Watchdog:
        """Meet the other ranks in ``store`` and keep an eye on them. Collective."""
        self = cls(rank)
        self._store, self._stall_s, self._timeout_s = store, stall_s, timeout_s
        fd = _memory(rank)
        os.ftruncate(fd, SIZE)
        self.own.record.memory = mmap.mmap(fd, SIZE)
        store.set(f"rank{rank}", json.dumps(address(fd)))
        for other in (r for r in range(world_size) if r != rank):
            same_net = other // towers == rank // towers
            there = json.loads(store.get(f"rank{other}"))
            self.peers.append(Peer.at(there, other, same_net=same_net))
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        threading.Thread(target=self._watch, name="watchdog", daemon=True).start()
        atexit.register(self.close)  # who leaves without a word is taken for killed
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Watchdog:
        return self  # a copy of a net has the same process

    def exchange(self, layer: str, direction: str, sent_bytes: int = 0) -> _Exchanging:
        """``with watchdog.exchange(…):`` around a collective.

        Raises:
            LostPeerError: another tower makes another exchange, or one has ended.
        """
        record = self.own.record
        record.begin(layer, direction, sent_bytes)
        for peer in self.peers:
            if peer.same_net and record.differs(peer.record) and (found := self._different()):
                raise self._tell(found)
        return self._exchanging

    def lost(self, error: Exception) -> Exception:
        """What stands behind a failed exchange, told; the error itself if nothing is found."""
        # Or it is a launcher's SIGTERM, which may arrive before the news that it is about.
        of_torch = isinstance(error, RuntimeError)
        until = time.monotonic() + (CLEARED_UP_WITHIN_S if of_torch else 0)
        while self.peers:
            if found := self._given() or self._different() or self._ended(failed=of_torch):
                return self._tell(found)
            if "timed out" in str(error).lower():
                slowest = min(self.peers, key=lambda peer: peer.record.begun)
                return self._tell(late(self.own, slowest))
            if time.monotonic() >= until:
                break
            time.sleep(0.02)
        return error

    def first_on_rank_0(self, work: Callable[[], None]) -> None:
        """``work()`` on rank 0, for as long as it takes, while the others wait. Collective."""
        if self.own.rank == 0:
            work()
        if self._store is None:
            dist.barrier()
        elif self.own.rank == 0:
            self._store.set("worked", "")
        else:
            while not self._store.check(["worked"]):
                time.sleep(0.1)

    def close(self, *, failed: bool = False) -> None:
        """This rank has done its part, or it has ``failed`` and its process ends."""
        if not self._left.is_set():
            self._left.set()
            self.own.record.leave(failed=failed)
            with suppress(RuntimeError):
                self._send()

    def _watch(self) -> None:
        looked = time.monotonic()
        while not self._left.wait(TICK_S):
            self.own.record.beat()
            try:
                self._send()
                self._receive()
            except RuntimeError:  # the store is gone, and with it those of other machines
                if not self._waiting():
                    continue
            # At most a few ticks: this process may have been stopped meanwhile, with all others.
            elapsed_s = min(time.monotonic() - looked, STORE_TIMEOUT_S + 2 * TICK_S)
            looked = time.monotonic()
            for peer in self.peers:
                peer.listen(elapsed_s, self.own.record.begun)
            looks = (self._given, self._different, self._ended, self._silent, self._late)
            if found := next(filter(None, (look() for look in looks)), None):
                self._end(found)

    def _end(self, found: Diagnosis) -> None:
        """End this process: its main thread may hang in an exchange, out of reach."""
        ends_by_itself = self._told is not None
        with suppress(OSError):  # the folder of causes has gone with its launcher
            self._tell(found)
        for peer in self.peers:
            if peer.near and peer.silent_s >= self._stall_s and not peer.dead():
                os.kill(peer.pid, signal.SIGKILL)  # a launcher's SIGTERM reaches none that stopped
        time.sleep(GRACE_S if ends_by_itself else AFTER_S)
        os._exit(EXIT_FAILURE)

    def _tell(self, found: Diagnosis) -> LostPeerError:
        with self._telling:
            if self._told is None:
                agreed, first = self._agree(found)
                self._told = LostPeerError(agreed.text, agreed.ranks)
                if first:
                    self._write_records(agreed)
                if first or FAILURES_DIR in os.environ:
                    write_failure(self._told, self.own.rank)
            return self._told

    def _agree(self, found: Diagnosis) -> tuple[Diagnosis, bool]:
        """The verdict that was found first by any rank, and whether it is this one."""
        mine = json.dumps([self.own.rank, asdict(found)])
        with suppress(RuntimeError):
            assert self._store is not None
            first = self._store.compare_set(VERDICT, "", mine).decode()
            return Diagnosis(**json.loads(first)[1]), first == mine
        return found, True

    def _given(self) -> Diagnosis | None:
        with suppress(RuntimeError):
            if self._store is not None and self._store.check([VERDICT]):
                return Diagnosis(**json.loads(self._store.get(VERDICT))[1])
        return None

    def _different(self) -> Diagnosis | None:
        for peer in self.peers:
            if peer.same_net and out_of_step(self.own, peer):
                time.sleep(0.01)  # it may just be writing
                if found := out_of_step(self.own, peer):
                    return found
        return None

    def _ended(self, *, failed: bool = False) -> Diagnosis | None:
        """Of a peer; once an exchange has ``failed`` one that has left or is quiet will do."""
        for peer in self.peers:
            dead = peer.dead()  # asked first: who leaves says so before it ends
            if peer.record.left:
                lost = failed
            else:  # NCCL's exchanges do not fail: who waits in one learns of a failed peer here
                signs = (failed, peer.record.failed, peer.quiet())
                lost = dead or sum(signs) >= 2
            if lost:
                return exited(self.own, peer)
        return None

    def _late(self) -> Diagnosis | None:
        """Before NCCL, which would end the process that waits, without a word of whom for."""
        for peer in self.peers:
            if peer.behind_s >= LATE * self._timeout_s:
                return late(self.own, peer)
        return None

    def _silent(self) -> Diagnosis | None:
        for peer in self.peers:
            if peer.silent_s >= self._stall_s and not peer.record.left:
                return silent(self.own, peer, self._stall_s)
        return None

    def _waiting(self) -> bool:
        last = self.own.record.last()
        return last is not None and not last.ended

    def _send(self) -> None:
        if self._store is not None and not all(peer.near for peer in self.peers):
            self._store.set(f"record{self.own.rank}", bytes(self.own.record.memory).hex())

    def _receive(self) -> None:
        for peer in self.peers:
            key = f"record{peer.rank}"
            if self._store is not None and not peer.near and self._store.check([key]):
                peer.record.memory[:] = bytes.fromhex(self._store.get(key).decode())

    def _write_records(self, found: Diagnosis) -> None:
        if self.folder is None:
            return
        parties = sorted([self.own, *self.peers], key=lambda party: party.rank)
        ranks = {p.rank: [e._asdict() for e in p.record.exchanges()] for p in parties}
        text = json.dumps({"verdict": found.text, "exchanges": ranks}, indent=1)
        with suppress(OSError):
            (self.folder / RECORDS).write_text(text + "\n", encoding="utf-8")


class _Exchanging:
    """Around a collective; the record has begun it before."""

    def __init__(self, watchdog: Watchdog) -> None:
        self._watchdog = watchdog

    def __enter__(self) -> None:
        pass

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if error is None:
            self._watchdog.own.record.end()
        elif isinstance(error, Exception) and not isinstance(error, RunError):
            found = self._watchdog.lost(error)
            if found is not error and isinstance(error, RuntimeError):
                raise found from error


def _memory(rank: int) -> int:
    """A file for the record: where our own launcher looks, else one that goes when all have."""
    if folder := os.environ.get(FAILURES_DIR):
        return os.open(Path(folder, f"{rank}{RECORD}"), os.O_RDWR | os.O_CREAT, 0o600)
    return os.memfd_create("alexnet2012")
