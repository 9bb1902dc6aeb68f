"""An embedded data set: crops of sixteen photographs from the scikit-image wheel.

Each photograph is a class, and each image is a crop of it. Training crops come from one end of the
photograph and validation crops from the other, so the splits share no pixels, though they look
alike. Brightness and contrast vary, as otherwise the mean colour would identify half the classes.

Credits: the documentation of ``skimage.data`` lists the origin and licence of each photograph.
Nothing is downloaded.
"""

from __future__ import annotations

import math
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from alexnet2012.data.augmentation import random_stream
from alexnet2012.utils.threads import map_in_background

DESCRIPTION = (
    "Crops of 16 photographs from the scikit-image wheel, one class per photograph: real images, "
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
_CROP = (0.5, 0.85)  # longer side of a crop, relative to the largest that fits a validation region
_ASPECT = (0.75, 1.0)
_PIXELS = (160, 320)  # longer side of an image
_FILTER_PIXELS = 6  # margin of a crop for the support of the rotation and resize filters

Box = tuple[int, int, int, int]  # left, top, right, bottom


def make_photos(
    folder: Path, *, train_per_class: int = 200, val_per_class: int = 50, seed: int = 0
) -> None:
    """Write ``train/CLASS/0000.jpg …`` and ``val/CLASS/…``; the same seed gives the same bytes."""
    sizes = {"train": train_per_class, "val": val_per_class}

    def make(number: int, name: str) -> None:
        _make_class(folder, sizes, seed, number, name)

    # Threads, as Pillow releases Python's global lock.
    list(map_in_background(lambda job: make(*job), list(enumerate(CLASSES)), 2))


def photograph(name: str) -> Image.Image:
    """The whole photograph of a class."""
    spec = find_spec("skimage")
    assert spec is not None and spec.submodule_search_locations, "scikit-image is missing"
    # Read from the package's folder: skimage.data would download files that the wheel lacks.
    with Image.open(Path(spec.submodule_search_locations[0]) / "data" / CLASSES[name]) as photo:
        return photo.convert("RGB")


def regions(width: int, height: int) -> dict[str, Box]:
    """The training and validation regions of a photograph, separated by a gap."""
    long = max(width, height)
    end = round(long * _TRAIN_PART)
    start = end + math.ceil(long * _GUARD_PART)
    if width >= height:
        return {"train": (0, 0, end, height), "val": (start, 0, width, height)}
    return {"train": (0, 0, width, end), "val": (0, start, width, height)}


def crop_box(
    region: Box, width: float, height: float, degrees: float, at: tuple[float, float]
) -> Box:
    """Bounding box of a rotated crop with its margin, ``at`` (0, 0) to (1, 1) of the region."""
    turn = math.radians(abs(degrees))
    wide = math.ceil(width * math.cos(turn) + height * math.sin(turn)) + _FILTER_PIXELS
    high = math.ceil(width * math.sin(turn) + height * math.cos(turn)) + _FILTER_PIXELS
    left, top, right, bottom = region
    x = left + int(at[0] * (right - left - wide + 1))
    y = top + int(at[1] * (bottom - top - high + 1))
    assert left <= x and x + wide <= right and top <= y and y + high <= bottom, (region, x, y)
    return x, y, x + wide, y + high


def _make_class(folder: Path, sizes: dict[str, int], seed: int, label: int, name: str) -> None:
    photo = photograph(name)
    parts = regions(*photo.size)
    left, top, right, bottom = parts["val"]
    # The same range of crop sizes in both splits, or they would differ in scale.
    turn = math.radians(_MAX_DEGREES)
    room = min(right - left, bottom - top) - _FILTER_PIXELS - 1
    largest = room / (math.cos(turn) + math.sin(turn))
    for number, (split, count) in enumerate(sizes.items()):
        (folder / split / name).mkdir(parents=True)
        for index in range(count):
            rng = random_stream(seed, "photos", label, number, index)
            image = _random_crop(photo, parts[split], largest, rng)
            image.save(folder / split / name / f"{index:04d}.jpg", quality=92)


def _random_crop(
    photo: Image.Image, region: Box, largest: float, rng: np.random.Generator
) -> Image.Image:
    long = largest * rng.uniform(*_CROP)
    short = long * rng.uniform(*_ASPECT)
    width, height = (long, short) if rng.random() < 0.5 else (short, long)
    degrees = rng.uniform(-_MAX_DEGREES, _MAX_DEGREES)
    box = crop_box(region, width, height, degrees, (rng.random(), rng.random()))
    # Crop first, so that no pixel outside the box contributes.
    rotated = photo.crop(box).rotate(degrees, Image.Resampling.BICUBIC)
    left, top = (rotated.width - width) / 2, (rotated.height - height) / 2
    scale = rng.uniform(*_PIXELS) / long
    image = rotated.resize(
        (round(width * scale), round(height * scale)),
        Image.Resampling.BICUBIC,
        box=(left, top, left + width, top + height),
    )
    return image.point(_tone_table(rng))


def _tone_table(rng: np.random.Generator) -> list[int]:
    """A random change of contrast and brightness: 256 values per channel."""
    contrast, brightness = rng.uniform(0.6, 1.2), rng.uniform(-40, 40)
    table = (np.arange(256) - 127.5) * contrast + 127.5 + brightness
    levels: list[int] = np.clip(np.rint(table), 0, 255).astype(int).tolist()
    return levels * 3
