"""How fast is the input pipeline, compared with the usual alternatives?

    python benchmarks/input.py [pictures=2000] [rounds=3] [seconds=8] [arms=all]

Variants take turns, each in a new process, with the same images, crops, flips and lighting, two
workers or threads, and files in the page cache. With a GPU there are also variants that decode on
it, and one worker or thread per core; ``arms=gpu`` selects these and their baselines. In epoch 1
every file is compared with its digest; in later epochs, whose first batch waits for epoch 1, none.
Prints images/s and ratios to a DataLoader with Pillow, and writes results/input.json, which also
has the difference between the augmented images and Pillow's.

Shapes: S pixels a side of the input, P of the store.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
import torch
from PIL import Image
from record import given, keep, show
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from alexnet2012.config.schema import PrepareConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data import augmentation
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Split, Store

ON_GPU = torch.cuda.is_available()
S, P, BATCH, SEED = 224, 256, 128, 0
WORKERS = len(os.sched_getaffinity(0)) if ON_GPU else 2
AUGMENT = load_recipe("paper").augment
STORE, ORIGINALS = "store", "originals"
# Photographs of scikit-image that are sharp at 500 × 375: at this quality the mean file size is
# that of ImageNet, 110 kB.
PHOTOS = ["astronaut.png", "coffee.png", "grass.png", "gravel.png"]
PHOTOS += ["hubble_deep_field.jpg", "ihc.png", "motorcycle_left.png"]
WIDTH, HEIGHT, QUALITY = 500, 375, 96
LATER_EPOCH_BATCHES = 24  # of an epoch after the first; none is smaller
WARM_UP_BATCHES, MEMORY_BATCHES, COMPARED = 4, 6, 16
MOST_PER_S = 50_000 if ON_GPU else 20_000  # more than any variant reads, so that no epoch ends


class Pictures:
    """The images, listed many times, and TrainLoader's augmentation parameters of epoch 0."""

    def __init__(self, folder: Path, source: str, at_least: int) -> None:
        self.store = Store.open(folder / STORE)
        split = self.store.split("train")
        times = at_least // len(split.labels) + 1
        digests = np.tile(split.sha256, (times, 1))
        self.split = Split(split.paths * times, np.tile(split.labels, times), digests)
        rows = np.resize(np.arange(len(split.labels)), LATER_EPOCH_BATCHES * BATCH)
        paths = tuple(split.paths[row] for row in rows)
        self.later_epoch = Split(paths, split.labels[rows], split.sha256[rows])
        self._listed = split.paths * times
        if source == ORIGINALS:
            # The fourth column is the name of an image in the source.
            lines = (folder / STORE / "train.tsv").read_text(encoding="utf-8").splitlines()
            names = [json.loads(line.split("\t")[3]) for line in lines]
            self._listed = tuple(f"{folder / ORIGINALS}/{name}" for name in names) * times

    def draw(self) -> None:
        """Separate from __init__, since each loader does this as part of its first batch."""
        count = len(self.split.labels)
        self.paths = [self._listed[index] for index in augmentation.epoch_order(count, SEED, 0)]
        draws = augmentation.sample_params(AUGMENT, count, P - S, SEED, 0)
        basis = augmentation.lighting_basis(self.store.rgb_covariance, AUGMENT.lighting_scale)
        self.yx, self.flip = draws.crop_yx, draws.flip  # corners in the square of P × P
        self.offsets = (draws.alpha @ basis.T).astype(np.float32)  # grey levels


def ours(
    pictures: Pictures, device: str = "cpu", *, kept: bool = False, first_epoch: bool = True
) -> Iterator[Tensor]:
    """From files, as in the first epoch or a later one, or from images ``kept`` in memory."""
    from alexnet2012.config.enums import Decoder, Device
    from alexnet2012.data.kept import keep_images
    from alexnet2012.data.loaders import TrainLoader
    from alexnet2012.data.tower_feed import LoaderPlacement
    from alexnet2012.distributed.launch import reuse_memory
    from alexnet2012.distributed.mesh import single_process

    reuse_memory()  # as every training does
    options: dict[str, Any] = {"input_size": S, "batch_size": BATCH, "seed": SEED}
    if kept:
        split = pictures.store.split("train")
        (images,) = keep_images([split], P, Decoder.auto, WORKERS, single_process(Device.cpu))
        options["kept"] = ListedOften(images)
    place = LoaderPlacement(threads=WORKERS, device=torch.device(device))
    split = pictures.split if first_epoch else pictures.later_epoch
    loader = TrainLoader(pictures.store, split, AUGMENT, **options, placement=place)
    if first_epoch:
        return (batch.images for batch in loader.epoch(0))
    deque(loader.epoch(0), maxlen=0)
    return (batch.images for epoch in itertools.count(1) for batch in loader.epoch(epoch))


