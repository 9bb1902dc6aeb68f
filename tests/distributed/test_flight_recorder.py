"""Flight records, and the diagnoses from two of them."""

from __future__ import annotations

import time

import pytest

from alexnet2012.distributed.watchdog.diagnosis import RankRecord, exited, late, out_of_step, silent
from alexnet2012.distributed.watchdog.flight_recorder import (
    KEPT,
    KEPT_OF_GRAPH,
    REPLAY,
    FlightEntry,
    FlightRecord,
)
from alexnet2012.distributed.watchdog.peers import Peer
from alexnet2012.distributed.watchdog.watchdog import Watchdog

STEP = ("conv3", "fc6", "fc7", "fc8")


def recorded(*layers: str, sent_bytes: int = 8, in_progress: bool = False) -> FlightRecord:
    """A record of forward all-gathers; each conv3 begins a step."""
    record = FlightRecord()
    for layer in layers:
        record.step += layer == "conv3"
        record.begin(layer, "forward", sent_bytes)
        record.end()
    if in_progress:
        record.begin("logits", "forward", sent_bytes)
    return record


def test_a_record_can_be_read_from_its_bytes_alone() -> None:
    began = time.time()
    record = FlightRecord(bytearray(FlightRecord().memory))
    record.step = 7
    record.begin("conv3", "backward", 1 << 40)
    (entry,) = FlightRecord(bytes(record.memory)).exchanges()
    assert (entry.number, entry.step, entry.sent_bytes) == (1, 7, 1 << 40)
    assert entry.name == "reduce-scatter conv3 backward"
    assert began <= entry.began <= time.time()
    assert entry.ended == 0
    record.end()
    (entry,) = FlightRecord(bytes(record.memory)).exchanges()
    assert entry.ended >= entry.began


def test_a_record_keeps_the_last_exchanges_and_drops_older_ones() -> None:
    record = recorded(*STEP * KEPT)
    numbers = [exchange.number for exchange in record.exchanges()]
    assert numbers == list(range(3 * KEPT + 1, 4 * KEPT + 1))
    assert record.at(3 * KEPT) is None
    assert record.at(4 * KEPT + 1) is None
    assert record.last() == record.at(4 * KEPT)


def test_names_of_any_length_and_script_are_truncated() -> None:
    record = FlightRecord()
    record.begin("é" * 100, "x" * 100, 0)
    record.begin("next", "forward", 0)
    first, second = record.exchanges()
    assert first.layer.startswith("é" * 16)
    assert second.layer == "next"


@pytest.mark.parametrize(
    ("layer", "direction", "name"),
    [
        ("conv3", "forward", "all-gather conv3 forward"),
        ("conv3", "inference", "all-gather conv3 inference"),
        ("conv3", "backward", "reduce-scatter conv3 backward"),
        ("input", "input", "all-gather input"),
        ("gradients", "all-reduce", "all-reduce gradients"),
        ("configuration", "broadcast", "broadcast configuration"),
    ],
)
def test_exchanges_are_named_after_their_collective(layer: str, direction: str, name: str) -> None:
    record = FlightRecord()
    record.begin(layer, direction, 0)
    (entry,) = record.exchanges()
    assert entry.name == name


def test_a_mismatch_is_detected_before_the_collective_runs() -> None:
    first = recorded(*STEP)
    assert not first.mismatches(recorded(*STEP))
    assert not first.mismatches(recorded(*STEP[:3]))  # the other rank has not reached it yet
    assert first.mismatches(recorded(*STEP[:3], "fc7"))
    assert first.mismatches(recorded(*STEP, sent_bytes=9))


def mismatch(first: FlightRecord, second: FlightRecord) -> str | None:
    diagnosis = out_of_step(RankRecord(0, first), RankRecord(1, second))
    return None if diagnosis is None else diagnosis.text


def test_records_that_agree_on_their_common_exchanges_do_not_mismatch() -> None:
    assert mismatch(recorded(*STEP * 3), recorded(*STEP * 3)) is None
    assert mismatch(recorded(*STEP * 3), recorded(*STEP)) is None
    assert mismatch(FlightRecord(), recorded(*STEP)) is None


