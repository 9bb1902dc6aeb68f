"""Data loaders over a store for training and evaluation.

A batch depends on the seed, the epoch and the step alone, so a run can resume anywhere.

Shapes: n images of this replica, V views per image, S×S input pixels, P×P pixels of a stored
image.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from alexnet2012.config.enums import Feed, Keep, Shuffle
from alexnet2012.config.schema import AugmentConfig, ConfigError, TrainConfig
from alexnet2012.data import augmentation, dali
from alexnet2012.data.device_augment import DevicePipeline, mean_crops
from alexnet2012.data.kept import Images, keep_images, resolve_keep
from alexnet2012.data.store import Split, Store
from alexnet2012.data.ten_crop import centre_crop, extract_views, view_positions
from alexnet2012.data.tower_feed import (
    SINGLE_PROCESS,
    BatchPlan,
    InputPipeline,
    KeptPipeline,
    LoaderPlacement,
)
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils import native
from alexnet2012.utils.shard import Shard


def make_loaders(
    config: TrainConfig, store: Store, mesh: Mesh
) -> tuple[TrainLoader, EvalLoader, EvalLoader | None]:
    """This rank's loaders of the training split, the validation split, and training images that
    are evaluated as validation images are; None without ``eval_train_images``."""
    data, augment, size = config.data, config.recipe.augment, config.model.input_size
    comm = None
    if data.feed is Feed.split:
        # A group of its own: images are gathered while a step's exchanges run, or a replay of them.
        comm = communicator_of(mesh, mesh.new_tower_group(config.mesh.timeout_s))
    placement = LoaderPlacement(
        replica=mesh.replica,
        replicas=mesh.replicas,
        device=mesh.device,
        threads=data.decode_threads,
        decoder=data.decoder,
        comm=comm,
    )
    splits = [store.split(name, data.limit) for name in ("train", "val")]
    count = sum(len(split.paths) for split in splits)
    epochs = config.schedule.epochs * config.schedule.epochs_factor
    keep = resolve_keep(data.keep, count, store.size, epochs, mesh)
    kept: list[Images] | list[None] = [None, None]
    if keep is not Keep.no:
        kept = keep_images(splits, store.size, data.decoder, placement.decode_threads, mesh)
    train_loader = TrainLoader(
        store,
        splits[0],
        augment,
        input_size=size,
        batch_size=data.batch_size,
        seed=config.seed,
        shuffle=config.recipe.shuffle,
        placement=placement,
        kept=kept[0],
        on_device=keep is Keep.device,
    )

    def evaluated(index: int, only: npt.NDArray[np.int64] | None = None) -> EvalLoader:
        return EvalLoader(
            store,
            splits[index],
            augment,
            input_size=size,
            views=config.eval_views,
            batch_size=data.eval_batch_size,
            placement=placement,
            kept=kept[index],
            only=only,
        )

    train_eval_loader = None
    if config.eval_train_images:
        images = len(splits[0].labels)
        # Evenly spaced over the split, which is ordered by class; the same in every run.
        spaced = np.linspace(0, images - 1, min(images, config.eval_train_images))
        train_eval_loader = evaluated(0, spaced.astype(np.int64))
    return train_loader, evaluated(1), train_eval_loader


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
        shuffle: Shuffle = Shuffle.every_epoch,
        placement: LoaderPlacement = SINGLE_PROCESS,
        kept: Images | None = None,
        on_device: bool = False,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._augment, self._seed, self._shuffle = split, augment, seed, shuffle
        self._steps = placement.steps(len(split.labels), batch_size)
        self._margin = store.size - input_size
        assert store.mean_image is not None and store.rgb_covariance is not None
        self._basis = augmentation.lighting_basis(store.rgb_covariance, augment.lighting_scale)
        self._no_images = torch.empty((0, 3, input_size, input_size), device=placement.device)
        self._mean = torch.from_numpy(store.mean_image).to(placement.device)  # [P, P, 3]
        on_gpu = placement.device.type == "cuda"
        self._stream = torch.cuda.Stream(placement.device) if on_gpu else None
        self._input: InputPipeline | KeptPipeline | DevicePipeline
        if kept is None:
            self._input = InputPipeline(
                placement,
                split,
                batch_size,
                (input_size, input_size, 3),
                alone=partial(dali.train_graph, input_size, placement.decoder),
                first=partial(dali.crop_graph, input_size, placement.decoder),
                second=dali.augment_graph,
            )
        elif on_device:
            self._input = DevicePipeline(kept, input_size, placement.device)
        else:
            graph = partial(dali.kept_graph, input_size, self._margin)
            self._input = KeptPipeline(placement, split, batch_size, kept, graph)

    @property
    def steps_per_epoch(self) -> int:
        return len(self._steps)

    def epoch(self, epoch: int, *, first_step: int = 0, lighting: bool = True) -> Iterator[Batch]:
        """The batches of an epoch, starting with ``first_step``."""
        return prefetch(self._epoch(epoch, first_step, lighting), self._stream)

    def _epoch(self, epoch: int, first_step: int, lighting: bool) -> Iterator[Batch]:
        count = len(self._split.labels)
        indices = augmentation.epoch_order(count, self._seed, epoch, self._shuffle)
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
    """The images of a split in order, each in 1 view (the centre crop) or 10; never divided.

    ``only`` selects images by their positions in the split.

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
        kept: Images | None = None,
        only: npt.NDArray[np.int64] | None = None,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._size = split, input_size
        self._only = only
        self.indices = np.arange(len(split.labels)) if only is None else only
        self.labels = split.labels[self.indices]
        self._steps = placement.steps(len(self.indices), batch_size)
        self._views = view_positions(views, store.size, input_size)
        self._augment = augment
        assert store.mean_image is not None  # of the store, or put there from the network
        self._mean = torch.from_numpy(store.mean_image).to(placement.device)  # [P, P, 3]
        shape = (store.size, store.size, 3)
        self._no_images = torch.empty((0, *shape), dtype=torch.uint8, device=placement.device)
        self._kept = kept
        if kept is None:
            graph = partial(dali.full_image_graph, placement.decoder)
            self._input = InputPipeline(
                placement, split, batch_size, shape, alone=graph, first=graph
            )

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._steps)

    def batches(self) -> Iterator[Batch]:
        indices = self.indices
        labels = torch.from_numpy(self.labels).to(self._mean.device)
        plans = [
            BatchPlan(indices[positions], (), ()) for positions, rows in self._steps if rows.size
        ]
        if self._kept is None:
            stored_batches = self._input.read(plans)
        else:  # in order: slices, which are not copied on a CPU
            whole = self._only is None
            parts = (
                self._kept[p.indices[0] : p.indices[-1] + 1] if whole else self._kept[p.indices]
                for p in plans
            )
            stored_batches = (torch.from_numpy(part).to(self._mean.device) for part in parts)
        for positions, rows in self._steps:
            stored = next(stored_batches) if rows.size else self._no_images
            # Not in DALI, whose queue would hold ten crops of each image.
            images = extract_views(stored, self._views, self._mean, self._augment, self._size)
            yield Batch(images, labels[positions], indices[positions], rows)


