"""The pictures that are always there: crops of sixteen photographs of the scikit-image wheel.

A class is a photograph, a picture is a window of it. Training windows come from one end of the
photograph and validation windows from the other, so a net must recognise what it has not seen,
though what it has not seen looks much alike. Brightness and contrast vary, for otherwise the mean
colour would give half of the classes away.

Credits: scikit-image lists the origin and licence of each photograph in its documentation of
``skimage.data``. Nothing is downloaded.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet2012.data.augmentation import stream

DESCRIPTION = (
    "Crops of 16 photographs of the scikit-image wheel, told apart by photograph: real pictures, "
    "an easy task, no evidence about ImageNet."
)
CLASSES = {
    "astronaut": "astronaut.png",
    "brick": "brick.png",
    "camera": "camera.png",
    "cell": "cell.png",
    "chelsea": "chelsea.png",
    "clock": "clock_motion.png",
    "coffee": "coffee.png",
    "coins": "coins.png",
    "grass": "grass.png",
    "gravel": "gravel.png",
    "hubble": "hubble_deep_field.jpg",
    "immunohistochemistry": "ihc.png",
    "moon": "moon.png",
    "motorcycle": "motorcycle_left.png",
    "retina": "retina.jpg",
    "rocket": "rocket.jpg",
}
_TRAIN_PART, _GUARD_PART = 0.60, 0.02  # of the longer side; the rest is for validation
_MAX_DEGREES = 10.0
_WINDOW = (0.5, 0.85)  # longer side of a window, of the largest that fits a validation region
_ASPECT = (0.75, 1.0)
_PIXELS = (160, 320)  # longer side of a picture
_FILTER_PIXELS = 6  # more than a window needs: the filters that turn and scale it reach outside

Box = tuple[int, int, int, int]  # left, top, right, bottom


def make_photos(
    folder: Path, *, train_per_class: int = 200, val_per_class: int = 50, seed: int = 0
) -> None:
    """Write ``train/CLASS/0000.jpg …`` and ``val/CLASS/…``: the same bytes for the same seed."""
    sizes = {"train": train_per_class, "val": val_per_class}
    # Threads, as Pillow computes outside Python's lock.
    with ThreadPoolExecutor(2) as pool:
        list(pool.map(partial(_make_class, folder, sizes, seed), enumerate(CLASSES)))


def photograph(name: str) -> Image.Image:
    """The whole photograph of a class."""
    spec = find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations, "scikit-image is missing"
    # Read from the package's folder: its own loader would fetch files that the wheel leaves out.
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / CLASSES[name]) as photo:
        return photo.convert("RGB")


def regions(width: int, height: int) -> dict[str, Box]:
    """The parts of a photograph for training and for validation, apart by a guard gap."""
    long = max(width, height)
    end = round(long * _TRAIN_PART)
    start = end + math.ceil(long * _GUARD_PART)
    if width >= height:
        return {"train": (0, 0, end, height), "val": (start, 0, width, height)}
    return {"train": (0, 0, width, end), "val": (0, start, width, height)}


def window_box(
    region: Box, width: float, height: float, degrees: float, at: tuple[float, float]
) -> Box:
    """Bounding box of a rotated window, with what its filters need.

    ``at`` places it in the region, from (0, 0), top left, to (1, 1), bottom right.
    """
    turn = math.radians(abs(degrees))
    wide = math.ceil(width * math.cos(turn) + height * math.sin(turn)) + _FILTER_PIXELS
    high = math.ceil(width * math.sin(turn) + height * math.cos(turn)) + _FILTER_PIXELS
    left, top, right, bottom = region
    x = left + int(at[0] * (right - left - wide + 1))
    y = top + int(at[1] * (bottom - top - high + 1))
    assert left <= x and x + wide <= right and top <= y and y + high <= bottom, (region, x, y)
    return x, y, x + wide, y + high


def _make_class(folder: Path, sizes: dict[str, int], seed: int, numbered: tuple[int, str]) -> None:
    label, name = numbered
    photo = photograph(name)
    parts = regions(*photo.size)
    left, top, right, bottom = parts["val"]
    # One range of window sizes for both splits, or scale would set them apart.
    turn = math.radians(_MAX_DEGREES)
    room = min(right - left, bottom - top) - _FILTER_PIXELS - 1
    largest = room / (math.cos(turn) + math.sin(turn))
    for number, (split, count) in enumerate(sizes.items()):
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            rng = stream(seed, "photos", label, number, index)
            picture = _picture(photo, parts[split], largest, rng)
            picture.save(folder / split / name / f"{index:04d}.jpg", quality=92)


def _picture(
    photo: Image.Image, region: Box, largest: float, rng: np.random.Generator
) -> Image.Image:
    long = largest * rng.uniform(*_WINDOW)
    short = long * rng.uniform(*_ASPECT)
    width, height = (long, short) if rng.random() < 0.5 else (short, long)
    degrees = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
    box = window_box(region, width, height, degrees, (rng.random(), rng.random()))
    # Cut first, so that nothing outside the box can come in.
    turned = photo.crop(box).rotate(degrees, Image.Resampling.BICUBIC)
    left, top = (turned.width - width) / 2, (turned.height - height) / 2
    scale = rng.uniform(*_PIXELS) / long
    picture = turned.resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    return picture.point(_tones(rng))


def _tones(rng: np.random.Generator) -> list[int]:
    """A random change of contrast and brightness, as a table for Pillow: three times 256 values."""
    contrast, brightness = rng.uniform(0.6, 1.2), rng.uniform(-40, 40)
    table = (np.arange(256) - 127.5) * contrast + 127.5 + brightness
    levels: list[int] = np.clip(np.rint(table), 0, 255).astype(int).tolist()
    return levels * 3
