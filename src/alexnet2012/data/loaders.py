"""Data loaders over a store for training and evaluation.

A batch depends on the seed, the epoch and the step alone, so a run can resume anywhere.

Shapes: n images of this replica, V views per image, S×S input pixels, P×P pixels of a stored
image.
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

from alexnet2012.config.enums import Feed
from alexnet2012.config.schema import AugmentConfig, ConfigError, TrainConfig
from alexnet2012.data import augmentation, dali
from alexnet2012.data.store import Split, Store
from alexnet2012.data.ten_crop import centre_crop, extract_views, view_positions
from alexnet2012.data.tower_feed import SINGLE_PROCESS, BatchPlan, InputPipeline, LoaderPlacement
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.shard import Shard


def make_loaders(config: TrainConfig, store: Store, mesh: Mesh) -> tuple[TrainLoader, EvalLoader]:
    """This rank's loaders of the training and the validation split."""
    data, augment, size = config.data, config.recipe.augment, config.model.input_size
    placement = LoaderPlacement(
        replica=mesh.replica,
        replicas=mesh.replicas,
        device=mesh.device,
        threads=data.decode_threads,
        decoder=data.decoder,
        comm=communicator_of(mesh) if data.feed is Feed.split else None,
    )
    train_loader = TrainLoader(
        store,
        store.split("train", data.limit),
        augment,
        input_size=size,
        batch_size=data.batch_size,
        seed=config.seed,
        placement=placement,
    )
    val_loader = EvalLoader(
        store,
        store.split("val", data.limit),
        augment,
        input_size=size,
        views=config.eval_views,
        batch_size=data.eval_batch_size,
        placement=placement,
    )
    return train_loader, val_loader


@dataclass(frozen=True)
class Batch:
    """This replica's images of one step; later batches never overwrite its memory."""

    images: Tensor  # float32; training [n, 3, S, S], evaluation [n, V, 3, S, S]
    labels: Tensor  # int64 [n]
    indices: npt.NDArray[np.int64]  # [n] positions in the split
    rows: Shard  # this replica's rows of the global batch


class TrainLoader:
    """Shuffled and augmented batches of a split.

    Each image is cropped, the mean image is subtracted, the lighting offset is added, the sum is
    divided by ``train_divisor``, and the result may be flipped; without ``mean_follows_crop`` the
    mean image is not flipped. Without lighting there is no division: the divisor of the 2012 code
    compensates for the lighting noise.

    The last step of an epoch has the remaining images. A replica without any gets an empty batch,
    so all replicas make the same number of steps. Starting an iterator invalidates the previous
    one.

    Raises:
        ConfigError: the input size exceeds that of the stored images.
        ConfigError: while iterating, an image of the store is missing or damaged; names the file.
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
        placement: LoaderPlacement = SINGLE_PROCESS,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._augment, self._seed = split, augment, seed
        self._steps = placement.steps(len(split.labels), batch_size)
        self._margin = store.size - input_size
        self._basis = augmentation.lighting_basis(store.rgb_covariance, augment.lighting_scale)
        self._no_images = torch.empty((0, 3, input_size, input_size), device=placement.device)
        self._mean = torch.from_numpy(store.mean_image).to(placement.device)  # [P, P, 3]
        on_gpu = placement.device.type == "cuda"
        self._stream = torch.cuda.Stream(placement.device) if on_gpu else None
        self._input = InputPipeline(
            placement,
            split,
            batch_size,
            (input_size, input_size, 3),
            alone=partial(dali.train_graph, input_size, placement.decoder),
            first=partial(dali.crop_graph, input_size, placement.decoder),
            second=dali.augment_graph,
        )

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps)

    def epoch(self, epoch: int, *, first_step: int = 0, lighting: bool = True) -> Iterator[Batch]:
        """The batches of an epoch, starting with ``first_step``."""
        return prefetch(self._epoch(epoch, first_step, lighting), self._stream)

    def _epoch(self, epoch: int, first_step: int, lighting: bool) -> Iterator[Batch]:
        count = len(self._split.labels)
        indices = augmentation.epoch_order(count, self._seed, epoch)
        params = augmentation.sample_params(self._augment, count, self._margin, self._seed, epoch)
        offsets = (params.alpha @ self._basis.T * lighting).astype(np.float32)  # grey levels
        is_divided = lighting and self._augment.lighting
        divisor = np.float32(self._augment.train_divisor if is_divided else 1)
        steps = self._steps[first_step:]
        divisors = np.full((count, 3), divisor)
        flips = params.flip.astype(np.int32)
        plans = [
            BatchPlan(indices[at], (params.crop_yx[at],), (flips[at], -offsets[at], divisors[at]))
            for at, rows in steps
            if rows.size
        ]
        augmented = self._input.read(plans)
        mean = self._mean / float(divisor)
        means = mean, mean.flip(1)
        # For the whole epoch: a small copy to a GPU in each step would wait for its queued work.
        labels, yx, flip = (
            torch.from_numpy(array).to(mean.device)
            for array in (self._split.labels[indices], params.crop_yx, params.flip)
        )
        for positions, rows in steps:
            images = self._no_images
            if rows.size:
                images = self._subtract_mean(next(augmented), means, yx[positions], flip[positions])
            yield Batch(images, labels[positions], indices[positions], rows)

    def _subtract_mean(
        self, images: Tensor, means: tuple[Tensor, Tensor], yx: Tensor, flip: Tensor
    ) -> Tensor:
        """Subtract each crop's part of the mean (or its mirror image): → [n, 3, S, S], in place."""
        # Not in DALI, which would crop the mean image in one pass and subtract it in another. On a
        # CPU with NumPy, as torch would wake its threads for every image.
        store_size, size = len(means[0]), images.shape[1]
        if not self._augment.mean_follows_crop:
            images.sub_(centre_crop(means[0], size))
        elif images.is_cpu:
            arrays = [mean.numpy() for mean in means]
            positions = zip(yx.tolist(), flip.tolist(), strict=True)
            for image, ((y, x), is_flipped) in zip(images.numpy(), positions, strict=True):
                left = store_size - size - x if is_flipped else x
                image -= arrays[is_flipped][y : y + size, left : left + size]
        else:
            images.sub_(mean_crops(means[0], yx, flip, size))
        return images.permute(0, 3, 1, 2)


