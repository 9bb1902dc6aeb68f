"""Folders of class folders: what is found, and what is said where nothing can be found."""

import io
import os
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from alexnet2012.config import ConfigError
from alexnet2012.data.sources import MAX_PIXELS, open_source, read_picture, square_jpeg


def put(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not decoded here")
    return root


FOUR = ("train/cat/1.jpg", "train/dog/1.jpg", "val/cat/1.jpg", "val/dog/1.jpg")


def test_pictures_are_found_in_order_whatever_their_suffix(tmp_path: Path) -> None:
    put(tmp_path, *FOUR, "train/cat/0.PNG", "train/cat/3.JPEG", "val/dog/2.tiff")
    source = open_source(str(tmp_path))
    assert source.classes == ("cat", "dog")
    found = [(path.relative_to(tmp_path).as_posix(), label) for path, label in source.train]
    assert found == [
        ("train/cat/0.PNG", 0),
        ("train/cat/1.jpg", 0),
        ("train/cat/3.JPEG", 0),
        ("train/dog/1.jpg", 1),
    ]
    assert [label for _, label in source.val] == [0, 1, 1]
    assert source.strays == ()


def test_hidden_files_are_passed_over_and_others_are_named(tmp_path: Path) -> None:
    put(tmp_path, *FOUR, "train/.DS_Store", "train/cat/.hidden.jpg", "train/.git/x.jpg")
    put(tmp_path, "train/cat/notes.txt", "train/readme.md", "val/dog/more.jpg/1.jpg")
    source = open_source(str(tmp_path))
    strays = [path.relative_to(tmp_path).as_posix() for path in source.strays]
    assert strays == ["train/cat/notes.txt", "train/readme.md", "val/dog/more.jpg"]
    assert len(source.train) == 2


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ((), "empty"),
        (("train/cat/1.jpg",), "no folder val/"),
        (("val/cat/1.jpg",), "no folder train/"),
        ((*FOUR, "train/cow/notes.txt"), "cow has no pictures"),
        ((*FOUR, "train/cow/1.jpg"), "cow is in train/ but not in val/"),
        ((*FOUR, "val/cow/1.jpg"), "cow is in val/ but not in train/"),
        (("train/cat/1.jpg", "val/cat/1.jpg"), "1 class"),
        (("train/1.jpg", "val/1.jpg"), "0 class"),
        ((*FOUR, "train/a\tb/1.jpg"), "unprintable"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused_in_one_line(
    tmp_path: Path, names: tuple[str, ...], said: str
) -> None:
    put(tmp_path, *names)
    with pytest.raises(ConfigError, match=said) as caught:
        open_source(str(tmp_path))
    assert caught.value.key == "data.source"
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_folder_and_a_file_are_told_apart(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_source(str(tmp_path / "nowhere"))
    with pytest.raises(ConfigError, match="is a file"):
        open_source(str(put(tmp_path, "file") / "file"))


def encoded(picture: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    picture.save(file, kind, **options)
    return file.getvalue()


def quadrants(width: int = 60, height: int = 40) -> Image.Image:
    """Red, green, blue and white quarters: every turn and mirror image of it is different."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2, 0] = 250
    pixels[: height // 2, width // 2 :, 1] = 250
    pixels[height // 2 :, : width // 2, 2] = 250
    pixels[height // 2 :, width // 2 :] = 250
    return Image.fromarray(pixels)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_exif_orientation_is_honoured(orientation: int, kind: str) -> None:
    # What a viewer must do to see it upright, undone: applied twice the inverse gives the same.
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
    found = np.asarray(read_picture(data)).astype(int)
    assert found.shape == (40, 60, 3)
    assert np.abs(found - np.asarray(quadrants())).max() <= 4  # JPEG of quality 100


@pytest.mark.parametrize(
    ("mode", "expected"),
    [("L", (100, 100, 100)), ("1", (255, 255, 255)), ("LA", (178, 178, 178)), ("P", (100,) * 3)],
)
def test_other_kinds_of_pixels_become_rgb(mode: str, expected: tuple[int, int, int]) -> None:
    colour = {"1": 1, "LA": (100, 127)}.get(mode, 100)  # LA: half transparent, so half white
    palette = Image.new("P", (20, 20), 100)
    palette.putpalette([level for level in range(256) for _ in range(3)])
    picture = palette if mode == "P" else Image.new(mode, (20, 20), colour)
    found = read_picture(encoded(picture, "PNG"))
    assert found.mode == "RGB"
    assert np.abs(np.subtract(found.getpixel((10, 10)), expected)).max() <= 1


def test_sixteen_bit_grey_keeps_its_high_byte() -> None:
    picture = Image.fromarray(np.full((8, 8), 0x6543, np.uint16))
    assert read_picture(encoded(picture, "PNG")).getpixel((0, 0)) == (0x65,) * 3


def test_cmyk_jpeg_reads_as_pillow_reads_it() -> None:
    data = encoded(quadrants().convert("CMYK"), "JPEG", quality=95)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB")).astype(int)
    assert np.abs(np.asarray(read_picture(data)) - expected).max() <= 2
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
            read_picture(data)
        assert "\n" not in str(caught.value)
    assert MAX_PIXELS < 12_000**2


@pytest.mark.parametrize(
    "data",
    [b"", b"hello", b"\xff\xd8\xff", encoded(quadrants(600, 400), "JPEG")[:2000], png_of(20, 20)],
    ids=["zero bytes", "text", "JPEG start", "truncated JPEG", "PNG without pixels"],
)
def test_bytes_that_are_no_picture_give_a_reason_of_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r".") as caught:
        read_picture(data)
    assert "\n" not in str(caught.value)
    assert "0x7" not in str(caught.value)  # no address in memory: reasons are compared


def test_the_stored_square_is_the_centre_of_the_picture() -> None:
    pixels = np.zeros((100, 300, 3), np.uint8)
    pixels[:, 100:200] = 200  # the centre square, and nothing else
    stored = simplejpeg.decode_jpeg(square_jpeg(Image.fromarray(pixels), 64, 95))
    assert stored.shape == (64, 64, 3)
    # The filter is two source pixels wide and lets in half of one at each edge at most.
    assert np.abs(stored[:, 2:-2].astype(int) - 200).max() <= 2


def test_unreadable_class_folder_names_do_not_hide_in_bytes(tmp_path: Path) -> None:
    put(tmp_path, *FOUR)
    (tmp_path / "train" / os.fsdecode(b"\xff")).mkdir()
    with pytest.raises(ConfigError, match="unprintable"):
        open_source(str(tmp_path))
