"""Whatever happens to the bytes of a JPEG: pixels that other decoders confirm, or a reason.

Tolerance: none. Decoders of the libjpeg family compute alike to the bit, whatever their version.
The same at full size, and through the store and DALI: benchmarks/damage.py.
"""

from __future__ import annotations

import io
import shutil
import subprocess
import warnings
from contextlib import suppress

import numpy as np
import pytest
import simplejpeg
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from alexnet2012.data.preparation.decode import decode_image

DJPEG = shutil.which("djpeg")
ORIENTATION = 0x0112
WIDTH, HEIGHT = 50, 37  # neither is whole blocks


def good_jpeg(mode: str = "RGB", turned: int = 1, **options: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    file = io.BytesIO()
    picture.convert(mode).save(file, "JPEG", exif=exif, **options)
    return file.getvalue()


GOOD = {
    "4:2:0": good_jpeg(quality=75),
    "4:4:4": good_jpeg(quality=95, subsampling=0),
    "grey": good_jpeg("L"),
    "CMYK": good_jpeg("CMYK"),
    "progressive": good_jpeg(progressive=True),
    "restart markers": good_jpeg(restart_marker_blocks=2),
    "turned": good_jpeg(turned=6),
}


def ended_after_its_first_scan() -> bytes:
    """A progressive picture whose second scan's marker, by two flipped bits, became the end's."""
    first, *others = GOOD["progressive"].split(b"\xff\xda")
    return b"\xff\xda".join((first, others[0])) + b"\xff\xd9" + b"\xff\xda".join(others[1:])


@st.composite
def damaged_jpegs(draw: st.DrawFn) -> bytes:
    """Flipped bits, then perhaps a block overwritten, then perhaps a cut."""
    data = bytearray(draw(st.sampled_from(list(GOOD.values()))))
    for at in draw(st.lists(st.integers(0, len(data) - 1), max_size=8)):
        data[at] ^= 1 << draw(st.integers(0, 7))
    if draw(st.booleans()):
        at = draw(st.integers(0, len(data) - 1))
        block = draw(st.one_of(st.binary(max_size=64), st.integers(1, 64).map(bytes)))
        data[at : at + len(block)] = block[: len(data) - at]
    if draw(st.booleans()):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


def read(data: bytes) -> Image.Image | None:
    """The picture, or None where it is rejected as it should be."""
    try:
        return decode_image(data).image
    except ValueError as error:
        reason = str(error)
    assert reason
    assert reason.isprintable()  # so one line
    return None


def by_pillow(data: bytes) -> Image.Image | None:
    """Upright; None where Pillow refuses, as it also does for notes that nobody needs."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return None


def by_djpeg(data: bytes) -> Image.Image | None:
    """Upright; None where ``djpeg -strict`` refuses, to which a warning is an error."""
    assert DJPEG is not None
    done = subprocess.run([DJPEG, "-strict", "-memsrc"], input=data, capture_output=True)
    if done.returncode:
        return None
    picture = Image.open(io.BytesIO(done.stdout)).convert("RGB")
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        note = Image.open(io.BytesIO(data)).getexif()
        picture.getexif()[ORIENTATION] = note.get(ORIENTATION, 1)
    return ImageOps.exif_transpose(picture)


@settings(max_examples=400, deadline=5000)  # ms: nothing hangs
@given(damaged_jpegs())
def test_a_damaged_jpeg_is_rejected_or_reads_as_pillow_reads_it(data: bytes) -> None:
    picture, other = read(data), by_pillow(data)
    if picture is not None and other is not None:
        assert np.array_equal(picture, other)


@pytest.mark.skipif(DJPEG is None, reason="djpeg (libjpeg-turbo-progs) is not installed")
@settings(max_examples=200, deadline=5000)
@given(damaged_jpegs())
@example(ended_after_its_first_scan())
def test_a_damaged_jpeg_is_rejected_or_reads_as_djpeg_reads_it(data: bytes) -> None:
    picture = read(data)
    if picture is not None:
        other = by_djpeg(data)
        assert other is not None, "djpeg warns"
        if not np.array_equal(picture, other):  # releases of libjpeg-turbo smooth what lacks scans
            assert b"\xff\xc2" in data, "not progressive"
            assert np.array_equal(picture, by_pillow(data))  # of our decoder's release


@pytest.mark.parametrize("kind", GOOD)
def test_an_undamaged_jpeg_reads_as_pillow_reads_it(kind: str) -> None:
    picture = read(GOOD[kind])
    assert picture is not None
    assert picture.size == ((HEIGHT, WIDTH) if kind == "turned" else (WIDTH, HEIGHT))
    assert np.array_equal(picture, by_pillow(GOOD[kind]))


@pytest.mark.parametrize("kind", GOOD)
def test_a_jpeg_is_rejected_wherever_it_is_cut(kind: str) -> None:
    assert [end for end in range(len(GOOD[kind])) if read(GOOD[kind][:end]) is not None] == []


def test_a_lax_decoder_would_let_cuts_through() -> None:
    good = GOOD["4:2:0"]
    for end in range(good.index(b"\xff\xda") + 20, len(good)):
        assert simplejpeg.decode_jpeg(good[:end], strict=False).shape == (HEIGHT, WIDTH, 3)
