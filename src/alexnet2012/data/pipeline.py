"""Batches: files of a store are read, decoded and augmented by DALI, ahead of the training.

DALI draws nothing and orders nothing here: it is fed paths and draws from :mod:`.order`, batch by
batch. So a batch depends on the seed, the epoch and the step alone, and a run can start anywhere.

Legend: n pictures of this replica, V views, S pixels a side of the input, P of the store.
"""

from __future__ import annotations

import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from alexnet2012.config import AugmentConfig, ConfigError, RunError
from alexnet2012.data import order
from alexnet2012.data.store import Split, Store
from alexnet2012.sharding import Share, largest_share

CPU = torch.device("cpu")


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
        replica: int = 0,
        replicas: int = 1,
        device: torch.device = CPU,
        threads: int = 2,
    ) -> None:
        _check_input_size(store, input_size)
        self._split, self._augment, self._seed = split, augment, seed
        self._parts = order.replica_parts(len(split.labels), batch_size, replica, replicas)
        self._margin = store.size - input_size
        self._basis = order.lighting_basis(store.rgb_covariance, augment.lighting_scale)
        self._empty = torch.empty((0, 3, input_size, input_size), device=device)
        graph = partial(_augmented, store.mean_image, augment, input_size)
        self._reader = _Reader(graph, largest_share(batch_size, replicas), device, threads)

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
        feeds = (
            _Feed(
                [self._split.paths[index] for index in indices[at]],
                (
                    draws.crop_yx[at],
                    draws.flip[at].astype(np.int32),
                    -offsets[at],
                    np.full((rows.size, 3), divisor),
                ),
            )
            for at, rows in parts
            if rows.size
        )
        images = self._reader.read(feeds)
        for at, rows in parts:
            yield _batch(next(images) if rows.size else self._empty, self._split, indices[at], rows)


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
        replica: int = 0,
        replicas: int = 1,
        device: torch.device = CPU,
        threads: int = 2,
    ) -> None:
        _check_input_size(store, input_size)
        if views not in (1, 10):
            raise ConfigError("views", views, "must be 1 (the centre) or 10")
        self._split, self._size = split, input_size
        self._parts = order.replica_parts(len(split.labels), batch_size, replica, replicas)
        self._views = (order.ten_views if views == 10 else order.centre_view)(
            store.size, input_size
        )
        self._empty = torch.empty((0, 3, store.size, store.size), device=device)
        whole_mean = (
            store.mean_image if augment.mean_follows_crop else np.zeros_like(store.mean_image)
        )
        self._centre_mean = torch.zeros(())
        if not augment.mean_follows_crop:
            (y, x, _), end = order.centre_view(store.size, input_size)[0], input_size
            centre = store.mean_image[y : y + end, x : x + end]
            self._centre_mean = torch.from_numpy(centre).permute(2, 0, 1).to(device)
        graph = partial(_whole, whole_mean)
        self._reader = _Reader(graph, largest_share(batch_size, replicas), device, threads)

    def __iter__(self) -> Iterator[Batch]:
        return self.batches()

    def __len__(self) -> int:
        return len(self._parts)

    def batches(self) -> Iterator[Batch]:
        """All batches of the split."""
        indices = np.arange(len(self._split.labels))
        feeds = (_Feed(self._split.paths[at], ()) for at, rows in self._parts if rows.size)
        pictures = self._reader.read(feeds)
        for at, rows in self._parts:
            images = self._viewed(next(pictures) if rows.size else self._empty)
            yield _batch(images, self._split, indices[at], rows)

    def _viewed(self, pictures: Tensor) -> Tensor:
        """[n, 3, P, P] → [n, V, 3, S, S]."""
        # Here and not in DALI, whose queue would hold ten crops of each picture.
        size = self._size
        shape = (len(pictures), len(self._views), 3, size, size)
        views = torch.empty(shape, dtype=pictures.dtype, device=pictures.device)
        for view, (y, x, flip) in enumerate(self._views.tolist()):
            crop = pictures[..., y : y + size, x : x + size]
            views[:, view] = crop.flip(-1) if flip else crop
        return views.sub_(self._centre_mean)


class _Feed(NamedTuple):
    """What DALI is given for a batch: paths and, for training, crop, flip, -lighting, divisor."""

    paths: Sequence[str]
    draws: tuple[npt.NDArray[Any], ...]


# What DALI calls for the next batch: an array, or a list of arrays, for each input.
Source = Callable[[], list[Any]]


