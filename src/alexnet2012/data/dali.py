"""The DALI side of the input: files are read, decoded, cropped and augmented ahead of use.

DALI draws nothing and orders nothing here: it is fed paths and draws, batch by batch, by
:mod:`.loaders`. Two graphs: ``cut`` makes uint8 windows of files, ``finish`` augments them; a
process that decodes all its pictures by itself runs both as one. Pixels come last, as the net
reads them. What was read of the files comes out beside them, to be compared with the store's list.

Legend: n pictures, S pixels a side of a window, P of the store.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from alexnet2012.config.enums import Decoder
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.store import Split

CHECKERS = 4  # threads that compute digests


class ExternalFeed(NamedTuple):
    """What a pipeline is given for a batch: pictures of the split, if it reads any, and arrays."""

    indices: npt.NDArray[np.int64]  # [n] or none
    arrays: tuple[npt.NDArray[Any] | Tensor, ...]


# What DALI calls for the next batch: an array, or a list of arrays, for each input.
Source = Callable[[], list[Any]]


class Reader:
    """One DALI pipeline that goes through any feeds, with the next batches under way.

    ``graph(place, source)`` makes its outputs; place is "cpu" or "gpu". The second, if there is
    one, is the bytes of the files that were read.
    """

    def __init__(
        self,
        graph: Callable[[str, Source], Sequence[Any]],
        split: Split,
        batch_size: int,
        device: torch.device,
        threads: int,
    ) -> None:
        self._graph, self._split, self._batch_size = graph, split, batch_size
        self._device, self._threads = device, threads
        self._pipe: Pipeline | None = None
        self._feeds: Iterator[ExternalFeed] = iter(())
        self._in_flight: deque[npt.NDArray[np.int64]] = deque()
        self._unchecked = np.ones(len(split.paths), np.bool_)
        self._checkers = ThreadPoolExecutor(CHECKERS)
        self._reading = 0

    def read(self, feeds: Iterator[ExternalFeed]) -> Iterator[Tensor]:
        """The output for each feed, [n, …].

        Raises:
            ConfigError: a file cannot be read, or is not the one that was prepared; names it.
        """
        self._reading += 1
        mine = self._reading
        pipe = self._rewound()
        self._feeds = feeds
        self._in_flight.clear()
        while True:
            if mine != self._reading:
                raise RuntimeError("this iteration is over: the loader has started another one")
            try:
                output = self._run(pipe)
            except StopIteration:
                return
            except RunError:  # of the towers' exchange, called from within
                raise
            except RuntimeError as error:
                self._pipe = None  # a pipeline that has failed cannot go on
                raise self._blame(str(error)) from error
            yield output

    def _run(self, pipe: Pipeline) -> Tensor:
        cuda = self._device.type == "cuda"
        output, *read = pipe.run(torch.cuda.current_stream(self._device) if cuda else None)
        indices = self._in_flight.popleft()
        for files in read:
            self._check(indices, files)
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
        self._in_flight.append(feed.indices)
        named = (self._split.paths[index] for index in feed.indices)
        paths = [np.frombuffer(os.fsencode(path), np.uint8) for path in named]
        # DALI reads tensors of a GPU where they are, and of the CPU as arrays.
        arrays = [x.numpy() if isinstance(x, Tensor) and x.is_cpu else x for x in feed.arrays]
        return [paths, *arrays] if paths else arrays

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
            pipe.set_outputs(*self._graph("gpu" if cuda else "cpu", self._next))
        pipe.build()
        return pipe

    def _check(self, indices: npt.NDArray[np.int64], files: Any) -> None:
        """Refuse a picture that has changed since it was prepared, when it is first read."""
        unchecked = np.flatnonzero(self._unchecked[indices])
        if not len(unchecked):
            return

        def first_changed(places: npt.NDArray[np.int64]) -> int | None:
            for at, index in zip(places, indices[places], strict=True):
                digest = hashlib.sha256(np.asarray(files[at]).data).digest()
                if digest != self._split.sha256[index].tobytes():
                    return int(index)
            return None

        # In threads: the batch waits for it, and a GPU's decoder is fast.
        for index in self._checkers.map(first_changed, np.array_split(unchecked, CHECKERS)):
            if index is not None:
                raise _spoilt(self._split.paths[index], "is not as it was prepared")
        self._unchecked[indices] = False

    def _blame(self, message: str) -> Exception:
        """Which of the files under way is at fault, as far as it can be found out afterwards."""
        for path in (self._split.paths[index] for batch in self._in_flight for index in batch):
            try:
                with open(path, "rb") as file:
                    simplejpeg.decode_jpeg(file.read())
            except (OSError, ValueError) as error:
                return _spoilt(path, f"cannot be read ({error})")
        return RunError(f"DALI stopped: {' '.join(message.split())}")


def augmented(size: int, decoder: Decoder, place: str, source: Source) -> Sequence[Any]:
    """Windows of files, flipped, less an offset a colour, divided: float32 [S, S, 3]; the files."""
    path, yx, *draws = fn.external_source(
        source,
        num_outputs=5,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1, 1, 0, 1, 1],
    )
    file = fn.io.file.read(path)
    return _finished(_window(file, yx, size, decoder, place), *draws), file


def cut(size: int, decoder: Decoder, place: str, source: Source) -> Sequence[Any]:
    """Windows of files: uint8 [S, S, 3]; the files."""
    path, yx = fn.external_source(
        source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
    )
    file = fn.io.file.read(path)
    return _window(file, yx, size, decoder, place), file


def finish(place: str, source: Source) -> Sequence[Any]:
    """What :func:`cut` made, as :func:`augmented` makes it: uint8 → float32 [S, S, 3]."""
    of_windows, of_draws = _parted(source)
    draws = fn.external_source(
        of_draws,
        num_outputs=3,
        dtype=[types.INT32, types.FLOAT, types.FLOAT],
        ndim=[0, 1, 1],
    )
    window = fn.external_source(of_windows, device=place, dtype=types.UINT8, ndim=3, layout="HWC")
    return (_finished(window, *draws),)


def whole(decoder: Decoder, place: str, source: Source) -> Sequence[Any]:
    """The pictures of files: uint8 [P, P, 3]; the files."""
    (path,) = fn.external_source(source, num_outputs=1, dtype=[types.UINT8], ndim=[1])
    file = fn.io.file.read(path)
    return _decoded(fn.decoders.image, file, decoder, place), file


def _finished(window: Any, flip: Any, minus_offset: Any, divisor: Any) -> Any:
    # One pass over the memory: DALI's arithmetic operators would each take another.
    return fn.crop_mirror_normalize(
        window,
        mirror=flip,
        mean=minus_offset,
        std=divisor,
        output_layout="HWC",
        dtype=types.FLOAT,
    )


def _window(file: Any, start: Any, size: int, decoder: Decoder, place: str) -> Any:
    # Rows below the window are not decoded, nor are colours outside it converted.
    of_window = partial(fn.decoders.image_slice, start=start, shape=[size, size], axes=(0, 1))
    return _decoded(of_window, file, decoder, place)


def _decoded(decode: Callable[..., Any], file: Any, decoder: Decoder, place: str) -> Any:
    on_gpu = place == "gpu" and decoder is not Decoder.cpu
    image = decode(file, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    return image.gpu() if place == "gpu" and not on_gpu else image


def _parted(source: Source) -> tuple[Source, Source]:
    """The first array of each batch, and the others: one operator can't take both to one GPU."""
    queues: tuple[deque[Any], deque[Any]] = (deque(), deque())

    def part(index: int) -> Any:
        if not queues[index]:  # in whichever order they are asked
            first, *others = source()
            queues[0].append(first)
            queues[1].append(others)
        return queues[index].popleft()

    return (lambda: part(0)), (lambda: part(1))


def _spoilt(path: str, what: str) -> ConfigError:
    return ConfigError("data.store", path, f"{what}; remove the store and prepare it again")
