"""Shares: contiguous, complete, and cut where torch's own chunks are."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from alexnet2012.utils.shard import padded_shard_size, shard_of

SIZES = st.integers(0, 300)
PARTS = st.integers(1, 9)


@given(total=SIZES, parts=PARTS)
def test_shares_cover_every_row_once_and_in_order(total: int, parts: int) -> None:
    shares = [shard_of(total, parts, index) for index in range(parts)]
    rows = [row for own in shares for row in range(own.start, own.stop)]
    assert rows == list(range(total))
    assert all(own.total == total for own in shares)


@given(total=st.integers(1, 300), parts=PARTS)
def test_shares_are_the_chunks_that_torch_cuts(total: int, parts: int) -> None:
    full = torch.arange(total)
    shares = [shard_of(total, parts, index).of(full) for index in range(parts)]
    chunks = full.chunk(parts)
    assert all(torch.equal(own, chunk) for own, chunk in zip(shares, chunks, strict=False))
    assert all(len(own) == 0 for own in shares[len(chunks) :])  # torch leaves these out


@given(total=SIZES, parts=PARTS)
def test_the_first_share_is_the_largest(total: int, parts: int) -> None:
    sizes = [shard_of(total, parts, index).size for index in range(parts)]
    assert sizes == sorted(sizes, reverse=True)
    assert sizes[0] == padded_shard_size(total, parts)


def test_a_share_is_a_view_of_the_full_tensor() -> None:
    full = torch.zeros(5, 2)
    shard_of(5, 2, 1).of(full).fill_(1)
    assert full.sum(1).tolist() == [0, 0, 0, 2, 2]
