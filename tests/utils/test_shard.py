"""Shards are contiguous, complete, and equal to torch's chunks."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet2012.utils.shard import padded_shard_size, shard_of

SIZES = st.integers(0, 300)
PARTS = st.integers(1, 9)


@given(total=SIZES, parts=PARTS)
def test_shards_cover_every_row_once_and_in_order(total: int, parts: int) -> None:
    shards = [shard_of(total, parts, index) for index in range(parts)]
    rows = [row for shard in shards for row in range(shard.start, shard.stop)]
    assert rows == list(range(total))
    assert all(shard.total == total for shard in shards)


@given(total=st.integers(1, 300), parts=PARTS)
def test_shards_equal_the_chunks_of_torch(total: int, parts: int) -> None:
    full = torch.arange(total)
    shards = [shard_of(total, parts, index).of(full) for index in range(parts)]
    chunks = full.chunk(parts)
    assert all(torch.equal(shard, chunk) for shard, chunk in zip(shards, chunks, strict=False))
    assert all(len(shard) == 0 for shard in shards[len(chunks) :])  # torch omits empty chunks


@given(total=SIZES, parts=PARTS)
def test_the_first_shard_is_the_largest(total: int, parts: int) -> None:
    sizes = [shard_of(total, parts, index).size for index in range(parts)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == padded_shard_size(total, parts)


def test_a_shard_is_a_view_of_the_full_tensor() -> None:
    full = torch.zeros(5, 2)
    shard_of(5, 2, 1).of(full).fill_(1)
    assert full.sum(1).tolist() == [0, 0, 0, 2, 2]