@pytest.mark.parametrize(
    ("other", "start"),
    [
        (
            recorded(*STEP, "conv3", "fc7"),
            "rank 1 skipped all-gather fc6 forward (step 2) and called all-gather fc7",
        ),
        (
            recorded(*STEP, "conv3", "fc6", "fc6"),
            "rank 1 skipped all-gather fc7 forward (step 2) and called",
        ),
        (
            recorded("conv3", "fc7"),
            "rank 0 called all-gather fc6 forward (step 1), rank 1 called all-gather fc7",
        ),
        (
            recorded(*STEP, sent_bytes=9),
            "all-gather conv3 forward (step 1): rank 0 sends 8 bytes, rank 1 sends 9 bytes; check",
        ),
    ],
)
def test_the_first_mismatch_is_reported(other: FlightRecord, start: str) -> None:
    text = mismatch(recorded(*STEP * 2), other)
    assert text is not None
    assert text.startswith(start)


def test_either_rank_identifies_the_one_that_skipped() -> None:
    regular, skipping = recorded(*STEP * 2), recorded(*STEP, "conv3", "fc7")
    for first, second in (
        (RankRecord(0, regular), RankRecord(1, skipping)),
        (RankRecord(1, skipping), RankRecord(0, regular)),
    ):
        diagnosis = out_of_step(first, second)
        assert diagnosis is not None
        assert diagnosis.ranks == [1]
        assert diagnosis.text.startswith("rank 1 skipped all-gather fc6 forward (step 2)")


WAITS = "all-gather logits forward (step 1); rank 0 is waiting; rank 1"
FC8 = "'s last collective was all-gather fc8 forward (step 1)"


@pytest.mark.parametrize(
    ("waiting", "lost", "dead", "alive"),
    [
        (recorded(*STEP, in_progress=True), recorded(*STEP),
         f"it did not reach {WAITS}{FC8}", f"has not reached {WAITS}{FC8}"),
        (recorded(*STEP, in_progress=True), FlightRecord(),
         f"it did not reach {WAITS} had run no collective",
         f"has not reached {WAITS} had run no collective"),
        (recorded(*STEP), recorded(*STEP, in_progress=True),
         "it was in all-gather logits forward (step 1)",
         "is still in all-gather logits forward (step 1)"),
        (recorded(*STEP), recorded(*STEP),
         f"it had no rank waiting for it; rank 1{FC8}", f"has no rank waiting for it; rank 1{FC8}"),
    ],
)  # fmt: skip
def test_a_diagnosis_states_the_position_of_the_lost_rank(
    waiting: FlightRecord, lost: FlightRecord, dead: str, alive: str
) -> None:
    ranks = RankRecord(0, waiting), RankRecord(1, lost)
    for diagnosis in (exited(*ranks), silent(*ranks, 20)):
        assert diagnosis.ranks == [1]
        assert diagnosis.text.endswith(f": {dead}")
    diagnosis = late(*ranks)
    assert diagnosis.ranks == [1]
    assert diagnosis.text.startswith(f"rank 1 is alive but {alive}; if rank 1 is expected to be")


def replaying(*begun: int, layers: tuple[str, ...] = STEP) -> FlightRecord:
    """A record of replays of a graph, which have ``begun`` so many of its exchanges."""
    record = FlightRecord()
    graph = [FlightEntry(0, 0, 8, layer, "forward", 0, 0) for layer in layers]
    for count in begun:
        record.set_graph(graph, lambda count=count: count)
        record.step += 1
        record.begin("step", REPLAY, 32)
        record.end()  # enqueued
    record.beat()
    return record


def test_the_last_exchange_is_the_one_within_a_replay() -> None:
    """Also from the bytes alone, as another process reads them."""
    for begun, layer, step, ended in (
        (0, "fc8", 1, True),  # the replay has not begun any: the last one of the step before
        (1, "conv3", 2, False),
        (3, "fc7", 2, False),
        (5, "fc8", 2, True),
    ):
        record = replaying(5, begun)
        for last in (record.last(), FlightRecord(bytes(record.memory)).last()):
            assert last is not None
            assert (last.name, last.step) == (f"all-gather {layer} forward", step)
            assert (last.ended > 0) is ended


def test_a_graph_with_more_exchanges_than_are_kept_is_named_as_a_whole() -> None:
    last = replaying(3, layers=KEPT_OF_GRAPH * ("conv3",) + ("fc6",)).last()
    assert last is not None
    assert last.name == "replay step"