class ListedOften:
    """Images that the split lists many times."""

    def __init__(self, images: npt.NDArray[np.uint8]) -> None:
        self._images = images

    def __getitem__(self, index: int) -> npt.NDArray[np.uint8]:
        return self._images[index % len(self._images)]


class CarefulDataset(Dataset[Tensor]):
    """Optimised Pillow and NumPy: converts only the crop, and writes float32 once."""

    def __init__(self, pictures: Pictures) -> None:
        pictures.draw()
        self.pictures = pictures
        self.mean = np.ascontiguousarray(pictures.store.mean_image.transpose(2, 0, 1))

    def __len__(self) -> int:
        return len(self.pictures.paths)

    def __getitem__(self, at: int) -> Tensor:
        y, x = self.pictures.yx[at].tolist()
        with Image.open(self.pictures.paths[at]) as picture:
            crop = np.asarray(self.crop(picture, y, x)).transpose(2, 0, 1)
        mean = self.mean[:, y : y + S, x : x + S]
        if self.pictures.flip[at]:
            crop, mean = crop[..., ::-1], mean[..., ::-1]
        image = np.empty((3, S, S), np.float32)
        np.subtract(crop, mean, out=image)
        image += self.pictures.offsets[at][:, None, None]
        return torch.from_numpy(image)

    def crop(self, picture: Image.Image, y: int, x: int) -> Image.Image:
        return picture.crop((x, y, x + S, y + S))


class CarefulOriginals(CarefulDataset):
    def crop(self, picture: Image.Image, y: int, x: int) -> Image.Image:
        """The same crop of the centre square; resizes only the crop."""
        scale = min(picture.size) / P
        left = (picture.width - P * scale) / 2 + x * scale
        top = (picture.height - P * scale) / 2 + y * scale
        box = (left, top, left + S * scale, top + S * scale)
        return picture.resize((S, S), Image.Resampling.BILINEAR, box=box)


class TensorDataset(CarefulDataset):
    """As in torchvision's reference training: PILToTensor, then operations on tensors."""

    def __getitem__(self, at: int) -> Tensor:
        with open(self.pictures.paths[at], "rb") as file:
            picture = Image.open(file).convert("RGB")
        image = torch.from_numpy(np.array(picture, copy=True)).permute(2, 0, 1)
        y, x = self.pictures.yx[at].tolist()
        window = (slice(None), slice(y, y + S), slice(x, x + S))
        image = image[window].to(torch.float32) - torch.from_numpy(self.mean)[window]
        if self.pictures.flip[at]:
            image = image.flip(-1)
        return image + torch.from_numpy(self.pictures.offsets[at])[:, None, None]


def data_loader(dataset: type[CarefulDataset], pictures: Pictures) -> Iterator[Tensor]:
    # Workers are forked by default on Linux, except within a process that was itself spawned.
    fork = get_context("fork")
    loader = DataLoader(dataset(pictures), BATCH, num_workers=WORKERS, multiprocessing_context=fork)
    return iter(loader)


def simplejpeg_decoding(pictures: Pictures) -> Iterator[Any]:
    """In threads, because simplejpeg releases the GIL; two batches in flight."""
    pictures.draw()
    paths, part = pictures.paths, BATCH // WORKERS

    def decoded(start: int) -> list[npt.NDArray[np.uint8]]:
        files = (Path(path) for path in paths[start : start + part])
        return [simplejpeg.decode_jpeg(file.read_bytes()) for file in files]

    with ThreadPoolExecutor(WORKERS) as pool:
        starts = iter(range(0, len(paths), part))
        parts = deque(pool.submit(decoded, next(starts)) for _ in range(2 * WORKERS))
        while True:
            batch = []
            for _ in range(WORKERS):
                batch += parts.popleft().result()
                parts.append(pool.submit(decoded, next(starts)))
            yield batch


