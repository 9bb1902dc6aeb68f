"""Pictures before they are prepared: where they lie, how one is read and made square.

Today's form is a folder of class folders. Other forms (archives, binary data sets) join here,
each as a function that returns a :class:`Source`.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from alexnet2012.config import ConfigError

PICTURE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"},
)
# Far above any photograph of the usual data sets; a small file can claim billions.
MAX_PIXELS = 100_000_000
_EXIF_ORIENTATION = 0x0112
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg"

Labelled = tuple[Path, int]


@dataclass(frozen=True)
class Source:
    """Pictures and their classes, in the order in which they are prepared."""

    root: Path
    classes: tuple[str, ...]
    train: tuple[Labelled, ...]
    val: tuple[Labelled, ...]
    strays: tuple[Path, ...]  # what lies among the pictures and is none by name or place
    description: str  # one sentence, with what not to conclude from these pictures


def open_source(name: str) -> Source:
    """The pictures of ``name/train/CLASS/`` and ``name/val/CLASS/``, sorted by class and name.

    Nothing is decoded yet. Hidden files (``.DS_Store``) are passed over; any other file that is
    not called like a picture is listed in ``strays``.

    Raises:
        ConfigError: not such a folder, fewer than two classes, a class without pictures, or a
            class of one split that the other lacks.
    """
    root = Path(name).expanduser()
    if not root.is_dir():
        kind = "is a file" if root.exists() else "does not exist"
        raise _error(root, f"{kind}; give a folder with {_LAYOUT}, or `photos`")
    if not _visible(root):
        raise _error(root, f"is empty; it must hold {_LAYOUT}")
    for split in ("train", "val"):
        if not (root / split).is_dir():
            raise _error(root, f"has no folder {split}/; it must hold {_LAYOUT}")

    strays: list[Path] = []
    train = dict(_class_folders(root / "train", strays))
    val = dict(_class_folders(root / "val", strays))
    for here, there, missing in (
        ("train", "val", train.keys() - val),
        ("val", "train", val.keys() - train),
    ):
        if missing:
            remedy = (
                f"class {min(missing)} is in {here}/ but not in {there}/; both need every class"
            )
            raise _error(root, remedy)
    if len(train) < 2:
        remedy = f"holds {len(train)} class folders in train/; at least 2 are needed"
        raise _error(root, remedy)
    return Source(
        root=root,
        classes=tuple(train),
        train=_labelled(train),
        val=_labelled(val),
        strays=tuple(strays),
        description=f"Pictures of the folder {root.resolve().name}.",
    )


def _class_folders(split: Path, strays: list[Path]) -> Iterator[tuple[str, list[Path]]]:
    """The class names of a split, sorted, each with its pictures."""
    for folder in _visible(split):
        if not folder.is_dir():
            strays.append(folder)
            continue
        # Class names stand in tab-separated lists and on screens.
        if not folder.name.isprintable():
            remedy = f"class folder {folder.name!r} has an unprintable character; rename it"
            raise _error(split, remedy)
        pictures: list[Path] = []
        for path in _visible(folder):
            is_picture = path.suffix.lower() in PICTURE_SUFFIXES and not path.is_dir()
            (pictures if is_picture else strays).append(path)
        if not pictures:
            remedy = (
                f"class folder {folder.name} has no pictures ({' '.join(sorted(PICTURE_SUFFIXES))})"
            )
            raise _error(split, f"{remedy}; add some or remove it")
        yield folder.name, pictures


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _labelled(classes: dict[str, list[Path]]) -> tuple[Labelled, ...]:
    return tuple((path, label) for label, paths in enumerate(classes.values()) for path in paths)


def _error(path: Path, remedy: str) -> ConfigError:
    return ConfigError("data.source", path, remedy)


def read_picture(data: bytes) -> Image.Image:
    """The bytes of a picture file as an upright RGB picture.

    JPEGs are known by their first bytes, whatever the file is called, and decoded strictly: what
    libjpeg would warn about and paint grey is an error here. Other formats go through Pillow, of
    several frames the first. Transparent parts become white.

    Raises:
        ValueError: why these bytes are no usable picture, in one line.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        picture = _read_jpeg(data) if data.startswith(b"\xff\xd8\xff") else _read_other(data)
    except UnidentifiedImageError:
        raise ValueError("not a picture of a known format") from None
    except Exception as error:  # decoders raise almost anything on bad bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error
    return picture


def square_jpeg(picture: Image.Image, size: int, quality: int) -> bytes:
    """The centre square of a picture, scaled to ``size`` pixels a side, as JPEG."""
    short = min(picture.size)
    left, top = (picture.width - short) / 2, (picture.height - short) / 2
    # Pillow's bilinear filter widens with the reduction: it averages what it leaves out, without
    # the ringing of the sharper filters.
    square = picture.resize(
        (size, size), Image.Resampling.BILINEAR, box=(left, top, left + short, top + short)
    )
    # Full-resolution colour: decoders interpolate halved colour each in their own way, and the
    # lighting is computed from colours.
    return bytes(simplejpeg.encode_jpeg(np.asarray(square), quality, "RGB", "444"))


def _read_jpeg(data: bytes) -> Image.Image:
    height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    _check_pixels(width, height)
    if colorspace in ("CMYK", "YCCK"):
        inks = simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        # Photoshop writes inks inverted, and nobody else writes CMYK JPEGs.
        picture = Image.frombuffer("CMYK", (width, height), inks.tobytes(), "raw", "CMYK;I", 0, 1)
        picture = picture.convert("RGB")
    else:
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    return _upright(picture, _orientation(data))


def _read_other(data: bytes) -> Image.Image:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures; the check is below
        opened = Image.open(io.BytesIO(data), formats=("PNG", "WEBP", "BMP", "GIF", "TIFF"))
        _check_pixels(*opened.size)
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
        opened.load()
    picture: Image.Image = opened
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of type {picture.mode} have no range that is known")
    if picture.has_transparency_data:
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return _upright(picture.convert("RGB"), orientation)


def _check_pixels(width: int, height: int) -> None:
    if width * height > MAX_PIXELS:
        raise ValueError(f"{width} × {height} pixels are more than {MAX_PIXELS:,}")


def _orientation(jpeg: bytes) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(Image.open(io.BytesIO(jpeg)).getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # a broken note about a picture that decodes well
        return 1


def _upright(picture: Image.Image, orientation: int) -> Image.Image:
    method = _UPRIGHT.get(orientation)
    return picture if method is None else picture.transpose(method)
