"""Batches of a store, in training and in evaluation: which pictures come when, and for whom.

A batch depends on the seed, the epoch and the step alone, so a run can start anywhere. Towers see
the same pictures: each decodes all of them (``duplicate``), or each decodes its share and they
gather the windows as uint8 (``split``); the batches are the same to the bit.

Legend: n pictures of this replica, V views, S pixels a side of the input, P of the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.choices import Decoder
from alexnet2012.collectives import TowerLink, gather_rows
from alexnet2012.config import AugmentConfig, ConfigError
from alexnet2012.data import order, pipeline
from alexnet2012.data.pipeline import Feed, Reader
from alexnet2012.data.store import Split, Store
from alexnet2012.sharding import Share, largest_share, share

CPU = torch.device("cpu")


@dataclass(frozen=True)
class Place:
    """Where batches are made: for which replica, on which device, with which towers.

    With a ``link`` each of its towers decodes its share of the replica's pictures (``split``);
    without one a process decodes everything that it needs.
    """

    replica: int = 0
    replicas: int = 1
    device: torch.device = CPU
    threads: int = 2
    decoder: Decoder = Decoder.auto
    link: TowerLink | None = None

    def __post_init__(self) -> None:
        if self.decoder is Decoder.gpu and self.device.type != "cuda":
            remedy = f"the pictures go to the {self.device.type}; use auto or cpu"
            raise ConfigError("data.decoder", "gpu", remedy)


HERE = Place()


@dataclass(frozen=True)
class Batch:
    """This replica's pictures of one step; later batches leave it as it is."""

    images: Tensor  # float32, training [n, 3, S, S], evaluation [n, V, 3, S, S]
    labels: Tensor  # int64 [n]
    indices: npt.NDArray[np.int64]  # [n] positions in the split
    rows: Share  # which rows of the global batch these are


class TrainLoader:
    """Augmented batches of a split, in the order of an epoch.

    A picture is cropped, the mean image subtracted, the lighting offset added, the sum divided by
    the training divisor, and all flipped; with ``mean_follows_crop`` off the mean is not flipped.
    Without lighting nothing is divided: the 2012 code's divisor makes up for the noise.

    The last step of an epoch has what is left. A replica that gets nothing of it is given an empty
    batch, so that all replicas make the same number of steps. A new iteration may start before the
    former has ended, which is then over.

    Raises:
        ConfigError: an input larger than the pictures of the store.
        ConfigError: while iterating: a file of the store cannot be read; names it.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        augment: AugmentConfig,
        *,
        input_size: int,
        batch_size: int,
        seed: int,
        place: Place = HERE,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._augment, self._seed = split, augment, seed
        self._parts = order.replica_parts(
            len(split.labels), batch_size, place.replica, place.replicas
        )
        self._margin = store.size - input_size
        self._basis = order.lighting_basis(store.rgb_covariance, augment.lighting_scale)
        self._empty = torch.empty((0, 3, input_size, input_size), device=place.device)
        self._mean = torch.from_numpy(store.mean_image).to(place.device)  # [P, P, 3]
        self._input = _Input(
            place,
            largest_share(batch_size, place.replicas),
            (input_size, input_size, 3),
            alone=partial(pipeline.augmented, input_size, place.decoder),
            first=partial(pipeline.cut, input_size, place.decoder),
            then=pipeline.finish,
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self._parts)

    def epoch(self, epoch: int, *, first_step: int = 0, lighting: bool = True) -> Iterator[Batch]:
        """The batches of an epoch from ``first_step`` on; ``lighting`` off leaves its noise out."""
        count = len(self._split.labels)
        indices = order.epoch_order(count, self._seed, epoch)
        draws = order.draws(self._augment, count, self._margin, self._seed, epoch)
        offsets = (draws.alpha @ self._basis.T * lighting).astype(np.float32)  # grey levels
        divided = lighting and self._augment.lighting
        divisor = np.float32(self._augment.train_divisor if divided else 1)
        parts = self._parts[first_step:]
        steps = [
            _Step(
                [self._split.paths[index] for index in indices[at]],
                (draws.crop_yx[at],),
                (
                    draws.flip[at].astype(np.int32),
                    -offsets[at],
                    np.full((rows.size, 3), divisor),
                ),
            )
            for at, rows in parts
            if rows.size
        ]
        augmented = self._input.read(steps)
        mean = self._mean / float(divisor)
        for at, rows in parts:
            images = self._empty
            if rows.size:
                images = self._less_mean(next(augmented), mean, draws[at])
            yield _batch(images, self._split, indices[at], rows)

    def _less_mean(self, images: Tensor, mean: Tensor, draws: order.Draws) -> Tensor:
        """[n, S, S, 3], in place → [n, 3, S, S]; of each window the mean at its own place."""
        # Not in DALI: cutting the mean image there and subtracting it takes a third of its time.
        store_size, size = len(mean), images.shape[1]
        if self._augment.mean_follows_crop:
            mirrored = mean.flip(1)
            for image, (y, x), flip in zip(images, draws.crop_yx.tolist(), draws.flip, strict=True):
                left = store_size - size - x if flip else x
                image.sub_((mirrored if flip else mean)[y : y + size, left : left + size])
        else:
            images.sub_(_centre(mean, size))
        return images.permute(0, 3, 1, 2)


class EvalLoader:
    """Every picture of a split once, in order, in 1 view (the centre) or 10; never divided.

    Raises:
        ConfigError: an input larger than the pictures of the store, or another number of views.
        ConfigError: while iterating: a file of the store cannot be read; names it.
    """

    def __init__(
        self,
        store: Store,
        split: Split,
        augment: AugmentConfig,
        *,
        input_size: int,
        views: int,
        batch_size: int,
        place: Place = HERE,
    ) -> None:
        _check_input_size(store, input_size)
        if views not in (1, 10):
            raise ConfigError("views", views, "must be 1 (the centre) or 10")
        self._split, self._size = split, input_size
        self._parts = order.replica_parts(
            len(split.labels), batch_size, place.replica, place.replicas
        )
        self._views = (order.ten_views if views == 10 else order.centre_view)(
            store.size, input_size
        )
        self._augment = augment
        self._mean = torch.from_numpy(store.mean_image).to(place.device)  # [P, P, 3]
        window = (store.size, store.size, 3)
        self._empty = torch.empty((0, *window), dtype=torch.uint8, device=place.device)
        graph = partial(pipeline.whole, place.decoder)
        largest = largest_share(batch_size, place.replicas)
        self._input = _Input(place, largest, window, alone=graph, first=graph)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._parts)

    def batches(self) -> Iterator[Batch]:
        """All batches of the split."""
        indices = np.arange(len(self._split.labels))
        steps = [_Step(self._split.paths[at], (), ()) for at, rows in self._parts if rows.size]
        pictures = self._input.read(steps)
        for at, rows in self._parts:
            images = self._viewed(next(pictures) if rows.size else self._empty)
            yield _batch(images, self._split, indices[at], rows)

    def _viewed(self, pictures: Tensor) -> Tensor:
        """uint8 [n, P, P, 3] → float32 [n, V, 3, S, S], less the mean."""
        # Here and not in DALI, whose queue would hold ten crops of each picture.
        size = self._size
        shape = (len(pictures), len(self._views), size, size, 3)
        views = torch.empty(shape, device=pictures.device)
        for view, (y, x, flip) in enumerate(self._views.tolist()):
            crop = pictures[:, y : y + size, x : x + size]
            if self._augment.mean_follows_crop:
                centred = crop - self._mean[y : y + size, x : x + size]
                views[:, view] = centred.flip(2) if flip else centred
            else:
                views[:, view] = (crop.flip(2) if flip else crop) - _centre(self._mean, size)
        return views.permute(0, 1, 4, 2, 3)


class _Step(NamedTuple):
    """A replica's n pictures of a step, and what is drawn to cut and to finish their windows."""

    paths: Sequence[str]
    to_cut: tuple[npt.NDArray[Any], ...]
    to_finish: tuple[npt.NDArray[Any], ...]