def dali(graph: Callable[..., Any], pictures: Pictures) -> Iterator[Any]:
    from nvidia.dali import Pipeline, fn, types

    pictures.draw()
    starts = iter(range(0, len(pictures.paths), BATCH))
    kinds, ndim = [types.UINT8, types.INT32, types.INT32, types.FLOAT], [1, 1, 0, 1]
    decodes = graph is not from_originals
    inputs = 4 if graph is from_originals else 1 if graph is decoding else 2

    def feed() -> list[Any]:
        start = next(starts)
        rows = slice(start, start + BATCH)
        paths = [np.frombuffer(os.fsencode(path), np.uint8) for path in pictures.paths[rows]]
        flip = pictures.flip[rows].astype(np.int32)
        return [paths, pictures.yx[rows], flip, -pictures.offsets[rows]][:inputs]

    place = 0 if graph in (whole_on_gpu, crop_on_gpu) else None
    pipe = Pipeline(BATCH, WORKERS, device_id=place, prefetch_queue_depth=2, exec_dynamic=True)
    with pipe:
        path, *drawn = fn.external_source(
            feed, num_outputs=inputs, dtype=kinds[:inputs], ndim=ndim[:inputs]
        )
        pipe.set_outputs(graph(pictures.store, fn.io.file.read(path), *drawn))
    pipe.build()
    while True:
        (output,) = pipe.run()
        yield output if decodes else torch.from_dlpack(output.as_tensor())


def decoding(store: Store, jpeg: Any) -> Any:
    from nvidia.dali import fn

    return fn.decoders.image(jpeg)


def whole_on_gpu(store: Store, jpeg: Any, yx: Any) -> Any:
    """Decode the whole image, then cut the crop."""
    from nvidia.dali import fn

    return fn.slice(fn.decoders.image(jpeg, device="mixed"), yx, shape=[S, S], axes=(0, 1))


def crop_on_gpu(store: Store, jpeg: Any, yx: Any) -> Any:
    """Decode the crop alone, as our loader does."""
    from nvidia.dali import fn

    return fn.decoders.image_slice(jpeg, device="mixed", start=yx, shape=[S, S], axes=(0, 1))


def from_originals(store: Store, jpeg: Any, yx: Any, flip: Any, minus_offset: Any) -> Any:
    """The same result as Pillow, but decodes only the region of the crop."""
    from nvidia.dali import fn, math, types

    height_width = fn.cast(fn.peek_image_shape(jpeg)[:2], dtype=types.FLOAT)
    short = fn.reductions.min(height_width)
    scale = short / float(P)
    start = (height_width - short) / 2.0 + yx * scale
    end = start + scale * float(S)
    # The filter reaches one output pixel, ``scale`` input pixels, outside the crop.
    first = math.max(math.floor(start - scale - 1.0), 0.0)
    last = math.min(math.ceil(end + scale + 1.0), height_width)
    corners = {"start": first, "end": last}
    corners = {name: fn.cast(corner, dtype=types.INT32) for name, corner in corners.items()}
    part = fn.decoders.image_slice(jpeg, axes=(0, 1), **corners)
    window = {"size": [S, S], "roi_start": start - first, "roi_end": end - first}
    crop = fn.resize(part, interp_type=types.INTERP_TRIANGULAR, **window)
    return fn.crop_mirror_normalize(
        crop,
        mirror=flip,
        mean=minus_offset,
        std=[1.0] * 3,
        output_layout="HWC",
        dtype=types.FLOAT,
    )


def originals(pictures: Pictures) -> Iterator[Tensor]:
    """Subtracts the mean image after DALI, as our loader does."""
    from alexnet2012.distributed.launch import reuse_memory

    reuse_memory()
    mean = pictures.store.mean_image
    mirrored = np.ascontiguousarray(mean[:, ::-1])
    at = 0
    for batch in dali(from_originals, pictures):
        for picture in batch.numpy():
            (y, x), flip = pictures.yx[at].tolist(), pictures.flip[at]
            left = P - S - x if flip else x
            picture -= (mirrored if flip else mean)[y : y + S, left : left + S]
            at += 1
        yield batch.permute(0, 3, 1, 2)


class Arm(NamedTuple):
    source: str
    batches: Callable[[Pictures], Iterator[Any]]
    needs: str = "torch"  # imported before timing, and only by variants that use it


