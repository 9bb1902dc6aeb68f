"""How a replica's pictures reach it: read by each tower, or a share by each and then gathered.

Towers see the same pictures: each decodes all of them (``duplicate``), or each decodes its share
and they gather the windows as uint8 (``split``); the batches are the same to the bit.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.enums import Decoder
from alexnet2012.config.schema import ConfigError
from alexnet2012.data import augmentation
from alexnet2012.data.dali import ExternalFeed, Reader, Source
from alexnet2012.data.store import Split
from alexnet2012.distributed.collectives import Communicator, gather_rows
from alexnet2012.utils.shard import Shard, padded_shard_size, shard_of

CPU = torch.device("cpu")
NO_PICTURES = np.empty(0, np.int64)


@dataclass(frozen=True)
class LoaderPlacement:
    """Where batches are made: for which replica, on which device, with which towers.

    With a ``comm`` each of its towers decodes its share of the replica's pictures (``split``);
    without one a process decodes everything that it needs.
    """

    replica: int = 0
    replicas: int = 1
    device: torch.device = CPU
    threads: int | None = None  # that decode; None: see below
    decoder: Decoder = Decoder.auto
    comm: Communicator | None = None

    def __post_init__(self) -> None:
        if self.decoder is Decoder.gpu and self.device.type != "cuda":
            remedy = f"the pictures go to the {self.device.type}; use auto or cpu"
            raise ConfigError("data.decoder", "gpu", remedy)

    @property
    def decode_threads(self) -> int:
        """A training on a CPU needs the cores itself; one on a GPU leaves them to this."""
        if self.threads is not None:
            return self.threads
        return max(2, torch.get_num_threads()) if self.device.type == "cuda" else 2

    def parts(self, count: int, batch_size: int) -> list[tuple[slice, Shard]]:
        """This replica's part of each step; see :func:`augmentation.replica_parts`."""
        return augmentation.replica_parts(count, batch_size, self.replica, self.replicas)


HERE = LoaderPlacement()


class BatchPlan(NamedTuple):
    """A replica's n pictures of a step, and what is drawn to cut and to finish their windows."""

    indices: npt.NDArray[np.int64]  # [n] of the split
    to_cut: tuple[npt.NDArray[Any], ...]
    to_finish: tuple[npt.NDArray[Any], ...]


class InputPipeline:
    """Reads steps by one pipeline alone, or by a first one, a gather and a second.

    The windows of a step travel between towers when the second pipeline asks for them, some steps
    ahead of the training, and in the same order on every tower.
    """

    def __init__(
        self,
        place: LoaderPlacement,
        split: Split,
        batch_size: int,
        window: tuple[int, int, int],
        *,
        alone: Callable[[str, Source], Sequence[Any]],
        first: Callable[[str, Source], Sequence[Any]],
        then: Callable[[str, Source], Sequence[Any]] | None = None,  # None: windows as they are
    ) -> None:
        self._comm = place.comm if place.comm and place.comm.towers > 1 else None
        where = place.device, place.decode_threads
        largest = padded_shard_size(batch_size, place.replicas)
        if self._comm is None:
            self._alone = Reader(alone, split, largest, *where)
            return
        self._first = Reader(first, split, padded_shard_size(largest, self._comm.towers), *where)
        self._then = None if then is None else Reader(then, split, largest, *where)
        self._none = torch.empty((0, *window), dtype=torch.uint8, device=place.device)

    def read(self, steps: Sequence[BatchPlan]) -> Iterator[Tensor]:
        if self._comm is None:
            return self._alone.read(
                ExternalFeed(step.indices, (*step.to_cut, *step.to_finish)) for step in steps
            )
        gathered = self._gathered(steps, self._comm)
        if self._then is None:
            return gathered
        return self._then.read(
            ExternalFeed(NO_PICTURES, (windows, *step.to_finish))
            for windows, step in zip(gathered, steps, strict=True)
        )

    def _gathered(self, steps: Sequence[BatchPlan], comm: Communicator) -> Iterator[Tensor]:
        """All windows of each step, of which this tower has cut its share."""
        owns = [shard_of(len(step.indices), comm.towers, comm.tower) for step in steps]
        own_windows = self._first.read(
            ExternalFeed(
                step.indices[own.start : own.stop],
                tuple(drawn[own.start : own.stop] for drawn in step.to_cut),
            )
            for step, own in zip(steps, owns, strict=True)
            if own.size
        )
        for own in owns:
            windows = next(own_windows) if own.size else self._none
            yield gather_rows(windows, own, comm, "input", "input")