def _check_input_size(store: Store, input_size: int) -> None:
    if not 1 <= input_size <= store.size:
        remedy = f"must be 1 to {store.size}, the size of the images in {store.root}"
        raise ConfigError("model.input_size", input_size, remedy)


def content_digest(images: Tensor) -> str:
    """Digest of a batch in channels-last order, computed on its device: float32 [n, …].

    The sum of its words, and the sum of each word times its place, modulo 2^64. Changing a single
    word changes the first; exchanging two words that differ, and so images or channels, changes the
    second by (w1 - w2)·(i - j), which is not 0 modulo 2^64. It is not safe against an adversary.
    """
    dense = images.detach().permute(0, *range(2, images.dim()), 1)  # channels last
    words = (dense if dense.is_contiguous() else dense.contiguous()).flatten(1).view(torch.int32)
    kernels = native.kernels()
    if words.is_cpu and kernels is not None:
        sums = kernels.digest(words)
    else:
        count, length = words.shape
        places = torch.arange(length, device=words.device)
        if words.is_cpu:  # image by image, in the processor's cache
            by_image = [torch.stack([row.sum(), (row * places).sum()]) for row in words]
            plain, weighted = torch.stack(by_image).T if by_image else torch.zeros(2, 0).long()
        else:
            plain, weighted = words.sum(1), (words * places).sum(1)
        offsets = length * torch.arange(count, device=words.device)
        both = torch.stack([plain.sum(), (weighted + offsets * plain).sum()]).tolist()
        sums = both[0], both[1]
    return "".join(f"{value % 2**64:016x}" for value in sums)