DALI = "nvidia.dali.fn"
PLAIN = {STORE: "DataLoader + Pillow", ORIGINALS: "originals: DataLoader + Pillow"}
ARMS = {
    "ours": Arm(STORE, ours, "alexnet2012.data.loaders"),
    "ours, after epoch 1": Arm(STORE, partial(ours, first_epoch=False), "alexnet2012.data.loaders"),
    "ours, kept in memory": Arm(STORE, partial(ours, kept=True), "alexnet2012.data.loaders"),
    PLAIN[STORE]: Arm(STORE, partial(data_loader, CarefulDataset)),
    "DataLoader + tensors": Arm(STORE, partial(data_loader, TensorDataset)),
    "decoding alone, simplejpeg": Arm(STORE, simplejpeg_decoding),
    "decoding alone, DALI": Arm(STORE, partial(dali, decoding), DALI),
    "originals: DALI": Arm(ORIGINALS, originals, DALI),
    PLAIN[ORIGINALS]: Arm(ORIGINALS, partial(data_loader, CarefulOriginals)),
    "originals: decoding alone, simplejpeg": Arm(ORIGINALS, simplejpeg_decoding),
}
GPU_ARMS = {
    "ours, on the GPU": Arm(STORE, partial(ours, device="cuda"), "alexnet2012.data.loaders"),
    "ours, on the GPU, after epoch 1": Arm(
        STORE, partial(ours, device="cuda", first_epoch=False), "alexnet2012.data.loaders"
    ),
    "crops alone, DALI, on the GPU: whole + slice": Arm(STORE, partial(dali, whole_on_gpu), DALI),
    "crops alone, DALI, on the GPU: image_slice": Arm(STORE, partial(dali, crop_on_gpu), DALI),
}
if ON_GPU:
    ARMS |= GPU_ARMS


class Measured(NamedTuple):
    images_per_s: float
    cpu_ms: float  # per image, of the process and its children: varies less on a shared machine
    first_batch_s: float  # including construction, but not imports
    memory_mib: float
    sample: npt.NDArray[np.float32] | None  # [COMPARED, 3, S, S]


def run_apart(name: str, folder: Path, seconds: float) -> Measured:
    """Run a variant in a new process, so that none reuses another's memory."""
    spawn = get_context("spawn")
    answer, sender = spawn.Pipe(duplex=False)
    process = spawn.Process(target=time_arm, args=(name, folder, seconds, sender))
    process.start()
    sender.close()  # so that recv() fails if the process dies
    measured: Measured = answer.recv()
    process.join()
    return measured


def time_arm(name: str, folder: Path, seconds: float, answer: Connection) -> None:
    arm = ARMS[name]
    import_module(arm.needs)
    pictures = Pictures(folder, arm.source, int(MOST_PER_S * (seconds + 2)))
    began = time.perf_counter()
    batches = arm.batches(pictures)
    first = next(batches)
    first_batch_s = time.perf_counter() - began
    sample = first[:COMPARED].cpu().numpy().copy() if isinstance(first, Tensor) else None
    del first
    for _ in range(WARM_UP_BATCHES):
        next(batches)
    finish = torch.cuda.synchronize if name in GPU_ARMS else lambda: None
    finish()
    processes = family(os.getpid())
    cpu_before, began, done = sum(map(cpu_s, processes)), time.perf_counter(), 0
    # Each worker makes one batch in turn.
    while time.perf_counter() < began + seconds or done % WORKERS:
        next(batches)
        done += 1
    finish()
    images_per_s = BATCH * done / (time.perf_counter() - began)
    cpu_ms = 1000 * (sum(map(cpu_s, processes)) - cpu_before) / (BATCH * done)
    memory_mib = []
    for _ in range(MEMORY_BATCHES):
        next(batches)
        memory_mib.append(sum(map(pss_mib, processes)))
    answer.send(Measured(images_per_s, cpu_ms, first_batch_s, max(memory_mib), sample))


def family(process: int) -> list[int]:
    """A process and all its descendants."""
    tasks = Path(f"/proc/{process}/task").glob("*/children")
    children = [int(child) for task in tasks for child in task.read_text().split()]
    return [process, *(one for child in children for one in family(child))]


def cpu_s(process: int) -> float:
    after_name = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    user, system = int(after_name[11]), int(after_name[12])
    return (user + system) / os.sysconf("SC_CLK_TCK")


def pss_mib(process: int) -> float:
    """Memory in use; shared memory is divided among the processes (PSS)."""
    lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1024


