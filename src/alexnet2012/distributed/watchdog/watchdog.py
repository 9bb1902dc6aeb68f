"""Watchdog: ends every rank of a run soon after one of them has failed, hung or diverged.

Each collective is written to a flight record and compared with the other tower's before it runs. A
thread beats once a second to show that its process is alive, and checks the other ranks. The first
rank to find a fault publishes its diagnosis; all ranks report it and exit.
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
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as dist
from torch.profiler import record_function

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
    EXIT_FAILURE,
    FAILURES_DIR,
    PEER_EXIT_DELAY_S,
    RECORD,
    LostPeerError,
    write_failure,
)
from alexnet2012.distributed.watchdog.flight_recorder import SIZE, FlightRecord, exchange_name
from alexnet2012.distributed.watchdog.peers import BEAT_INTERVAL_S, Peer, address

STORE_TIMEOUT_S = 2.0  # the store may be on the rank that has stopped
DIAGNOSE_WITHIN_S = 5.0  # after a collective has failed, the cause shows up within this time
LATE_FRACTION = 0.95  # of timeout_s: before NCCL ends the process without naming the late rank
CLOSING_S = 2 * STORE_TIMEOUT_S + BEAT_INTERVAL_S  # for the thread to leave the store
GRACE_S = 10.0  # for a rank to exit by itself once it has raised the diagnosis
VERDICT = "verdict"  # key in the store
RECORDS = "flight.json"  # in the run directory


class Watchdog:
    """The watchdog of one process; unless it is started it only keeps the flight record."""

    def __init__(self, rank: int = 0) -> None:
        self.this_rank = RankRecord(rank, FlightRecord())
        self.peers: list[Peer] = []
        self.folder: Path | None = None  # where the flight records are written after a fault
        self.traced = False  # name exchanges in a trace of torch's profiler: 8 µs for each
        self._store: dist.Store | None = None
        self._stall_s, self._timeout_s = 0.0, math.inf
        self._capturing: Callable[[str, str, int], None] | None = None
        self._closed = threading.Event()
        self._thread: threading.Thread | None = None
        self._reporting = threading.Lock()
        self._reported: LostPeerError | None = None

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
        """Find the other ranks through ``store`` and start watching them. Collective."""
        self = cls(rank)
        self._store, self._stall_s, self._timeout_s = store, stall_s, timeout_s
        fd = _record_file(rank)
        self.this_rank.record.memory = mmap.mmap(fd, SIZE)
        store.set(f"rank{rank}", json.dumps(address(fd)))
        for peer_rank in (r for r in range(world_size) if r != rank):
            same_replica = peer_rank // towers == rank // towers
            peer_address = json.loads(store.get(f"rank{peer_rank}"))
            self.peers.append(Peer.at(peer_address, peer_rank, same_replica=same_replica))
        store.set_timeout(timedelta(seconds=STORE_TIMEOUT_S))
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()
        atexit.register(self.close)  # a process that exits without closing counts as killed
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Watchdog:
        return self  # a copy of a model lives in the same process

    def __reduce__(self) -> tuple[type[Watchdog], tuple[int]]:
        return type(self), (self.this_rank.rank,)  # a pickled one may be read by another process

    @contextmanager
    def exchange(self, layer: str, direction: str, sent_bytes: int = 0) -> Iterator[None]:
        """Context manager around a collective: ``with watchdog.exchange("conv3", "forward"):``.

        Raises:
            LostPeerError: another tower runs a different collective, or a rank has exited.
        """
        if self._capturing is not None:
            self._capturing(layer, direction, sent_bytes)
            yield
            return
        record = self.this_rank.record
        record.begin(layer, direction, sent_bytes)
        for peer in self.peers:
            if (
                peer.same_replica
                and record.mismatches(peer.record)
                and (diagnosis := self._find_mismatch())
            ):
                raise self._report(diagnosis)
        try:
            if self.traced:
                with record_function(exchange_name(layer, direction)):
                    yield
            else:
                yield
        except RunError:
            raise
        except Exception as error:
            cause = self.explain(error)
            if cause is error or not isinstance(error, RuntimeError):
                raise
            raise cause from error
        record.end()

    @contextmanager
    def capturing(self, begin: Callable[[str, str, int], None]) -> Iterator[None]:
        """Exchanges within are part of a graph: passed to ``begin``, not to the flight record."""
        self._capturing = begin
        try:
            yield
        finally:
            self._capturing = None

    def explain(self, error: Exception) -> Exception:
        """The reported cause of a failed collective; ``error`` itself if no rank is at fault."""
        # A launcher's SIGTERM raises in a collective, too; it must not wait for a diagnosis.
        from_torch = isinstance(error, RuntimeError)
        deadline = time.monotonic() + (DIAGNOSE_WITHIN_S if from_torch else 0)
        while self.peers:
            if diagnosis := (
                self._published() or self._find_mismatch() or self._find_exited(failed=from_torch)
            ):
                return self._report(diagnosis)
            if "timed out" in str(error).lower():
                slowest = min(self.peers, key=lambda peer: peer.record.begun)
                return self._report(late(self.this_rank, slowest))
            if time.monotonic() >= deadline:
                break
            time.sleep(0.02)
        return error

    def first_on_rank_0(self, work: Callable[[], None]) -> None:
        """Run ``work()`` on rank 0, without a time limit, while the others wait. Collective."""
        if self.this_rank.rank == 0:
            work()
        if self._store is None:
            if dist.is_initialized():
                dist.barrier()
        elif self.this_rank.rank == 0:
            self._store.set("worked", "")
        else:
            while not self._store.check(["worked"]):
                time.sleep(0.1)

    def close(self, *, failed: bool = False) -> None:
        """Stop watching: this rank has finished, or it has ``failed`` and its process exits."""
        if not self._closed.is_set():
            self._closed.set()
            self.this_rank.record.close(failed=failed)
            with suppress(RuntimeError):
                self._send()
            # In the store's C++ code it would abort the interpreter's exit.
            if self._thread is not None and not failed:
                self._thread.join(CLOSING_S)

    def _watch(self) -> None:
        checked_at = time.monotonic()
        while not self._closed.wait(BEAT_INTERVAL_S):
            self.this_rank.record.beat()
            try:
                self._send()
                self._receive()
            except RuntimeError:  # the store is gone, and the records of other machines with it
                last = self.this_rank.record.last()
                if last is None or last.ended:
                    continue
            # Capped: this process may itself have been stopped meanwhile, with all the others.
            limit_s = STORE_TIMEOUT_S + 2 * BEAT_INTERVAL_S
            elapsed_s = min(time.monotonic() - checked_at, limit_s)
            checked_at = time.monotonic()
            for peer in self.peers:
                peer.update(elapsed_s, self.this_rank.record)
            checks = (self._published, self._find_mismatch, self._find_exited, self._find_slow)
            if diagnosis := next(filter(None, (check() for check in checks)), None):
                self._end_process(diagnosis)

    def _end_process(self, diagnosis: Diagnosis) -> None:
        """Exit from this thread: the main thread may hang in a collective and cannot raise."""
        main_thread_raised = self._reported is not None
        with suppress(OSError):  # the launcher has exited and removed the folder
            self._report(diagnosis)
        for peer in self.peers:
            if peer.same_machine and peer.silent_s >= self._stall_s and not peer.dead():
                os.kill(peer.pid, signal.SIGKILL)  # a stopped process ignores a launcher's SIGTERM
        time.sleep(GRACE_S if main_thread_raised else PEER_EXIT_DELAY_S)
        os._exit(EXIT_FAILURE)

    def _report(self, diagnosis: Diagnosis) -> LostPeerError:
        with self._reporting:
            if self._reported is None:
                agreed, is_first = self._agree(diagnosis)
                self._reported = LostPeerError(agreed.text, agreed.ranks)
                if is_first:
                    self._write_records(agreed)
                if is_first or FAILURES_DIR in os.environ:
                    write_failure(self._reported, self.this_rank.rank)
            return self._reported

    def _agree(self, diagnosis: Diagnosis) -> tuple[Diagnosis, bool]:
        """The diagnosis that any rank published first, and whether it is this rank's."""
        mine = json.dumps([self.this_rank.rank, asdict(diagnosis)])
        with suppress(RuntimeError):
            assert self._store is not None
            first = self._store.compare_set(VERDICT, "", mine).decode()
            return Diagnosis(**json.loads(first)[1]), first == mine
        return diagnosis, True

    def _published(self) -> Diagnosis | None:
        with suppress(RuntimeError):
            if self._store is not None and self._store.check([VERDICT]):
                return Diagnosis(**json.loads(self._store.get(VERDICT))[1])
        return None

    def _find_mismatch(self) -> Diagnosis | None:
        for peer in self.peers:
            if peer.same_replica and out_of_step(self.this_rank, peer):
                time.sleep(0.01)  # the peer may be writing its record right now
                if diagnosis := out_of_step(self.this_rank, peer):
                    return diagnosis
        return None

    def _find_exited(self, *, failed: bool = False) -> Diagnosis | None:
        """``failed``: a collective has failed, so a peer that closed or is quiet is the cause."""
        for peer in self.peers:
            dead = peer.dead()  # checked first: a process marks its record before it exits
            if peer.record.closed:
                lost = failed
            else:  # NCCL collectives do not fail: a rank that waits in one learns of it this way
                signs = (failed, peer.record.failed, peer.quiet())
                lost = dead or sum(signs) >= 2
            if lost:
                return exited(self.this_rank, peer)
        return None

    def _find_slow(self) -> Diagnosis | None:
        for peer in self.peers:
            if peer.silent_s >= self._stall_s and not peer.record.closed:
                return silent(self.this_rank, peer, self._stall_s)
        for peer in self.peers:
            if peer.behind_s >= LATE_FRACTION * self._timeout_s:
                return late(self.this_rank, peer)
        return None

    def _send(self) -> None:
        if self._store is not None and not all(peer.same_machine for peer in self.peers):
            memory = bytes(self.this_rank.record.memory)
            self._store.set(f"record{self.this_rank.rank}", memory.hex())

    def _receive(self) -> None:
        for peer in self.peers:
            key = f"record{peer.rank}"
            if self._store is not None and not peer.same_machine and self._store.check([key]):
                peer.record.memory[:] = bytes.fromhex(self._store.get(key).decode())

    def _write_records(self, diagnosis: Diagnosis) -> None:
        if self.folder is None:
            return
        ranks = sorted([self.this_rank, *self.peers], key=lambda rank: rank.rank)
        entries = {r.rank: [entry._asdict() for entry in r.record.exchanges()] for r in ranks}
        lasts = {r.rank: last._asdict() for r in ranks if (last := r.record.last())}
        records = {"verdict": diagnosis.text, "exchanges": entries, "last": lasts}
        text = json.dumps(records, indent=1)
        with suppress(OSError):
            (self.folder / RECORDS).write_text(text + "\n", encoding="utf-8")


def _record_file(rank: int) -> int:
    """A file for the flight record: where our launcher reads it, else in memory."""
    if folder := os.environ.get(FAILURES_DIR):
        file = Path(folder, f"{rank}{RECORD}")
        fd = os.open(file, os.O_RDWR | os.O_CREAT, 0o600)
        try:  # writing to a mapped sparse file on a full disk would end the process
            os.posix_fallocate(fd, 0, SIZE)
        except OSError:
            os.close(fd)
            file.unlink()
        else:
            return fd
    fd = os.memfd_create("alexnet2012")
    os.ftruncate(fd, SIZE)
    return fd