class _Reader:
    """One DALI pipeline that goes through any feeds, with the next batch under way.

    ``graph(place, source)`` makes its output; place is "cpu" or "gpu".
    """

    def __init__(
        self,
        graph: Callable[[str, Source], Any],
        batch_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self._graph, self._batch_size = graph, batch_size
        self._device, self._threads = device, threads
        self._pipe: Pipeline | None = None
        self._feeds: Iterator[_Feed] = iter(())
        self._in_flight: deque[Sequence[str]] = deque(maxlen=3)  # two queued, one going out
        self._reading = 0

    def read(self, feeds: Iterator[_Feed]) -> Iterator[Tensor]:
        """The output for each feed, float32 [n, …]."""
        self._reading += 1
        mine = self._reading
        pipe = self._rewound()
        self._feeds = feeds
        while True:
            if mine != self._reading:
                raise RuntimeError("this iteration is over: the loader has started another one")
            try:
                output = self._run(pipe)
            except StopIteration:
                return
            except RuntimeError as error:
                self._pipe = None  # a pipeline that has failed cannot go on
                raise _blame(self._in_flight, str(error)) from error
            yield output

    def _run(self, pipe: Pipeline) -> Tensor:
        cuda = self._device.type == "cuda"
        (output,) = pipe.run(torch.cuda.current_stream(self._device) if cuda else None)
        # No copy, which would take half of the time on a CPU: in the dynamic executor a buffer
        # belongs to the tensor until it is freed, on that stream.
        return from_dlpack(output.as_tensor())

    def _rewound(self) -> Pipeline:
        """The pipeline with nothing queued, wherever the iteration before has stopped."""
        if self._pipe is None:
            self._pipe = self._built()
            return self._pipe
        self._feeds = iter(())
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._pipe.reset()
        return self._pipe

    def _next(self) -> list[Any]:
        feed = next(self._feeds)
        self._in_flight.append(feed.paths)
        return [[np.frombuffer(os.fsencode(path), np.uint8) for path in feed.paths], *feed.draws]

    def _built(self) -> Pipeline:
        cuda = self._device.type == "cuda"
        pipe = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if cuda else None,
            prefetch_queue_depth=2,
            exec_dynamic=True,
        )
        with pipe:
            pipe.set_outputs(self._graph("gpu" if cuda else "cpu", self._next))
        pipe.build()
        return pipe


def _augmented(
    mean_image: npt.NDArray[np.float32],
    augment: AugmentConfig,
    size: int,
    place: str,
    source: Source,
) -> Any:
    """The pictures as they are trained on: float32 [3, S, S]."""
    path, yx, flip, minus_offset, divisor = fn.external_source(
        source,
        num_outputs=5,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1, 1, 0, 1, 1],
    )

    def window(image: Any, start: Any) -> Any:
        return fn.slice(image, start=start, shape=[size, size], axes=(0, 1))

    crop = window(_decoded(path, place), yx)
    mean = types.Constant(mean_image, device=place)
    if augment.mean_follows_crop:
        # The mean is of the pixel's place in the picture: subtract, then flip.
        centred = crop - window(mean, yx)
    else:
        centred = fn.flip(crop, horizontal=flip) - window(mean, [(len(mean_image) - size) // 2] * 2)
    return fn.crop_mirror_normalize(
        fn.reinterpret(centred, layout="HWC"),
        mirror=flip if augment.mean_follows_crop else 0,
        mean=minus_offset,
        std=divisor,
        output_layout="CHW",
        dtype=types.FLOAT,
    )


def _whole(mean_image: npt.NDArray[np.float32], place: str, source: Source) -> Any:
    """The stored pictures minus a mean image: float32 [3, P, P]."""
    (path,) = fn.external_source(source, num_outputs=1, dtype=[types.UINT8], ndim=[1])
    centred = _decoded(path, place) - types.Constant(mean_image, device=place)
    return fn.transpose(centred, perm=[2, 0, 1])


def _decoded(path: Any, place: str) -> Any:
    device = "mixed" if place == "gpu" else "cpu"
    return fn.decoders.image(fn.io.file.read(path), device=device, output_type=types.RGB)


def _batch(images: Tensor, split: Split, indices: npt.NDArray[np.int64], rows: Share) -> Batch:
    return Batch(images, torch.from_numpy(split.labels[indices]).to(images.device), indices, rows)


def _check_input_size(store: Store, input_size: int) -> None:
    if not 1 <= input_size <= store.size:
        remedy = f"must be 1 to {store.size}, the size of the pictures in {store.root}"
        raise ConfigError("model.input_size", input_size, remedy)


def _blame(batches: Iterable[Sequence[str]], message: str) -> Exception:
    """Which of the files under way is at fault, as far as it can be found out afterwards."""
    for path in (path for paths in batches for path in paths):
        try:
            with open(path, "rb") as file:
                simplejpeg.decode_jpeg(file.read())
        except (OSError, ValueError) as error:
            remedy = f"cannot be read ({error}); remove the store and prepare it again"
            return ConfigError("data.store", path, remedy)
    return RunError(f"DALI stopped: {' '.join(message.split())}")


def content_digest(images: Tensor) -> int:
    """CRC-32 of a batch: differs between ranks that were given other pictures or another order."""
    return zlib.crc32(images.detach().cpu().contiguous().numpy().data)
