"""Shards of a tensor's first dimension, as pure functions of sizes and positions."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch import Tensor


class Shard(NamedTuple):
    """Rows ``start`` to ``stop`` of ``total``."""

    start: int
    stop: int
    total: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    def of(self, full: Tensor) -> Tensor:
        """This shard's rows of a full tensor: [total, ...] → [size, ...], a view."""
        assert full.shape[0] == self.total, (full.shape, self)
        return full[self.start : self.stop]

    def split(self, parts: int) -> list[Shard]:
        """These rows in contiguous parts, as by :func:`shard_of`; the last may be empty."""
        shards = (shard_of(self.size, parts, index) for index in range(parts))
        return [Shard(self.start + s.start, self.start + s.stop, self.total) for s in shards]


def shard_of(total: int, parts: int, index: int) -> Shard:
    """The contiguous shard ``index`` of ``parts``, as of torch.chunk: the last may be short."""
    assert 0 <= index < parts, (index, parts)
    size = padded_shard_size(total, parts)
    start = min(index * size, total)
    return Shard(start, min(start + size, total), total)


def padded_shard_size(total: int, parts: int) -> int:
    """Rows of the largest shard, to which collectives pad uneven shards."""
    return -(-total // parts)
