"""Decodes image files and converts them to the square JPEGs of a store.

JPEGs are decoded strictly: damage that libjpeg would only warn about and fill with grey is an
error.

Shapes: P is the side of a stored image in pixels.
"""

from __future__ import annotations

import io
import re
import warnings
import zlib
from itertools import combinations_with_replacement
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, UnidentifiedImageError, features

# Memory to decode one image; a small file can claim any number of pixels.
MAX_BYTES = 800_000_000
# Per pixel. JPEG: decoded, and 4 as Pillow keeps RGB; progressive ones keep coefficients, and CMYK
# has four inks. Others: as loaded, and as RGB.
_JPEG_BYTES, _LARGE_JPEG_BYTES, _OTHER_BYTES = 7, 13, 8
_STRIP_PIXELS = 1 << 20  # of a transparent image, whose colours are blended strip by strip
_OTHER_FORMATS = ("PNG", "WEBP", "BMP", "GIF", "TIFF", "PPM", "AVIF", "JPEG2000")
# Formats that not every build of Pillow decodes: a pattern of the first bytes, Pillow's feature.
_OPTIONAL_FORMATS = {
    "AVIF": (re.compile(rb"....ftypavi[fs]", re.DOTALL), "avif"),
    "JPEG 2000": (re.compile(rb"\0\0\0\x0cjP  |\xff\x4f\xff\x51"), "jpg_2000"),
    "WebP": (re.compile(rb"RIFF....WEBP", re.DOTALL), "webp"),
}
_MAX_ASPECT = 4  # the centre square of a longer image shows little of it
_JPEG, _SCAN, _END, _APP2 = b"\xff\xd8", b"\xff\xda", b"\xff\xd9", b"\xff\xe2"
_PROGRESSIVE = b"\xff\xc2"
_MAX_SCANS = 100  # progressive JPEGs have about ten; each is a pass over the whole image
_GZIP = b"\x1f\x8b"
_MAX_DECOMPRESSED_BYTES = 64 * 2**20
_EXIF_ORIENTATION = 0x0112
_TRANSPOSE = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class DecodedImage(NamedTuple):
    image: Image.Image  # upright, RGB
    traits: frozenset[str]  # unusual properties of the file


class StoredImage(NamedTuple):
    jpeg: bytes
    pixels: npt.NDArray[np.uint8]  # [P, P, 3], decoded from ``jpeg``
    traits: frozenset[str]


def decode_image(data: bytes) -> DecodedImage:
    """Decode the bytes of an image file; the format is detected from the content.

    Formats other than JPEG are decoded by Pillow, which gives the first of several frames.
    Transparent pixels become white, and EXIF orientation is applied.

    Raises:
        ValueError: the bytes are not a usable image; the message is one line.
    """
    if not data:
        raise ValueError("the file is empty")
    try:
        if data.startswith(_GZIP):  # one image of ILSVRC-2010 is compressed
            image, traits = decode_image(_decompress(data))
            return DecodedImage(image, traits | {"gzip"})
        return _decode_jpeg(data) if data.startswith(_JPEG) else _decode_other(data)
    except UnidentifiedImageError:
        for kind, (start, feature) in _OPTIONAL_FORMATS.items():
            if start.match(data) and not features.check(feature):
                raise ValueError(f"this build of Pillow cannot decode {kind}") from None
        raise ValueError("not an image in a supported format") from None
    except MemoryError:  # a failure of the machine, not of the image
        raise
    except Exception as error:  # decoders raise almost anything on corrupt data
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from error


def convert_to_stored(data: bytes, size: int, quality: int) -> StoredImage:
    """Decode an image file, and crop and resize it to a square of ``size`` pixels."""
    image, traits = decode_image(data)
    short, long = sorted(image.size)
    traits |= {"enlarged"} if short < size else set()
    traits |= {"elongated"} if long > _MAX_ASPECT * short else set()
    jpeg = square_jpeg(image, size, quality)
    return StoredImage(jpeg, simplejpeg.decode_jpeg(jpeg, "RGB"), traits)


def square_jpeg(image: Image.Image, size: int, quality: int) -> bytes:
    """The centre square of an image as JPEG, resized to ``size`` pixels."""
    short = min(image.size)
    left, top = (image.width - short) / 2, (image.height - short) / 2
    box = (left, top, left + short, top + short)
    # Pillow's bilinear filter antialiases: its support grows with the reduction.
    square = image.resize((size, size), Image.Resampling.BILINEAR, box=box)
    # No chroma subsampling: decoders upsample colour differently, and lighting depends on colours.
    return bytes(simplejpeg.encode_jpeg(np.asarray(square), quality, "RGB", "444"))


