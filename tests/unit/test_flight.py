"""Flight records, and what two of them say of each other."""

from __future__ import annotations

import time

import pytest

from alexnet2012.distributed.watchdog.diagnosis import RankRecord, exited, late, out_of_step, silent
from alexnet2012.distributed.watchdog.flight_recorder import KEPT, FlightRecord
from alexnet2012.distributed.watchdog.peers import Peer
from alexnet2012.distributed.watchdog.watchdog import Watchdog

STEP = ("conv3", "fc6", "fc7", "fc8")


def recorded(*layers: str, sent_bytes: int = 8, under_way: bool = False) -> FlightRecord:
    """Forward exchanges, a step for every conv3."""
    record = FlightRecord()
    for layer in layers:
        record.step += layer == "conv3"
        record.begin(layer, "forward", sent_bytes)
        record.end()
    if under_way:
        record.begin("logits", "forward", sent_bytes)
    return record


def test_a_record_is_legible_from_its_bytes_alone() -> None:
    began = time.time()
    record = FlightRecord(bytearray(FlightRecord().memory))
    record.step = 7
    record.begin("conv3", "backward", 1 << 40)
    (found,) = FlightRecord(bytes(record.memory)).exchanges()
    assert (found.number, found.step, found.sent_bytes) == (1, 7, 1 << 40)
    assert found.name == "conv3 backward"
    assert began <= found.began <= time.time()
    assert found.ended == 0
    record.end()
    (found,) = FlightRecord(bytes(record.memory)).exchanges()
    assert found.ended >= found.began


def test_a_record_keeps_the_last_exchanges_and_forgets_the_others() -> None:
    record = recorded(*STEP * KEPT)
    numbers = [exchange.number for exchange in record.exchanges()]
    assert numbers == list(range(3 * KEPT + 1, 4 * KEPT + 1))
    assert record.at(3 * KEPT) is None
    assert record.at(4 * KEPT + 1) is None
    assert record.last() == record.at(4 * KEPT)


def test_names_of_any_length_and_script_are_kept_as_far_as_they_go() -> None:
    record = FlightRecord()
    record.begin("é" * 100, "x" * 100, 0)
    record.begin("next", "next", 0)
    first, second = record.exchanges()
    assert first.layer.startswith("é" * 16)
    assert second.name == "next"


def test_another_exchange_in_the_same_place_is_noticed_before_it_is_made() -> None:
    one = recorded(*STEP)
    assert not one.differs(recorded(*STEP))
    assert not one.differs(recorded(*STEP[:3]))  # the other has not come yet
    assert one.differs(recorded(*STEP[:3], "fc7"))
    assert one.differs(recorded(*STEP, sent_bytes=9))


def verdict(one: FlightRecord, other: FlightRecord) -> str | None:
    found = out_of_step(RankRecord(0, one), RankRecord(1, other))
    return None if found is None else found.text


def test_records_that_agree_as_far_as_both_go_are_not_apart() -> None:
    assert verdict(recorded(*STEP * 3), recorded(*STEP * 3)) is None
    assert verdict(recorded(*STEP * 3), recorded(*STEP)) is None
    assert verdict(FlightRecord(), recorded(*STEP)) is None


@pytest.mark.parametrize(
    ("other", "said"),
    [
        (recorded(*STEP, "conv3", "fc7"), "rank 1 skipped fc6 forward (step 2) and came to fc7"),
        (recorded(*STEP, "conv3", "fc6", "fc6"), "rank 1 skipped fc7 forward (step 2) and came"),
        (recorded("conv3", "fc7"), "rank 0 came to fc6 forward (step 1), rank 1 to fc7"),
        (
            recorded(*STEP, sent_bytes=9),
            "to conv3 forward (step 1) rank 0 brings 8 bytes, rank 1 9",
        ),
    ],
)
def test_the_first_difference_is_the_one_that_is_told(other: FlightRecord, said: str) -> None:
    found = verdict(recorded(*STEP * 2), other)
    assert found is not None
    assert found.startswith(said)


def test_who_skipped_is_known_whoever_looks() -> None:
    regular, skipping = recorded(*STEP * 2), recorded(*STEP, "conv3", "fc7")
    for one, other in (
        (RankRecord(0, regular), RankRecord(1, skipping)),
        (RankRecord(1, skipping), RankRecord(0, regular)),
    ):
        found = out_of_step(one, other)
        assert found is not None
        assert found.ranks == [1]
        assert found.text.startswith("rank 1 skipped fc6 forward (step 2)")


@pytest.mark.parametrize(
    ("own", "lost", "position"),
    [
        (recorded(*STEP, under_way=True), recorded(*STEP),
         "it did not come to logits forward (step 1), where rank 0 waits; its last was fc8"),
        (recorded(*STEP, under_way=True), FlightRecord(),
         "it did not come to logits forward (step 1), where rank 0 waits; it had made no exchange"),
        (recorded(*STEP), recorded(*STEP, under_way=True), "it was in logits forward (step 1)"),
        (recorded(*STEP), recorded(*STEP), "it was not waited for; its last was fc8 forward"),
    ],
)  # fmt: skip
def test_a_lost_rank_is_told_with_where_it_stood(
    own: FlightRecord, lost: FlightRecord, position: str
) -> None:
    for found in (
        exited(RankRecord(0, own), RankRecord(1, lost)),
        silent(RankRecord(0, own), RankRecord(1, lost), 20),
        late(RankRecord(0, own), RankRecord(1, lost)),
    ):
        assert found.ranks == [1]
        assert f": {position}" in found.text


def test_a_peer_is_silent_for_as_long_as_its_beats_stand_still() -> None:
    record = FlightRecord()
    peer = Peer(1, record, same_net=True, near=True, pid=1, started="0")
    record.beat()
    for seconds, beat in ((1, False), (1, False), (1, True), (1, False)):
        if beat:
            record.beat()
        peer.listen(seconds, begun=0)
    assert peer.silent_s == 1


def test_a_peer_is_behind_for_as_long_as_it_has_not_begun_what_we_have() -> None:
    here, there = FlightRecord(), FlightRecord()
    peer = Peer(1, there, same_net=True, near=True, pid=1, started="0")
    here.begin("conv3", "forward", 8)
    for behind_s in (1, 2):
        peer.listen(1, here.begun)
        assert peer.behind_s == behind_s
    there.begin("conv3", "forward", 8)
    peer.listen(1, here.begun)
    assert peer.behind_s == 0
    other_net = Peer(2, FlightRecord(), same_net=False, near=True, pid=1, started="0")
    other_net.listen(1, here.begun)
    assert other_net.behind_s == 0


def test_a_watchdog_alone_keeps_the_record_and_lets_errors_through() -> None:
    alone = Watchdog()
    with pytest.raises(RuntimeError, match="as it is"), alone.exchange("conv3", "forward", 8):
        raise RuntimeError("as it is")
    with alone.exchange("fc6", "forward", 8):
        pass
    first, second = alone.own.record.exchanges()
    assert first.ended == 0 < second.ended
