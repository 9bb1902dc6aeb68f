"""A damaged JPEG is either rejected with a reason, or decoded as other decoders do.

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
WIDTH, HEIGHT = 50, 37  # not multiples of the block size


def good_jpeg(mode: str = "RGB", turned: int = 1, **options: object) -> bytes:
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[ORIENTATION] = turned
    file = io.BytesIO()
    image.convert(mode).save(file, "JPEG", exif=exif, **options)
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
    """A progressive JPEG with an end marker in place of its second scan's (two bits flipped)."""
    first, *others = GOOD["progressive"].split(b"\xff\xda")
    return b"\xff\xda".join((first, others[0])) + b"\xff\xd9" + b"\xff\xda".join(others[1:])


@st.composite
def damaged_jpegs(draw: st.DrawFn) -> bytes:
    """A JPEG with flipped bits, possibly an overwritten block, possibly truncated."""
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
    """The decoded image, or None if it is rejected with a valid reason."""
    try:
        return decode_image(data).image
    except ValueError as error:
        reason = str(error)
    assert reason
    assert reason.isprintable()  # and therefore one line
    return None


def by_pillow(data: bytes) -> Image.Image | None:
    """Decoded upright by Pillow; None if it fails, which includes damaged metadata."""
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    return None


def by_djpeg(data: bytes) -> Image.Image | None:
    """Decoded upright by ``djpeg -strict``, which treats warnings as errors; None if it fails."""
    assert DJPEG is not None
    done = subprocess.run([DJPEG, "-strict", "-memsrc"], input=data, capture_output=True)
    if done.returncode:
        return None
    image = Image.open(io.BytesIO(done.stdout)).convert("RGB")
    with warnings.catch_warnings(), suppress(Exception):
        warnings.simplefilter("ignore")
        note = Image.open(io.BytesIO(data)).getexif()
        image.getexif()[ORIENTATION] = note.get(ORIENTATION, 1)
    return ImageOps.exif_transpose(image)


@settings(max_examples=400, deadline=5000)  # ms: nothing hangs
@given(damaged_jpegs())
def test_a_damaged_jpeg_is_rejected_or_reads_as_pillow_reads_it(data: bytes) -> None:
    image, other = read(data), by_pillow(data)
    if image is not None and other is not None:
        assert np.array_equal(image, other)


@pytest.mark.skipif(DJPEG is None, reason="djpeg (libjpeg-turbo-progs) is not installed")
@settings(max_examples=200, deadline=5000)
@given(damaged_jpegs())
@example(ended_after_its_first_scan())
def test_a_damaged_jpeg_is_rejected_or_reads_as_djpeg_reads_it(data: bytes) -> None:
    image = read(data)
    if image is not None:
        other = by_djpeg(data)
        assert other is not None, "djpeg warns"
        if not np.array_equal(
            image, other
        ):  # libjpeg-turbo releases smooth missing scans differently
            assert b"\xff\xc2" in data, "not progressive"
            assert np.array_equal(image, by_pillow(data))  # same release as simplejpeg's


@pytest.mark.parametrize("kind", GOOD)
def test_an_undamaged_jpeg_reads_as_pillow_reads_it(kind: str) -> None:
    image = read(GOOD[kind])
    assert image is not None
    assert image.size == ((HEIGHT, WIDTH) if kind == "turned" else (WIDTH, HEIGHT))
    assert np.array_equal(image, by_pillow(GOOD[kind]))


@pytest.mark.parametrize("kind", GOOD)
def test_a_jpeg_is_rejected_wherever_it_is_truncated(kind: str) -> None:
    assert [end for end in range(len(GOOD[kind])) if read(GOOD[kind][:end]) is not None] == []


def test_a_lenient_decoder_accepts_truncated_jpegs() -> None:
    good = GOOD["4:2:0"]
    for end in range(good.index(b"\xff\xda") + 20, len(good)):
        assert simplejpeg.decode_jpeg(good[:end], strict=False).shape == (HEIGHT, WIDTH, 3)