def sum_of_products(pixels: npt.NDArray[np.uint8]) -> npt.NDArray[np.int64]:
    """Σ over pixels of colour · colourᵀ, exact: [P, P, 3] → int64 [3, 3]."""
    # Sums over a row of up to 256 pixels are integers below 2²⁴, which float32 represents exactly;
    # longer rows need float64. Integer products would take several times as long.
    exact = np.float32 if pixels.shape[1] <= 256 else np.float64
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(exact)  # [3, P, P]
    products = np.empty((3, 3), dtype=np.int64)
    for i, j in combinations_with_replacement(range(3), 2):
        row_sums = np.einsum("yx,yx->y", planes[i], planes[j])
        products[i, j] = products[j, i] = row_sums.sum(dtype=np.float64)
    return products


def _without_profile(jpeg: bytes) -> bytes:
    segments, at = [jpeg[:2]], 2
    while (marker := jpeg[at : at + 2]) not in (_SCAN, _END, b""):
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        if not (marker == _APP2 and jpeg[at + 4 : end].startswith(b"ICC_PROFILE")):
            segments.append(jpeg[at:end])
        at = end
    return b"".join([*segments, jpeg[at:]])


def _decompress(data: bytes) -> bytes:
    decompressed = zlib.decompressobj(wbits=31).decompress(data, _MAX_DECOMPRESSED_BYTES)
    if decompressed.startswith(_GZIP):
        raise ValueError("compressed more than once")
    return decompressed


def _decode_jpeg(data: bytes) -> DecodedImage:
    if data.count(_SCAN) > _MAX_SCANS:
        raise ValueError(f"more than {_MAX_SCANS} scans")
    try:
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    except ValueError as error:
        if "ICC" not in str(error):
            raise
        data = _without_profile(data)  # the profile is not used, and the rest may be intact
        height, width, colorspace, _ = simplejpeg.decode_jpeg_header(data, strict=True)
    is_large = colorspace in ("CMYK", "YCCK") or _PROGRESSIVE in data
    _check_memory(width, height, _LARGE_JPEG_BYTES if is_large else _JPEG_BYTES)
    traits = set()
    if colorspace in ("CMYK", "YCCK"):
        traits.add("cmyk")
        inks = simplejpeg.decode_jpeg(data, "CMYK", strict=True)
        # Photoshop, the usual writer of CMYK JPEGs, inverts the inks.
        image = Image.frombuffer("CMYK", (width, height), inks.data, "raw", "CMYK;I", 0, 1)
        image = image.convert("RGB")
    else:
        if colorspace == "Gray":
            traits.add("grey")
        image = Image.fromarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    return _apply_orientation(image, _exif_orientation(data), traits)


def _decode_other(data: bytes) -> DecodedImage:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about large images: _check_memory rejects them
        opened = Image.open(io.BytesIO(data), formats=_OTHER_FORMATS)
        _check_memory(*opened.size, _OTHER_BYTES)
        orientation = opened.getexif().get(_EXIF_ORIENTATION, 1)
        opened.load()
    image: Image.Image = opened
    traits = {str(opened.format).lower()}
    if image.mode in ("1", "L", "LA") or image.mode.startswith("I;16"):
        traits.add("grey")
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise ValueError(f"pixels of type {image.mode} have no known value range")
    if image.has_transparency_data:
        traits.add("transparent")
        image = _on_white(image)
    return _apply_orientation(image.convert("RGB"), orientation, traits)


def _on_white(image: Image.Image) -> Image.Image:
    """Replace transparency by white: a strip at a time needs no further copies of the image."""
    result = Image.new("RGB", image.size)
    rows = max(1, _STRIP_PIXELS // image.width)
    for top in range(0, image.height, rows):
        box = (0, top, image.width, min(top + rows, image.height))
        strip = image.crop(box).convert("RGBA")
        result.paste(Image.alpha_composite(Image.new("RGBA", strip.size, "white"), strip), box)
    return result


def _check_memory(width: int, height: int, bytes_per_pixel: int) -> None:
    if width * height * bytes_per_pixel > MAX_BYTES:
        limit = MAX_BYTES // bytes_per_pixel
        raise ValueError(f"{width} × {height} pixels exceed the limit of {limit:,}")


def _exif_orientation(jpeg: bytes) -> int:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return int(Image.open(io.BytesIO(jpeg)).getexif().get(_EXIF_ORIENTATION, 1))
    except Exception:  # damaged EXIF data of an image that decodes correctly
        return 1


def _apply_orientation(image: Image.Image, orientation: int, traits: set[str]) -> DecodedImage:
    if (method := _TRANSPOSE.get(orientation)) is not None:
        traits.add("turned")
        image = image.transpose(method)
    return DecodedImage(image, frozenset(traits))