class _Input:
    """Reads steps by one pipeline alone, or by a first one, a gather and a second.

    The windows of a step travel between towers when the second pipeline asks for them, some steps
    ahead of the training, and in the same order on every tower.
    """

    def __init__(
        self,
        place: Place,
        largest: int,  # pictures of a step
        window: tuple[int, int, int],
        *,
        alone: Callable[[str, pipeline.Source], Any],
        first: Callable[[str, pipeline.Source], Any],
        then: Callable[[str, pipeline.Source], Any] | None = None,  # None: windows as they are
    ) -> None:
        self._link = place.link if place.link and place.link.towers > 1 else None
        where = place.device, place.threads
        if self._link is None:
            self._alone = Reader(alone, largest, *where)
            return
        self._first = Reader(first, largest_share(largest, self._link.towers), *where)
        self._then = None if then is None else Reader(then, largest, *where)
        self._none = torch.empty((0, *window), dtype=torch.uint8, device=place.device)

    def read(self, steps: Sequence[_Step]) -> Iterator[Tensor]:
        if self._link is None:
            return self._alone.read(
                Feed(step.paths, (*step.to_cut, *step.to_finish)) for step in steps
            )
        gathered = self._gathered(steps, self._link)
        if self._then is None:
            return gathered
        return self._then.read(
            Feed((), (windows, *step.to_finish))
            for windows, step in zip(gathered, steps, strict=True)
        )

    def _gathered(self, steps: Sequence[_Step], link: TowerLink) -> Iterator[Tensor]:
        """All windows of each step, of which this tower has cut its share."""
        owns = [share(len(step.paths), link.towers, link.tower) for step in steps]
        own_windows = self._first.read(
            Feed(
                step.paths[own.start : own.stop],
                tuple(drawn[own.start : own.stop] for drawn in step.to_cut),
            )
            for step, own in zip(steps, owns, strict=True)
            if own.size
        )
        for own in owns:
            windows = next(own_windows) if own.size else self._none
            yield gather_rows(windows, own, link, "input", "input")


def _centre(mean: Tensor, size: int) -> Tensor:
    """[P, P, 3] → its centre [S, S, 3]."""
    ((y, x, _),) = order.centre_view(len(mean), size).tolist()
    return mean[y : y + size, x : x + size]


def _batch(images: Tensor, split: Split, indices: npt.NDArray[np.int64], rows: Share) -> Batch:
    return Batch(images, torch.from_numpy(split.labels[indices]).to(images.device), indices, rows)


def _check_input_size(store: Store, input_size: int) -> None:
    if not 1 <= input_size <= store.size:
        remedy = f"must be 1 to {store.size}, the size of the pictures in {store.root}"
        raise ConfigError("model.input_size", input_size, remedy)


def content_digest(images: Tensor) -> int:
    """CRC-32 of a batch: differs between ranks that were given other pictures or another order."""
    return zlib.crc32(images.detach().cpu().contiguous().numpy().data)
