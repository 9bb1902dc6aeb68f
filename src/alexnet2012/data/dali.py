"""DALI pipelines: read, decode, crop and augment images ahead of their use.

DALI neither shuffles nor draws random numbers: :mod:`.loaders` feeds it the paths and augmentation
parameters of each batch. ``crop_graph`` turns files into uint8 crops, ``augment_graph`` augments
crops, and ``train_graph`` does both for a process that decodes all its images itself. Outputs are
channels-last, as the network reads them. The bytes of the files are an additional output, to be
verified against the store's digests.

Shapes: n images, S×S pixels of a crop, P×P pixels of a stored image.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from stat import S_ISREG
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
from alexnet2012.utils.untrusted import read_bytes

DIGEST_THREADS = 4


class ExternalFeed(NamedTuple):
    """A pipeline's input for one batch: images to read, if any, and arrays of arguments."""

    indices: npt.NDArray[np.int64]  # [n] positions in the split, or empty
    arrays: tuple[npt.NDArray[Any] | list[npt.NDArray[Any]] | Tensor, ...]


# Called by DALI for the next batch: returns an array, or list of arrays, for each input.
InputCallback = Callable[[], list[Any]]
# Builds a DALI graph on "cpu" or "gpu" with inputs from a callback; returns the graph's outputs.
GraphBuilder = Callable[[str, InputCallback], Sequence[Any]]


class DaliPipeline:
    """A reusable, prefetching DALI pipeline over any sequence of feeds.

    A second output of its graph, if present, is the bytes of the files read.
    """

    def __init__(
        self, graph: GraphBuilder, split: Split, batch_size: int, device: torch.device, threads: int
    ) -> None:
        self._graph, self._split, self._batch_size = graph, split, batch_size
        self._device, self._threads = device, threads
        self._pipe: Pipeline | None = None
        self._feeds: Iterator[ExternalFeed] = iter(())
        self._in_flight: deque[npt.NDArray[np.int64]] = deque()
        self._unverified = np.ones(len(split.paths), np.bool_)
        self._digest_pool = ThreadPoolExecutor(DIGEST_THREADS)

    def read(self, feeds: Iterator[ExternalFeed]) -> Iterator[Tensor]:
        """The pipeline's output for each feed: [n, …]."""
        pipe = self._reset_pipeline()
        self._feeds = feeds
        self._in_flight.clear()
        while True:
            if feeds is not self._feeds:
                raise RuntimeError("this iterator is invalid: the loader has started a new one")
            try:
                output = self._run(pipe)
            except StopIteration:
                return
            except RunError:  # from a collective within a feed
                raise
            except RuntimeError as error:
                self._pipe = None  # a failed pipeline cannot be used again
                raise self._find_cause(str(error)) from error
            yield output

    def _run(self, pipe: Pipeline) -> Tensor:
        on_gpu = self._device.type == "cuda"
        output, *files = pipe.run(torch.cuda.current_stream(self._device) if on_gpu else None)
        indices = self._in_flight.popleft()
        for batch in files:
            self._verify(indices, batch)
        # Without a copy, which would take half of the time on a CPU: in the dynamic executor the
        # tensor owns its buffer until it is freed, on that stream.
        return from_dlpack(output.as_tensor())

    def _reset_pipeline(self) -> Pipeline:
        """The pipeline with empty queues, wherever the previous iteration stopped."""
        if self._pipe is None:
            self._pipe = self._build_pipeline()
            return self._pipe
        self._feeds = iter(())
        try:
            while True:
                self._pipe.run()
        except StopIteration:
            self._pipe.reset()
        return self._pipe

    def _next_inputs(self) -> list[Any]:
        feed = next(self._feeds)
        self._in_flight.append(feed.indices)
        for index in feed.indices[self._unverified[feed.indices]] if len(feed.indices) else ():
            _check_is_file(self._split.paths[index])
        names = (self._split.paths[index] for index in feed.indices)
        paths = [np.frombuffer(os.fsencode(path), np.uint8) for path in names]
        # DALI accepts tensors on a GPU, and arrays on the CPU, without a copy.
        arrays = [x.numpy() if isinstance(x, Tensor) and x.is_cpu else x for x in feed.arrays]
        return [paths, *arrays] if paths else arrays

    def _build_pipeline(self) -> Pipeline:
        cuda = self._device.type == "cuda"
        pipe = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._threads,
            device_id=(self._device.index or 0) if cuda else None,
            prefetch_queue_depth=2,
            exec_dynamic=True,
        )
        with pipe:
            pipe.set_outputs(*self._graph("gpu" if cuda else "cpu", self._next_inputs))
        pipe.build()
        return pipe

    def _verify(self, indices: npt.NDArray[np.int64], files: Any) -> None:
        """Compare each image file with its digest when it is first read."""
        unverified = np.flatnonzero(self._unverified[indices])
        if not len(unverified):
            return

        def first_mismatch(rows: npt.NDArray[np.int64]) -> int | None:
            for row, index in zip(rows, indices[rows], strict=True):
                digest = hashlib.sha256(np.asarray(files[row]).data).digest()
                if digest != self._split.sha256[index].tobytes():
                    return int(index)
            return None

        # In threads: the batch waits for the digests, and a GPU decodes fast.
        chunks = np.array_split(unverified, DIGEST_THREADS)
        for index in self._digest_pool.map(first_mismatch, chunks):
            if index is not None:
                raise _image_error(self._split.paths[index], "does not match its checksum")
        self._unverified[indices] = False

    def _find_cause(self, message: str) -> Exception:
        """The error for the first unreadable file in flight, or DALI's own message."""
        for path in (self._split.paths[index] for batch in self._in_flight for index in batch):
            try:
                simplejpeg.decode_jpeg(read_bytes(path))
            except (OSError, ValueError) as error:
                return _image_error(path, f"cannot be read ({error})")
        return RunError(f"the DALI pipeline failed: {' '.join(message.split())}")


