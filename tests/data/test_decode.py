"""Image files of any format become upright RGB squares, or are refused with a reason."""

import gzip
import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from alexnet2012.data.preparation import decode
from alexnet2012.data.preparation.decode import (
    MAX_BYTES,
    convert_to_stored,
    decode_image,
    square_jpeg,
    sum_of_products,
)


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def quadrants(width: int = 60, height: int = 40) -> Image.Image:
    """Red, green, blue and white quarters: all rotations and reflections differ."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 250
    pixels[: height // 2, width // 2 :, 1] = 250
    pixels[height // 2 :, : width // 2, 2] = 250
    pixels[height // 2 :, width // 2 :] = 250
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(orientation: int, kind: str) -> None:
    # The inverse of the transpose that a viewer applies for each orientation.
    undo = {
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }
    stored = quadrants().transpose(undo[orientation]) if orientation > 1 else quadrants()
    exif = Image.Exif()
    exif[0x0112] = orientation
    lossless = {"JPEG": {"quality": 100, "subsampling": 0}, "WEBP": {"lossless": True}}
    data = encoded(stored, kind, exif=exif.tobytes(), **lossless.get(kind, {}))
    decoded = np.asarray(decode_image(data).image).astype(int)
    assert decoded.shape == (40, 60, 3)
    assert np.abs(decoded - np.asarray(quadrants())).max() <= 4  # JPEG of quality 100


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", (100, 100, 100)), ("1", (255, 255, 255)), ("LA", (178, 178, 178)), ("P", (100,) * 3)],
)
def test_other_pixel_formats_become_rgb(mode: str, expected: tuple[int, int, int]) -> None:
    colour = {"1": 1, "LA": (100, 127)}.get(mode, 100)  # LA: half transparent, so half white
    palette = Image.new("P", (20, 20), 100)
    palette.putpalette([level for level in range(256) for _ in range(3)])
    image = palette if mode == "P" else Image.new(mode, (20, 20), colour)
    decoded = decode_image(encoded(image, "PNG")).image
    assert decoded.mode == "RGB"
    assert np.abs(np.subtract(decoded.getpixel((10, 10)), expected)).max() <= 1


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    image = Image.fromarray(np.full((8, 8), 0x6543, np.uint16))
    assert decode_image(encoded(image, "PNG")).image.getpixel((0, 0)) == (0x65,) * 3


def test_cmyk_jpeg_reads_as_pillow_reads_it() -> None:
    data = encoded(quadrants().convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(decode_image(data).image) - expected).max() <= 2
    assert expected[5, 5, 0] > 200 > 50 > expected[5, 5, 1]  # red, not its inverse


def png_of(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return (
            struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def test_a_decompression_bomb_is_refused_before_it_is_decoded() -> None:
    jpeg = bytearray(encoded(quadrants(), "JPEG"))
    size = jpeg.index(b"\xff\xc0") + 5
    jpeg[size : size + 4] = struct.pack(">HH", 65_000, 65_000)
    for data in (bytes(jpeg), png_of(12_000, 12_000), png_of(100_000, 100_000)):
        with pytest.raises(ValueError, match=r"pixels|exceeds limit") as caught:
            decode_image(data)
        assert "\n" not in str(caught.value)
    assert MAX_BYTES < 8 * 12_000**2


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\xff\xd8\xff", encoded(quadrants(600, 400), "JPEG")[:2000], png_of(20, 20)],
    ids=["zero bytes", "text", "JPEG start", "truncated JPEG", "PNG without pixels"],
)
def test_bytes_that_are_not_an_image_give_a_one_line_reason(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        decode_image(data)
    assert "\n" not in str(caught.value)
    assert "0x7" not in str(caught.value)  # no memory address: reasons must be reproducible


def test_the_stored_square_is_the_centre_of_the_image() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 200  # the centre square, and nothing else
    stored = simplejpeg.decode_jpeg(square_jpeg(Image.fromarray(pixels), 64, 95))
    assert stored.shape == (64, 64, 3)
    # The filter is two source pixels wide, so at most half a pixel leaks in at each edge.
    assert np.abs(stored[:, 2:-2].astype(int) - 200).max() <= 2


@pytest.mark.parametrize(
    ("kind", "image", "traits"),
    [
        ("JPEG", quadrants(), {"enlarged"}),
        ("JPEG", quadrants(800, 700), set()),
        ("JPEG", quadrants(800, 160), {"elongated", "enlarged"}),
        ("JPEG", quadrants().convert("L"), {"grey", "enlarged"}),
        ("JPEG", quadrants().convert("CMYK"), {"cmyk", "enlarged"}),
        ("PNG", quadrants(300, 300), {"png"}),
        ("GIF", quadrants(300, 300), {"gif"}),
        ("AVIF", quadrants(300, 300), {"avif"}),
        ("JPEG2000", quadrants(300, 300), {"jpeg2000"}),
        ("PNG", Image.new("LA", (300, 300), (9, 99)), {"png", "grey", "transparent"}),
    ],
)
def test_unusual_properties_of_an_image_are_reported_as_traits(
    kind: str, image: Image.Image, traits: set[str]
) -> None:
    stored = convert_to_stored(encoded(image, kind), 256, 95)
    assert stored.traits == traits
    assert np.array_equal(stored.pixels, simplejpeg.decode_jpeg(stored.jpeg))


@pytest.mark.parametrize(("kind", "name"), [("AVIF", "AVIF"), ("JPEG2000", "JPEG 2000")])
def test_a_format_that_pillow_lacks_is_named(
    monkeypatch: pytest.MonkeyPatch, kind: str, name: str
) -> None:
    data = encoded(quadrants(), kind)
    assert np.abs(np.asarray(decode_image(data).image).astype(int) - quadrants()).mean() < 4
    with pytest.raises(ValueError, match=r".") as caught:  # truncated
        decode_image(data[: len(data) // 2])
    assert "\n" not in str(caught.value)
    monkeypatch.setattr(decode, "_OTHER_FORMATS", ("PNG",))
    monkeypatch.setattr(decode.features, "check", lambda feature: False)
    with pytest.raises(ValueError, match=f"this build of Pillow cannot decode {name}"):
        decode_image(data)


def test_an_image_may_be_gzipped_once_but_not_twice() -> None:
    whole = encoded(quadrants(), "JPEG")
    decoded = decode_image(gzip.compress(whole))
    assert decoded.traits == {"gzip"}
    assert np.array_equal(decoded.image, decode_image(whole).image)
    with pytest.raises(ValueError, match="compressed more than once"):
        decode_image(gzip.compress(gzip.compress(whole)))


def test_a_gzip_bomb_is_not_decompressed(monkeypatch: pytest.MonkeyPatch) -> None:
    bitmap = encoded(quadrants(), "BMP")
    monkeypatch.setattr(decode, "_MAX_DECOMPRESSED_BYTES", len(bitmap))
    decode_image(gzip.compress(bitmap))
    monkeypatch.setattr(decode, "_MAX_DECOMPRESSED_BYTES", len(bitmap) - 1)
    with pytest.raises(ValueError, match="truncated"):
        decode_image(gzip.compress(bitmap))


@pytest.mark.parametrize("more", [0, 1])
def test_the_pixel_limit_is_exact(monkeypatch: pytest.MonkeyPatch, more: int) -> None:
    for kind, bytes_per_pixel in (("JPEG", 7), ("PNG", 8)):
        monkeypatch.setattr(decode, "MAX_BYTES", 60 * 40 * bytes_per_pixel - more)
        data = encoded(quadrants(60, 40), kind)
        if more:
            with pytest.raises(ValueError, match="60 × 40 pixels exceed the limit"):
                decode_image(data)
        else:
            decode_image(data)


def test_running_out_of_memory_does_not_reject_the_image(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def exhausted(*_: object, **__: object) -> None:
        raise MemoryError

    monkeypatch.setattr(simplejpeg, "decode_jpeg_header", exhausted)
    with pytest.raises(MemoryError):
        decode_image(encoded(quadrants(), "JPEG"))


@pytest.mark.parametrize("side", [3, 32, 256, 300])
def test_the_sum_of_products_is_exact(side: int) -> None:
    rng = np.random.default_rng(side)
    for pixels in (rng.integers(0, 256, (side, side, 3)), np.full((side, side, 3), 255)):
        flat = pixels.reshape(-1, 3)
        assert np.array_equal(sum_of_products(pixels.astype(np.uint8)), flat.T @ flat)


def test_a_damaged_colour_profile_does_not_reject_the_image() -> None:
    whole = encoded(quadrants(), "JPEG", quality=95)
    broken = b"ICC_PROFILE\0" + bytes([9, 1]) + b"not a profile"  # part 9 of 1
    segment = b"\xff\xe2" + struct.pack(">H", len(broken) + 2) + broken
    odd = whole[:2] + segment + whole[2:]
    with pytest.raises(ValueError, match="ICC"):
        simplejpeg.decode_jpeg_header(odd, strict=True)
    assert np.array_equal(decode_image(odd).image, decode_image(whole).image)
    with pytest.raises(ValueError, match="Premature end"):  # other damage is still detected
        decode_image(odd[:-200])


def test_a_jpeg_with_too_many_scans_is_refused_before_it_is_decoded() -> None:
    progressive = encoded(quadrants(600, 600), "JPEG", progressive=True)
    decode_image(progressive)
    last = progressive.rindex(b"\xff\xda")
    bomb = progressive[:-2] + progressive[last:-2] * 200 + progressive[-2:]
    with pytest.raises(ValueError, match="more than 100 scans"):
        decode_image(bomb)


@pytest.mark.parametrize(
    ("kind", "options", "bytes_per_pixel"),
    [("JPEG", {}, 7), ("JPEG", {"progressive": True}, 13), ("PNG", {}, 8)],
)
def test_the_limit_is_of_the_memory_that_a_format_needs(
    monkeypatch: pytest.MonkeyPatch, kind: str, options: dict[str, bool], bytes_per_pixel: int
) -> None:
    data = encoded(quadrants(60, 40), kind, **options)
    monkeypatch.setattr(decode, "MAX_BYTES", 60 * 40 * bytes_per_pixel)
    decode_image(data)
    monkeypatch.setattr(decode, "MAX_BYTES", 60 * 40 * bytes_per_pixel - 1)
    with pytest.raises(ValueError, match="60 × 40 pixels exceed the limit of 2,399"):
        decode_image(data)


def test_a_large_transparent_image_takes_no_more_memory_than_announced() -> None:
    """Measured in a process of its own, above what its imports take."""
    code = """
import io, resource, sys
from PIL import Image
from alexnet2012.data.preparation import decode
file = io.BytesIO()
Image.new("RGBA", (3000, 3000), (9, 9, 9, 9)).save(file, "PNG")
decode.decode_image(file.getvalue())
small = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
file = io.BytesIO()
Image.new("P", (6000, 6000)).save(file, "PNG", transparency=0)
decode.decode_image(file.getvalue())
print(1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - small))
"""
    more = int(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True).stdout)
    assert more < 8 * 6000**2


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_strips_of_a_transparent_image_fit_together(
    monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    image = quadrants().convert(mode)
    options = {"transparency": 1} if mode == "P" else {}
    if mode != "P":
        image.putalpha(Image.linear_gradient("L").resize(image.size))
    data = encoded(image, "PNG", **options)
    whole = np.asarray(decode_image(data).image)
    monkeypatch.setattr(decode, "_STRIP_PIXELS", 7 * 60)
    assert np.array_equal(np.asarray(decode_image(data).image), whole)