def mean_crops(mean: Tensor, yx: Tensor, flip: Tensor, size: int) -> Tensor:
    """Crop and flip the mean image for each image, in few kernels: [P, P, 3] → [n, S, S, 3]."""
    offsets = torch.arange(size, device=mean.device)
    rows = yx[:, :1] + offsets
    columns = yx[:, 1:] + torch.where(flip[:, None], size - 1 - offsets, offsets)
    return mean[rows[:, :, None], columns[:, None]]


def prefetch(batches: Iterator[Batch], stream: torch.cuda.Stream | None) -> Iterator[Batch]:
    """Prepare each batch on a CUDA stream during the previous step; no prefetch without stream."""
    if stream is None:
        yield from batches
        return

    def next_on_stream() -> Batch | None:
        with torch.cuda.stream(stream):
            return next(batches, None)

    batch = next_on_stream()
    while batch is not None:
        current = torch.cuda.current_stream(stream.device)
        stream.wait_stream(current)  # only then may memory of a freed batch be written again
        current.wait_stream(stream)
        following = next_on_stream()
        yield batch
        batch = following


class EvalLoader:
    """All images of a split in order, each in 1 view (the centre crop) or 10; never divided.

    Raises:
        ConfigError: the input size exceeds that of the stored images, or another number of views.
        ConfigError: while iterating, an image of the store is missing or damaged; names the file.
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
        placement: LoaderPlacement = SINGLE_PROCESS,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._size = split, input_size
        self._steps = placement.steps(len(split.labels), batch_size)
        self._views = view_positions(views, store.size, input_size)
        self._augment = augment
        self._mean = torch.from_numpy(store.mean_image).to(placement.device)  # [P, P, 3]
        shape = (store.size, store.size, 3)
        self._no_images = torch.empty((0, *shape), dtype=torch.uint8, device=placement.device)
        graph = partial(dali.full_image_graph, placement.decoder)
        self._input = InputPipeline(placement, split, batch_size, shape, alone=graph, first=graph)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._steps)

    def batches(self) -> Iterator[Batch]:
        indices = np.arange(len(self._split.labels))
        labels = torch.from_numpy(self._split.labels).to(self._mean.device)
        plans = [
            BatchPlan(indices[positions], (), ()) for positions, rows in self._steps if rows.size
        ]
        stored_batches = self._input.read(plans)
        for positions, rows in self._steps:
            stored = next(stored_batches) if rows.size else self._no_images
            # Not in DALI, whose queue would hold ten crops of each image.
            images = extract_views(stored, self._views, self._mean, self._augment, self._size)
            yield Batch(images, labels[positions], indices[positions], rows)


def _check_input_size(store: Store, input_size: int) -> None:
    if not 1 <= input_size <= store.size:
        remedy = f"must be 1 to {store.size}, the size of the images in {store.root}"
        raise ConfigError("model.input_size", input_size, remedy)


def content_digest(images: Tensor) -> int:
    """CRC-32 of a batch: differs between ranks that were given other images or another order."""
    return zlib.crc32(images.detach().cpu().contiguous().numpy().data)
