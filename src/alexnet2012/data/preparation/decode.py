"""From the bytes of any picture file to the square that a store keeps, or a reason why not.

JPEGs are decoded strictly: what libjpeg would warn about and paint grey is an error here.

Legend: P pixels a side of a stored picture.
"""

from __future__ import annotations

import io
import warnings
import zlib
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError

# Far above any photograph of the usual data sets; a small file can claim billions.
MAX_PIXELS = 100_000_000
_OTHER_FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM")
_LONG = 4  # times as long as high: little of such a picture is in its centre square
_JPEG, _SCAN, _END, _APP2 = b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xe2"
_MAX_SCANS = 100  # progressive pictures have about ten; each goes over the whole picture again
_GZIP = b"\x1f\x8b"
_MAX_UNPACKED_BYTES = 64 * 2**20
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


class Opened(NamedTuple):
    """An upright RGB picture, and what had to be done or is odd about it, in single words."""

    picture: Image.Image
    traits: frozenset[str]


class Stored(NamedTuple):
    """What a store keeps of a picture."""

    jpeg: bytes
    pixels: npt.NDArray[np.uint8]  # [P, P, 3] as training will see them
    traits: frozenset[str]


def read_picture(data: bytes) -> Opened:
    """The picture in the bytes of a file, whatever the file is called.

    JPEGs are known by their first bytes. Other formats go through Pillow, of several frames the
    first. Transparent parts become white. A picture is turned as its EXIF note says.

    Raises:
        ValueError: why these bytes are no usable picture, in one line.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        if data.startswith(_GZIP):  # one of ILSVRC-2010's is packed
            picture, traits = read_picture(_unpacked(data))
            return Opened(picture, traits | {"gzip"})
        return _read_jpeg(data) if data.startswith(_JPEG) else _read_other(data)
    except UnidentifiedImageError:
        raise ValueError("not a picture of a known format") from None
    except MemoryError:  # of the machine, not of the picture
        raise
    except Exception as error:  # decoders raise almost anything on bad bytes
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def store_picture(data: bytes, size: int, quality: int) -> Stored:
    """The centre square of a picture file, ``size`` pixels a side.

    Raises:
        ValueError: see :func:`read_picture`.
    """
    picture, traits = read_picture(data)
    short, long = sorted(picture.size)
    odd = {"enlarged": short < size, "elongated": long > _LONG * short}
    jpeg = square_jpeg(picture, size, quality)
    pixels = simplejpeg.decode_jpeg(jpeg, "RGB")
    return Stored(jpeg, pixels, traits | {name for name, is_so in odd.items() if is_so})


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


def sum_of_products(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Σ over pixels of colour · colourᵀ, exact: [P, P, 3] → int64 [3, 3]."""
    # Row by row every sum stays a whole number below 2²⁴ up to 256 pixels, and float32 holds
    # those exactly; longer rows need float64. Integer products would take several times as long.
    exact = np.float32 if pixels.shape[1] <= 256 else np.float64
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(exact)  # [3, P, P]
    products = np.empty((3, 3), dtype=np.int64)
    for i, j in combinations_with_replacement(range(3), 2):
        of_rows = np.einsum("yx,yx->y", planes[i], planes[j])
        products[i, j] = products[j, i] = of_rows.sum(dtype=np.float64)
    return products


def _without_profile(jpeg: bytes) -> bytes:
    """A JPEG without its colour profile."""
    kept, at = [jpeg[:2]], 2
    while (marker := jpeg[at : at + 2]) not in (_SCAN, _END, b""):
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if not (marker == _APP2 and jpeg[at + 4 : end].startswith(b"ICC_PROFILE")):
            kept.append(jpeg[at:end])
        at = end
    return b"".join([*kept, jpeg[at:]])


def _unpacked(data: bytes) -> bytes:
    unpacked = zlib.decompressobj(wbits=31).decompress(data, _MAX_UNPACKED_BYTES)
    if unpacked.startswith(_GZIP):
        raise ValueError("packed more than once")
    return unpacked


def _read_jpeg(data: bytes) -> Opened:
    if data.count(_SCAN) > _MAX_SCANS:
        raise ValueError(f"more than {_MAX_SCANS} scans")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        if "ICC" not in str(error):
            raise
        data = _without_profile(data)  # it is not used here, and the rest may be whole
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    _check_pixels(width, height)
    traits = set()
    if colorspace in ("CMYK", "YCCK"):
        traits.add("cmyk")
        inks = simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        # Photoshop writes inks inverted, and nobody else writes CMYK JPEGs.
        picture = Image.frombuffer("CMYK", (width, height), inks.tobytes(), "raw", "CMYK;I", 0, 1)
        picture = picture.convert("RGB")
    else:
        if colorspace == "Gray":
            traits.add("grey")
        picture = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    return _upright(picture, _orientation(data), traits)


def _read_other(data: bytes) -> Opened:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow warns of large pictures; the check is below
        opened = Image.open(io.BytesIO(data), formats=_OTHER_FORMATS)
        _check_pixels(*opened.size)
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
        opened.load()
    picture: Image.Image = opened
    traits = {str(opened.format).lower()}
    if picture.mode in ("1", "L", "LA") or picture.mode.startswith("I;16"):
        traits.add("grey")
    if picture.mode.startswith("I;16"):
        picture = Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):
        raise ValueError(f"pixels of type {picture.mode} have no range that is known")
    if picture.has_transparency_data:
        traits.add("transparent")
        picture = picture.convert("RGBA")
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
    return _upright(picture.convert("RGB"), orientation, traits)


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


def _upright(picture: Image.Image, orientation: int, traits: set[str]) -> Opened:
    method = _UPRIGHT.get(orientation)
    if method is not None:
        traits.add("turned")
        picture = picture.transpose(method)
    return Opened(picture, frozenset(traits))
