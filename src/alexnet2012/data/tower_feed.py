"""Input pipelines of one process, or of the towers of a replica together.

All towers of a replica need the same images. Either each tower decodes all of them
(``duplicate``), or each decodes its share and they gather the crops as uint8 (``split``). Images
that are kept in memory are decoded already: each tower crops all of them. All three give
bit-identical batches.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.enums import Decoder
from alexnet2012.config.schema import ConfigError
from alexnet2012.data import augmentation
from alexnet2012.data.dali import DaliPipeline, ExternalFeed, GraphBuilder
from alexnet2012.data.store import Split
from alexnet2012.distributed.collectives import Communicator, gather_rows
from alexnet2012.utils.shard import Shard, padded_shard_size, shard_of

CPU = torch.device("cpu")


@dataclass(frozen=True)
class LoaderPlacement:
    """Where a loader runs: for which replica, on which device, together with which towers."""

    replica: int = 0
    replicas: int = 1
    device: torch.device = CPU
    threads: int | None = None  # for decoding; None: see ``decode_threads``
    decoder: Decoder = Decoder.auto
    comm: Communicator | None = None  # each of its towers decodes its share (``split``)

    def __post_init__(self) -> None:
        if self.decoder is Decoder.gpu and self.device.type != "cuda":
            remedy = f"the images are needed on the {self.device.type}; use auto or cpu"
            raise ConfigError("data.decoder", "gpu", remedy)

    @property
    def decode_threads(self) -> int:
        """Two by default on a CPU, where training needs the cores itself; on a GPU, all cores."""
        if self.threads is not None:
            return self.threads
        return max(2, torch.get_num_threads()) if self.device.type == "cuda" else 2

    def steps(self, count: int, batch_size: int) -> list[tuple[slice, Shard]]:
        return augmentation.replica_steps(count, batch_size, self.replica, self.replicas)


SINGLE_PROCESS = LoaderPlacement()


class BatchPlan(NamedTuple):
    """A replica's n images of one step, and the arguments for cropping and augmenting them."""

    indices: npt.NDArray[np.int64]  # [n] positions in the split
    crop_args: tuple[npt.NDArray[Any], ...]
    augment_args: tuple[npt.NDArray[Any], ...]


class KeptPipeline:
    """Produces the images of each step from decoded ones, with the DALI graph ``graph``."""

    def __init__(
        self,
        placement: LoaderPlacement,
        split: Split,
        batch_size: int,
        images: npt.NDArray[np.uint8],
        graph: GraphBuilder,
    ) -> None:
        self._images = images
        largest = padded_shard_size(batch_size, placement.replicas)
        resources = placement.device, placement.decode_threads
        self._pipeline = DaliPipeline(graph, split, largest, *resources)

    def read(self, steps: Sequence[BatchPlan]) -> Iterator[Tensor]:
        return self._pipeline.read(
            ExternalFeed(
                np.empty(0, np.int64),
                ([self._images[i] for i in step.indices], *step.crop_args, *step.augment_args),
            )
            for step in steps
        )


class InputPipeline:
    """Produces the images of each step, alone or together with the other towers.

    Alone, it runs the DALI graph ``alone``. With several towers, it runs ``first`` on this tower's
    share of the images, gathers the resulting crops, and runs ``second`` on all of them, if given.
    The gather happens some steps ahead of training, in the same order on every tower.
    """

    def __init__(
        self,
        placement: LoaderPlacement,
        split: Split,
        batch_size: int,
        crop_shape: tuple[int, int, int],
        *,
        alone: GraphBuilder,
        first: GraphBuilder,
        second: GraphBuilder | None = None,
    ) -> None:
        comm = placement.comm
        self._comm = comm if comm and comm.towers > 1 else None
        resources = placement.device, placement.decode_threads
        largest = padded_shard_size(batch_size, placement.replicas)
        if self._comm is None:
            self._alone = DaliPipeline(alone, split, largest, *resources)
            return
        own_largest = padded_shard_size(largest, self._comm.towers)
        self._first = DaliPipeline(first, split, own_largest, *resources)
        self._second = None if second is None else DaliPipeline(second, split, largest, *resources)
        self._no_crops = torch.empty((0, *crop_shape), dtype=torch.uint8, device=placement.device)

    def read(self, steps: Sequence[BatchPlan]) -> Iterator[Tensor]:
        if self._comm is None:
            return self._alone.read(
                ExternalFeed(step.indices, (*step.crop_args, *step.augment_args)) for step in steps
            )
        gathered = self._gathered_crops(steps, self._comm)
        if self._second is None:
            return gathered
        return self._second.read(
            ExternalFeed(np.empty(0, np.int64), (crops, *step.augment_args))
            for crops, step in zip(gathered, steps, strict=True)
        )

    def _gathered_crops(self, steps: Sequence[BatchPlan], comm: Communicator) -> Iterator[Tensor]:
        """All crops of each step, gathered from the towers."""
        shards = [shard_of(len(step.indices), comm.towers, comm.tower) for step in steps]
        crops_shards = self._first.read(
            ExternalFeed(
                step.indices[shard.start : shard.stop],
                tuple(argument[shard.start : shard.stop] for argument in step.crop_args),
            )
            for step, shard in zip(steps, shards, strict=True)
            if shard.size
        )
        for shard in shards:
            crops_shard = next(crops_shards) if shard.size else self._no_crops
            yield gather_rows(crops_shard, shard, comm, "input", "input")
