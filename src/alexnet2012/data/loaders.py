"""Batches of a store, in training and in evaluation: which pictures come when, and for whom.

A batch depends on the seed, the epoch and the step alone, so a run can start anywhere.

Legend: n pictures of this replica, V views, S pixels a side of the input, P of the store.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.schema import AugmentConfig, ConfigError
from alexnet2012.data import augmentation, dali
from alexnet2012.data.store import Split, Store
from alexnet2012.data.ten_crop import centre, view_places, viewed
from alexnet2012.data.tower_feed import HERE, BatchPlan, InputPipeline, LoaderPlacement
from alexnet2012.utils.shard import Shard


@dataclass(frozen=True)
class Batch:
    """This replica's pictures of one step; later batches leave it as it is."""

    images: Tensor  # float32, training [n, 3, S, S], evaluation [n, V, 3, S, S]
    labels: Tensor  # int64 [n]
    indices: npt.NDArray[np.int64]  # [n] positions in the split
    rows: Shard  # which rows of the global batch these are


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
        ConfigError: while iterating: a picture of the store is lost or spoilt; names it.
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
        place: LoaderPlacement = HERE,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._augment, self._seed = split, augment, seed
        self._parts = place.parts(len(split.labels), batch_size)
        self._margin = store.size - input_size
        self._basis = augmentation.lighting_basis(store.rgb_covariance, augment.lighting_scale)
        self._empty = torch.empty((0, 3, input_size, input_size), device=place.device)
        self._mean = torch.from_numpy(store.mean_image).to(place.device)  # [P, P, 3]
        on_gpu = place.device.type == "cuda"
        self._stream = torch.cuda.Stream(place.device) if on_gpu else None
        self._input = InputPipeline(
            place,
            split,
            batch_size,
            (input_size, input_size, 3),
            alone=partial(dali.augmented, input_size, place.decoder),
            first=partial(dali.cut, input_size, place.decoder),
            then=dali.finish,
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self._parts)

    def epoch(self, epoch: int, *, first_step: int = 0, lighting: bool = True) -> Iterator[Batch]:
        """The batches of an epoch from ``first_step`` on; ``lighting`` off leaves its noise out."""
        return ahead(self._epoch(epoch, first_step, lighting), self._stream)

    def _epoch(self, epoch: int, first_step: int, lighting: bool) -> Iterator[Batch]:
        count = len(self._split.labels)
        indices = augmentation.epoch_order(count, self._seed, epoch)
        draws = augmentation.draws(self._augment, count, self._margin, self._seed, epoch)
        offsets = (draws.alpha @ self._basis.T * lighting).astype(np.float32)  # grey levels
        divided = lighting and self._augment.lighting
        divisor = np.float32(self._augment.train_divisor if divided else 1)
        parts = self._parts[first_step:]
        steps = [
            BatchPlan(
                indices[at],
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
        means = mean, mean.flip(1)
        # At once: a small copy to a GPU in each step would wait for all that was begun there.
        labels, yx, flip = (
            torch.from_numpy(drawn).to(mean.device)
            for drawn in (self._split.labels[indices], draws.crop_yx, draws.flip)
        )
        for at, rows in parts:
            images = self._empty
            if rows.size:
                images = self._less_mean(next(augmented), means, yx[at], flip[at])
            yield Batch(images, labels[at], indices[at], rows)

    def _less_mean(
        self, images: Tensor, means: tuple[Tensor, Tensor], yx: Tensor, flip: Tensor
    ) -> Tensor:
        """[n, S, S, 3], in place → [n, 3, S, S]; of each window the mean at its own place.

        ``means``: as it is, and flipped.
        """
        # Not in DALI, which would cut the mean image in one pass and subtract it in another; and by
        # NumPy on a CPU, as torch would wake its threads for every picture.
        store_size, size = len(means[0]), images.shape[1]
        if not self._augment.mean_follows_crop:
            images.sub_(centre(means[0], size))
        elif images.is_cpu:
            plain, mirrored = (mean.numpy() for mean in means)
            for picture, (y, x), turned in zip(
                images.numpy(), yx.tolist(), flip.tolist(), strict=True
            ):
                left = store_size - size - x if turned else x
                picture -= (mirrored if turned else plain)[y : y + size, left : left + size]
        else:
            images.sub_(windows(means[0], yx, flip, size))
        return images.permute(0, 3, 1, 2)


def windows(mean: Tensor, yx: Tensor, flip: Tensor, size: int) -> Tensor:
    """Of [P, P, 3] what lies under each picture, flipped as it is: [n, S, S, 3]; few kernels."""
    along = torch.arange(size, device=mean.device)
    rows = yx[:, :1] + along
    columns = yx[:, 1:] + torch.where(flip[:, None], size - 1 - along, along)
    return mean[rows[:, :, None], columns[:, None]]


def ahead(batches: Iterator[Batch], stream: torch.cuda.Stream | None) -> Iterator[Batch]:
    """With a stream of CUDA each batch is made on it while the step before is computed."""
    if stream is None:
        yield from batches
        return

    def made() -> Batch | None:
        with torch.cuda.stream(stream):
            return next(batches, None)

    batch = made()
    while batch is not None:
        now = torch.cuda.current_stream(stream.device)
        stream.wait_stream(now)  # memory of a batch that is let go may be written to from here on
        now.wait_stream(stream)
        following = made()
        yield batch
        batch = following


class EvalLoader:
    """Every picture of a split once, in order, in 1 view (the centre) or 10; never divided.

    Raises:
        ConfigError: an input larger than the pictures of the store, or another number of views.
        ConfigError: while iterating: a picture of the store is lost or spoilt; names it.
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
        place: LoaderPlacement = HERE,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._size = split, input_size
        self._parts = place.parts(len(split.labels), batch_size)
        self._views = view_places(views, store.size, input_size)
        self._augment = augment
        self._mean = torch.from_numpy(store.mean_image).to(place.device)  # [P, P, 3]
        window = (store.size, store.size, 3)
        self._empty = torch.empty((0, *window), dtype=torch.uint8, device=place.device)
        graph = partial(dali.whole, place.decoder)
        self._input = InputPipeline(place, split, batch_size, window, alone=graph, first=graph)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._parts)

    def batches(self) -> Iterator[Batch]:
        """All batches of the split."""
        indices = np.arange(len(self._split.labels))
        labels = torch.from_numpy(self._split.labels).to(self._mean.device)
        steps = [BatchPlan(indices[at], (), ()) for at, rows in self._parts if rows.size]
        pictures = self._input.read(steps)
        for at, rows in self._parts:
            shown = next(pictures) if rows.size else self._empty
            # Here and not in DALI, whose queue would hold ten crops of each picture.
            images = viewed(shown, self._views, self._mean, self._augment, self._size)
            yield Batch(images, labels[at], indices[at], rows)


def _check_input_size(store: Store, input_size: int) -> None:
    if not 1 <= input_size <= store.size:
        remedy = f"must be 1 to {store.size}, the size of the pictures in {store.root}"
        raise ConfigError("model.input_size", input_size, remedy)


def content_digest(images: Tensor) -> int:
    """CRC-32 of a batch: differs between ranks that were given other pictures or another order."""
    return zlib.crc32(images.detach().cpu().contiguous().numpy().data)