def train_graph(size: int, decoder: Decoder, device: str, source: InputCallback) -> Sequence[Any]:
    """Crop, flip, add an RGB offset and divide: files → float32 [S, S, 3]; the files' bytes."""
    path, yx, *augment_args = fn.external_source(
        source,
        num_outputs=5,
        dtype=[types.UINT8, types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1, 1, 0, 1, 1],
    )
    file = fn.io.file.read(path)
    return _augment(_decode_crop(file, yx, size, decoder, device), *augment_args), file


def kept_graph(size: int, margin: int, device: str, source: InputCallback) -> Sequence[Any]:
    """Crop and augment decoded images: uint8 [P, P, 3] → float32 [S, S, 3], as in train_graph.

    ``margin``: P - S.
    """
    image_source, args_source = _split_first(source)
    image = fn.external_source(
        image_source,
        dtype=types.UINT8,
        ndim=3,
        layout="HWC",
        no_copy=True,  # images outlive the pipeline
    )
    yx, *augment_args = fn.external_source(
        args_source,
        num_outputs=4,
        dtype=[types.INT32, types.INT32, types.FLOAT, types.FLOAT],
        ndim=[1, 0, 1, 1],
    )
    y, x = (yx[axis] / float(max(1, margin)) for axis in range(2))  # relative positions
    crop = {"crop": (size, size), "crop_pos_y": y, "crop_pos_x": x}
    if device == "gpu":  # only the crops are copied to it
        return (_augment(fn.crop(image, **crop).gpu(), *augment_args),)
    return (_augment(image, *augment_args, **crop),)


def crop_graph(size: int, decoder: Decoder, device: str, source: InputCallback) -> Sequence[Any]:
    """Crop only: files → uint8 [S, S, 3]; the files' bytes."""
    path, yx = fn.external_source(
        source, num_outputs=2, dtype=[types.UINT8, types.INT32], ndim=[1, 1]
    )
    file = fn.io.file.read(path)
    return _decode_crop(file, yx, size, decoder, device), file


def augment_graph(device: str, source: InputCallback) -> Sequence[Any]:
    """Augment the crops of :func:`crop_graph`: uint8 → float32 [S, S, 3], as in train_graph."""
    crop_source, args_source = _split_first(source)
    augment_args = fn.external_source(
        args_source, num_outputs=3, dtype=[types.INT32, types.FLOAT, types.FLOAT], ndim=[0, 1, 1]
    )
    crop = fn.external_source(crop_source, device=device, dtype=types.UINT8, ndim=3, layout="HWC")
    return (_augment(crop, *augment_args),)


def full_image_graph(decoder: Decoder, device: str, source: InputCallback) -> Sequence[Any]:
    """Decode only: files → uint8 [P, P, 3]; the files' bytes."""
    (path,) = fn.external_source(source, num_outputs=1, dtype=[types.UINT8], ndim=[1])
    file = fn.io.file.read(path)
    return _decode(fn.decoders.image, file, decoder, device), file


def _augment(image: Any, flip: Any, minus_offset: Any, divisor: Any, **crop: Any) -> Any:
    # One pass over the memory; DALI's arithmetic operators would each add another.
    return fn.crop_mirror_normalize(
        image,
        mirror=flip,
        mean=minus_offset,
        std=divisor,
        output_layout="HWC",
        dtype=types.FLOAT,
        **crop,
    )


def _decode_crop(file: Any, start: Any, size: int, decoder: Decoder, device: str) -> Any:
    # Skips the rows below the crop, and colour conversion outside it.
    decode = partial(fn.decoders.image_slice, start=start, shape=[size, size], axes=(0, 1))
    return _decode(decode, file, decoder, device)


def _decode(operator: Callable[..., Any], file: Any, decoder: Decoder, device: str) -> Any:
    on_gpu = device == "gpu" and decoder is not Decoder.cpu
    image = operator(file, device="mixed" if on_gpu else "cpu", output_type=types.RGB)
    return image.gpu() if device == "gpu" and not on_gpu else image


def _split_first(source: InputCallback) -> tuple[InputCallback, InputCallback]:
    """Separate callbacks for the first array and the others.

    One external_source operator cannot place only some of its outputs on a GPU.
    """
    queues: tuple[deque[Any], deque[Any]] = (deque(), deque())

    def next_from(index: int) -> Any:
        if not queues[index]:  # DALI may call either one first
            first, *others = source()
            queues[0].append(first)
            queues[1].append(others)
        return queues[index].popleft()

    return (lambda: next_from(0)), (lambda: next_from(1))


def _check_is_file(path: str) -> None:
    """ConfigError for a pipe or a device in the place of an image: DALI would read it for ever."""
    try:
        regular = S_ISREG(Path(path).stat().st_mode)
    except OSError as error:
        raise _image_error(path, f"cannot be read ({error})") from error
    if not regular:
        raise _image_error(path, "is not a regular file")


def _image_error(path: str, problem: str) -> ConfigError:
    return ConfigError("data.store", path, f"{problem}; remove the store and prepare it again")