@pytest.mark.parametrize(
    ("waiting", "lost", "position"),
    [
        (replaying(5, 1), replaying(5), "it did not reach all-gather conv3 forward (step 2); "
         "rank 0 is waiting; rank 1's last collective was all-gather fc8 forward (step 1)"),
        (replaying(5, 3), replaying(5, 2), "it did not reach all-gather fc7 forward (step 2); "
         "rank 0 is waiting; rank 1's last collective was all-gather fc6 forward (step 2)"),
        # Its count is of its last beat: it took part in all that the waiting rank has completed.
        (replaying(5, 3), replaying(5, 0), "it did not reach all-gather fc7 forward (step 2); "
         "rank 0 is waiting; rank 1's last collective was all-gather fc6 forward (step 2)"),
        (replaying(5, 1), replaying(2), "it did not reach all-gather conv3 forward (step 2); "
         "rank 0 is waiting; rank 1's last collective was all-gather fc8 forward (step 1)"),
        (replaying(5, 3), replaying(5, 3), "it was in all-gather fc7 forward (step 2)"),
        (replaying(5), replaying(5), "it had no rank waiting for it; "
         "rank 1's last collective was all-gather fc8 forward (step 1)"),
    ],
)  # fmt: skip
def test_a_diagnosis_names_the_exchange_within_a_replay(
    waiting: FlightRecord, lost: FlightRecord, position: str
) -> None:
    assert exited(RankRecord(0, waiting), RankRecord(1, lost)).text == f"rank 1 exited: {position}"


def test_a_tower_that_replays_what_another_runs_eagerly_is_a_mismatch() -> None:
    text = mismatch(replaying(5), recorded("conv3"))
    assert text is not None
    assert text.startswith("rank 0 called replay step (step 1), rank 1 called all-gather conv3")


def test_a_peer_that_stands_still_within_a_replay_is_behind() -> None:
    peer = Peer(1, replaying(5, 2), same_replica=True, same_machine=True, pid=1, started="0")
    for begun, behind_s in ((3, 0), (3, 1), (3, 2), (2, 0)):  # at first it has just moved
        peer.update(1, replaying(5, begun))
        assert peer.behind_s == behind_s
    peer.record = replaying(5, 4)
    peer.update(1, replaying(5, 5))
    assert peer.behind_s == 0


def test_a_peer_is_silent_since_its_last_beat() -> None:
    record = FlightRecord()
    peer = Peer(1, record, same_replica=True, same_machine=True, pid=1, started="0")
    record.beat()
    for seconds, beat in ((1, False), (1, False), (1, True), (1, False)):
        if beat:
            record.beat()
        peer.update(seconds, FlightRecord())
    assert peer.silent_s == 1


def test_a_peer_is_behind_until_it_begins_the_exchange_of_this_rank() -> None:
    this_record, peer_record = FlightRecord(), FlightRecord()
    peer = Peer(1, peer_record, same_replica=True, same_machine=True, pid=1, started="0")
    this_record.begin("conv3", "forward", 8)
    for behind_s in (1, 2):
        peer.update(1, this_record)
        assert peer.behind_s == behind_s
    peer_record.begin("conv3", "forward", 8)
    peer.update(1, this_record)
    assert peer.behind_s == 0
    other_replica = Peer(
        2, FlightRecord(), same_replica=False, same_machine=True, pid=1, started="0"
    )
    other_replica.update(1, this_record)
    assert other_replica.behind_s == 0


def test_a_watchdog_without_peers_keeps_the_record_and_passes_errors_on() -> None:
    watchdog = Watchdog()
    with pytest.raises(RuntimeError, match="unchanged"), watchdog.exchange("conv3", "forward", 8):
        raise RuntimeError("unchanged")
    with watchdog.exchange("fc6", "forward", 8):
        pass
    first, second = watchdog.this_rank.record.exchanges()
    assert first.ended == 0 < second.ended


def test_exchanges_that_are_captured_are_not_recorded() -> None:
    watchdog, captured = Watchdog(), []
    capturing = watchdog.capturing(lambda *exchange: captured.append(exchange))
    with capturing, watchdog.exchange("conv3", "forward", 8):
        pass
    assert captured == [("conv3", "forward", 8)]
    assert watchdog.this_rank.record.begun == 0
