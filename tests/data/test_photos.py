"""The embedded photographs: reproducible bytes, and splits that share no pixels."""

import hashlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from alexnet2012.data.sources import photos

SIZES = [photos.photograph(name).size for name in photos.CLASSES]


def digests(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.jpg"))
    }


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("photos")
    photos.make_photos(folder, train_per_class=3, val_per_class=2)
    return folder


def test_there_are_sixteen_classes_of_distinct_images(made: Path) -> None:
    assert len(photos.CLASSES) == 16
    files = digests(made)
    assert len(files) == len(set(files.values())) == 16 * 5
    for split, count in (("train", 3), ("val", 2)):
        folders = sorted((made / split).iterdir())
        assert [folder.name for folder in folders] == sorted(photos.CLASSES)
        assert {len(list(folder.iterdir())) for folder in folders} == {count}


def test_the_same_seed_makes_the_same_bytes(made: Path, tmp_path: Path) -> None:
    photos.make_photos(tmp_path, train_per_class=3, val_per_class=2)
    assert digests(made) == digests(tmp_path)


def test_another_seed_makes_other_images(made: Path, tmp_path: Path) -> None:
    photos.make_photos(tmp_path, train_per_class=3, val_per_class=2, seed=1)
    assert not set(digests(made).values()) & set(digests(tmp_path).values())


def test_more_images_do_not_change_the_first_ones(made: Path, tmp_path: Path) -> None:
    photos.make_photos(tmp_path, train_per_class=4, val_per_class=2)
    assert digests(made).items() <= digests(tmp_path).items()


def test_images_are_rgb_and_large_enough_to_prepare(made: Path) -> None:
    for path in made.rglob("*.jpg"):
        with Image.open(path) as image:
            assert image.mode == "RGB"
            assert 119 <= min(image.size) <= max(image.size) <= 320


@pytest.mark.parametrize("size", SIZES)
def test_train_and_validation_regions_do_not_overlap(size: tuple[int, int]) -> None:
    train, val = photos.regions(*size).values()
    gap = max(val[0] - train[2], val[1] - train[3])
    assert gap >= 0.02 * max(size) - 1
    assert val[2:] == size
    assert train[:2] == (0, 0)


@given(
    st.sampled_from(SIZES),
    st.floats(0.1, 1),
    st.floats(0.1, 1),
    st.floats(-10, 10),
    st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
)
def test_a_rotated_crop_stays_in_its_region(
    size: tuple[int, int], wide: float, high: float, degrees: float, at: tuple[float, float]
) -> None:
    for region in photos.regions(*size).values():
        left, top, right, bottom = region
        largest = (min(right - left, bottom - top) - 7) / 1.16  # 1.16 > cos 10° + sin 10°
        width, height = wide * largest, high * largest
        box = photos.crop_box(region, width, height, degrees, at)
        turn = np.radians(degrees)
        corners = [(x, y) for x in (-width / 2, width / 2) for y in (-height / 2, height / 2)]
        for x, y in corners:
            across = (box[0] + box[2]) / 2 + x * np.cos(turn) - y * np.sin(turn)
            down = (box[1] + box[3]) / 2 + x * np.sin(turn) + y * np.cos(turn)
            assert left - 1e-6 <= across <= right + 1e-6
            assert top - 1e-6 <= down <= bottom + 1e-6


def test_a_crop_too_large_for_its_region_is_refused() -> None:
    with pytest.raises(AssertionError):
        photos.crop_box((0, 0, 100, 100), 95, 95, 10.0, (0.0, 0.0))


def test_rotated_crops_contain_no_padding() -> None:
    # Pillow pads rotated images with black, which would show on a white photograph.
    white = Image.new("RGB", (400, 400), "white")
    rng = np.random.default_rng(0)
    for _ in range(50):
        image = photos._random_crop(white, (0, 0, 150, 150), 120.0, rng)
        assert len(image.getcolors(10**6) or []) == 1