def write_originals(root: Path, count: int) -> None:
    """Write ``count`` training images, and one validation image per class."""
    spec = find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations, "scikit-image is missing"
    data = Path(spec.submodule_search_locations[0], "data")
    photos = [Image.open(data / file).convert("RGB") for file in PHOTOS]

    def write(index: int) -> None:
        rng, which = (
            augmentation.random_stream(SEED, "benchmark pictures", index),
            index % len(PHOTOS),
        )
        left, top = rng.integers(np.array(photos[which].size) - (WIDTH, HEIGHT) + 1).tolist()
        # Each image gets a random colour cast, because grey photographs have no colour to decode.
        contrast, brightness = rng.uniform(0.8, 1.2, (3, 1)), rng.uniform(-20, 20, (3, 1))
        table = (np.arange(256) - 127.5) * contrast + 127.5 + brightness
        levels = np.clip(np.rint(table), 0, 255).astype(int).ravel().tolist()
        picture = photos[which].crop((left, top, left + WIDTH, top + HEIGHT)).point(levels)
        to = root / ("train" if index < count else "val") / Path(PHOTOS[which]).stem
        to.mkdir(parents=True, exist_ok=True)
        picture.save(to / f"{index:06d}.jpg", quality=QUALITY, subsampling="4:2:0")

    with ThreadPoolExecutor(WORKERS) as pool:
        list(pool.map(write, range(count + len(PHOTOS))))


def mean_file_kb(root: Path) -> float:
    """Mean size of the training images; reading them also fills the page cache."""
    return statistics.mean(len(path.read_bytes()) for path in root.glob("train/*/*")) / 1000


def summary(name: str, measured: dict[str, list[Measured]]) -> dict[str, Any]:
    mine, plain = measured[name], measured[PLAIN[ARMS[name].source]]
    ratios = [m.images_per_s / p.images_per_s for m, p in zip(mine, plain, strict=True)]
    cpu_ratios = [p.cpu_ms / m.cpu_ms for m, p in zip(mine, plain, strict=True)]
    rate = statistics.median(m.images_per_s for m in mine)
    row: dict[str, Any] = {
        "arm": name,
        "images_per_s": rate,
        "images_per_s_per_core": rate / WORKERS,
        "ratio_to_plain": statistics.median(ratios),
        "ratio_range": [min(ratios), max(ratios)],
        "cpu_ms_per_image": statistics.median(m.cpu_ms for m in mine),
        "cpu_ratio_to_plain": statistics.median(cpu_ratios),
        "cpu_ratio_range": [min(cpu_ratios), max(cpu_ratios)],
        "memory_mib": max(m.memory_mib for m in mine),
        "first_batch_s": statistics.median(m.first_batch_s for m in mine),
    }
    if mine[0].sample is not None and plain[0].sample is not None:
        away = np.abs(mine[0].sample - plain[0].sample)
        row["grey_levels_from_plain"] = {"mean": float(away.mean()), "max": float(away.max())}
    return row


def main() -> None:
    words, load_before = given(pictures=2000, rounds=3, seconds=8.0, arms="all"), os.getloadavg()[0]
    if words.arms not in ("all", "gpu"):
        sys.exit(f"arms={words.arms}: must be all or gpu")
    if words.arms == "gpu" and not ON_GPU:
        sys.exit("arms=gpu: needs a GPU, and none is available; use arms=all")
    names = list(ARMS) if words.arms == "all" else ["ours", PLAIN[STORE], *GPU_ARMS]
    measured: dict[str, list[Measured]] = {name: [] for name in names}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        write_originals(folder / ORIGINALS, words.pictures)
        prepare(PrepareConfig(f"{folder / ORIGINALS}", f"{folder / STORE}", P), progress=False)
        sizes_kb = {source: mean_file_kb(folder / source) for source in (STORE, ORIGINALS)}
        for _ in range(words.rounds):
            for name in names:
                measured[name].append(run_apart(name, folder, words.seconds))
    rows = [summary(name, measured) for name in names]
    columns = {
        "": "{arm}",
        "images/s": "{images_per_s:.0f}",
        "images/s per core": "{images_per_s_per_core:.0f}",
        "ratio": "{ratio_to_plain:.2f}",
        "range": "{ratio_range[0]:.2f}-{ratio_range[1]:.2f}",
        "CPU ms per image": "{cpu_ms_per_image:.2f}",
        "CPU ratio": "{cpu_ratio_to_plain:.2f}",
        "memory, MiB": "{memory_mib:.0f}",
        "first batch, s": "{first_batch_s:.2f}",
    }
    title = f"Input pipeline, {WORKERS} workers or threads, batch {BATCH}, median of {words.rounds}"
    show(title, columns, rows)
    keep(
        "images/s of the input pipeline, compared with the usual alternatives",
        ["torch", "nvidia-dali-cuda130", "pillow", "simplejpeg", "numpy"],
        load_before,
        **vars(words),
        batch=BATCH,
        workers=WORKERS,
        mean_file_kb=sizes_kb,
        files="in the page cache",
        memory="PSS of the process and its children after each of several batches, not timed",
        rows=rows,
    )


if __name__ == "__main__":
    main()
