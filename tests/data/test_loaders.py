"""Loaders: DALI's output compared with a NumPy version, and the order of images.

Tolerance. Stored JPEGs keep full-resolution colour, so that decoding is the inverse cosine
transform of libjpeg alone, which its builds compute alike to the bit: one test checks this, and
the others rely on it. What remains are three float32 roundings of values below 512, of 3e-5 each.
"""

import os
import shutil
import warnings
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from alexnet2012.config.enums import Shuffle
from alexnet2012.config.schema import AugmentConfig, ConfigError, PrepareConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data import augmentation
from alexnet2012.data.loaders import (
    Batch,
    EvalLoader,
    TrainLoader,
    content_digest,
    mean_crops,
    prefetch,
)
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import SINGLE_PROCESS, LoaderPlacement
from alexnet2012.utils import native

PAPER = load_recipe("paper").augment
CODE = load_recipe("code145").augment
RECIPES = pytest.mark.parametrize("augment", [PAPER, CODE], ids=["paper", "code145"])
SIZE, INPUT = 40, 32
ROUNDING = 1e-4
COUNT = 42  # training images


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    folder = tmp_path_factory.mktemp("pipeline")
    rng = np.random.default_rng(0)
    for split, each in (("train", COUNT // 3), ("val", 3)):
        for name in ("cat", "dog", "owl"):
            (folder / "source" / split / name).mkdir(parents=True)
            for index in range(each):
                coarse = Image.fromarray(rng.integers(0, 256, (6, 6, 3), dtype=np.uint8))
                picture = coarse.resize((50, 45), Image.Resampling.BICUBIC)
                picture.save(folder / "source" / split / name / f"{index:02d}.png")
    config = PrepareConfig(str(folder / "source"), str(folder / "store"), size=SIZE, workers=1)
    return prepare(config, progress=False)


def loader(
    store: Store,
    augment: AugmentConfig = PAPER,
    placement: LoaderPlacement = SINGLE_PROCESS,
    **others: Any,
) -> TrainLoader:
    options: dict[str, Any] = {"input_size": INPUT, "batch_size": 8, "seed": 5, **others}
    return TrainLoader(store, store.split("train"), augment, **options, placement=placement)


def decoded(path: str) -> np.ndarray:
    return simplejpeg.decode_jpeg(Path(path).read_bytes())


def together(batches: list[Batch]) -> torch.Tensor:
    return torch.cat([batch.images for batch in batches])


def test_dali_decodes_the_same_pixels_as_preparation(store: Store) -> None:
    flat = replace(store, mean_image=np.zeros_like(store.mean_image))
    loaded = EvalLoader(flat, store.split("val"), PAPER, input_size=SIZE, views=1, batch_size=4)
    images = together(list(loaded))[:, 0].permute(0, 2, 3, 1)
    expected = np.stack([decoded(path) for path in store.split("val").paths])
    assert np.array_equal(images.numpy(), expected)


def expected_training(
    store: Store, split: Split, augment: AugmentConfig, epoch: int, lighting: bool = True
) -> np.ndarray:
    """The whole epoch, image by image: float64 [count, 3, S, S]."""
    count = len(split.paths)
    drawn = augmentation.sample_params(augment, count, SIZE - INPUT, 5, epoch)
    basis = augmentation.lighting_basis(store.rgb_covariance, augment.lighting_scale)
    result = []
    for at, index in enumerate(augmentation.epoch_order(count, 5, epoch)):
        y, x = drawn.crop_yx[at]
        image = decoded(split.paths[index])[y : y + INPUT, x : x + INPUT].astype(np.float64)
        if augment.mean_follows_crop:
            image = image - store.mean_image[y : y + INPUT, x : x + INPUT]
        if drawn.flip[at]:
            image = image[:, ::-1]
        if not augment.mean_follows_crop:
            low, high = (SIZE - INPUT) // 2, (SIZE + INPUT) // 2
            image = image - store.mean_image[low:high, low:high]
        if lighting:
            image = (image + basis @ drawn.alpha[at]) / augment.train_divisor
        result.append(image.transpose(2, 0, 1))
    return np.stack(result)


@RECIPES
@pytest.mark.parametrize("lighting", [True, False], ids=["lighting", "no lighting"])
def test_training_images_match_the_numpy_version(
    store: Store, augment: AugmentConfig, lighting: bool
) -> None:
    augment = replace(augment, images_per_draw=min(augment.images_per_draw, 4))
    actual = together(list(loader(store, augment).epoch(2, lighting=lighting)))
    expected = expected_training(store, store.split("train"), augment, 2, lighting)
    assert actual.dtype == torch.float32
    assert np.abs(actual.numpy() - expected).max() < ROUNDING


@pytest.mark.parametrize("replicas", [1, 2])
def test_an_order_drawn_once_gives_every_epoch_the_same_minibatches(
    store: Store, replicas: int
) -> None:
    def epoch(epoch: int, shuffle: Shuffle, first_step: int = 0) -> list[list[Batch]]:
        """By step, the batch of each replica."""
        placements = (
            replace(SINGLE_PROCESS, replica=r, replicas=replicas) for r in range(replicas)
        )
        loaders = (loader(store, CODE, placement, shuffle=shuffle) for placement in placements)
        steps = (list(each.epoch(epoch, first_step=first_step)) for each in loaders)
        return [list(step) for step in zip(*steps, strict=True)]

    def indices(steps: list[list[Batch]]) -> list[list[int]]:
        return [np.concatenate([batch.indices for batch in step]).tolist() for step in steps]

    first, second = epoch(0, Shuffle.once), epoch(1, Shuffle.once)
    anew = epoch(1, Shuffle.every_epoch)
    assert indices(first) == indices(second)
    assert sorted(chain.from_iterable(indices(second))) == list(range(COUNT))
    assert indices(first) != indices(anew)
    assert not torch.equal(together(first[0]), together(second[0]))  # another crop
    resumed = epoch(1, Shuffle.once, first_step=2)
    assert torch.equal(together(resumed[0]), together(second[2]))


def test_mean_crops_match_plain_indexing_and_flipping() -> None:
    mean = torch.rand(SIZE, SIZE, 3)
    drawn = augmentation.sample_params(replace(PAPER, images_per_draw=1), 20, SIZE - INPUT, 5, 0)
    assert 0 < drawn.flip.sum() < 20
    yx, flips = torch.from_numpy(drawn.crop_yx), torch.from_numpy(drawn.flip)
    for window, (y, x), flip in zip(
        mean_crops(mean, yx, flips, INPUT), drawn.crop_yx, drawn.flip, strict=True
    ):
        expected = mean[y : y + INPUT, x : x + INPUT]
        assert torch.equal(window, expected.flip(1) if flip else expected)


def test_prefetch_prepares_a_batch_before_the_previous_step(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done: list[str] = []

    class Stream:
        device = torch.device("cuda")

        def __init__(self, name: str) -> None:
            self.name = name

        def wait_stream(self, other: "Stream") -> None:
            done.append(f"{self.name} waits for {other.name}")

    monkeypatch.setattr(torch.cuda, "stream", lambda stream: nullcontext())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: Stream("main"))

    def batches() -> Iterator[Any]:
        for number in range(2):
            done.append(f"make {number}")
            yield number

    for number in prefetch(batches(), cast("torch.cuda.Stream", Stream("side"))):
        done.append(f"step {number}")
    waits = ["side waits for main", "main waits for side"]
    assert done == ["make 0", *waits, "make 1", "step 0", *waits, "step 1"]


@pytest.mark.parametrize(
    "change",
    [
        {"mean_follows_crop": False},
        {"train_divisor": 1.01},
        {"flip": False},
        {"crop": False},
        {"lighting_std": 0.11},
    ],
    ids=str,
)
def test_the_comparison_with_numpy_detects(store: Store, change: dict[str, float]) -> None:
    actual = together(list(loader(store, PAPER).epoch(2)))
    other = expected_training(store, store.split("train"), replace(PAPER, **change), 2)
    assert np.abs(actual.numpy() - other).max() > 100 * ROUNDING


@RECIPES
def test_without_augmentation_images_are_the_centre_minus_the_mean(
    store: Store, augment: AugmentConfig
) -> None:
    off = replace(augment, crop=False, flip=False, lighting=False, train_divisor=1.0)
    batch = next(loader(store, off).epoch(0))
    single = EvalLoader(
        store, store.split("train"), off, input_size=INPUT, views=1, batch_size=COUNT
    )
    expected = next(iter(single)).images[batch.indices, 0]
    assert torch.equal(batch.images, expected)


@RECIPES
def test_ten_views_match_the_numpy_version(store: Store, augment: AugmentConfig) -> None:
    split = store.split("val")
    loaded = EvalLoader(store, split, augment, input_size=INPUT, views=10, batch_size=4)
    actual = together(list(loaded)).numpy()
    far, middle = SIZE - INPUT, (SIZE - INPUT) // 2
    centre = store.mean_image[middle : middle + INPUT, middle : middle + INPUT]
    for picture, path in zip(actual, split.paths, strict=True):
        image = decoded(path).astype(np.float32)
        view = 0
        for mirrored in (False, True):
            for y, x in ((0, 0), (0, far), (far, 0), (far, far), (middle, middle)):
                window = slice(y, y + INPUT), slice(x, x + INPUT)
                crop, mean = image[window], store.mean_image[window]
                if augment.mean_follows_crop:
                    crop = crop - mean
                crop = crop[:, ::-1] if mirrored else crop
                if not augment.mean_follows_crop:
                    crop = crop - centre
                # One float32 subtraction in both: bit-identical, and never divided.
                assert np.array_equal(picture[view], crop.transpose(2, 0, 1))
                view += 1
    assert view == actual.shape[1] == 10


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("replicas", [1, 2, 5])
def test_evaluation_reads_every_image_once_in_order(
    store: Store, views: int, replicas: int
) -> None:
    split = store.split("val")
    loaders = [
        EvalLoader(
            store,
            split,
            PAPER,
            input_size=INPUT,
            views=views,
            batch_size=4,
            placement=LoaderPlacement(replica=replica, replicas=replicas),
        )
        for replica in range(replicas)
    ]
    steps = list(zip(*loaders, strict=True))
    assert len(steps) == len(loaders[0]) == 3
    indices = np.concatenate([batch.indices for step in steps for batch in step])
    assert indices.tolist() == list(range(9))
    for batch in (batch for step in steps for batch in step):
        n = batch.rows.size
        assert batch.images.shape == (n, views, 3, INPUT, INPUT)
        assert batch.labels.tolist() == split.labels[batch.indices].tolist()


def test_an_abandoned_evaluation_does_not_affect_the_next(store: Store) -> None:
    loaded = EvalLoader(store, store.split("val"), PAPER, input_size=INPUT, views=1, batch_size=2)
    whole = together(list(loaded))
    next(iter(loaded))
    assert torch.equal(together(list(loaded)), whole)


@pytest.mark.parametrize("batch_size", [1, 5, 42, 64])
def test_the_images_do_not_depend_on_the_batch_size(store: Store, batch_size: int) -> None:
    whole = together(list(loader(store).epoch(1)))
    assert torch.equal(together(list(loader(store, batch_size=batch_size).epoch(1))), whole)


@RECIPES
def test_replicas_together_have_the_global_batch(store: Store, augment: AugmentConfig) -> None:
    # 42 images in steps of 10: the last has 2 for three replicas, so one gets none.
    alone = list(loader(store, augment, batch_size=10).epoch(1))
    each = [
        list(loader(store, augment, LoaderPlacement(replica=r, replicas=3), batch_size=10).epoch(1))
        for r in range(3)
    ]
    for whole, *parts in zip(alone, *each, strict=True):
        assert torch.equal(torch.cat([part.images for part in parts]), whole.images)
        assert torch.equal(torch.cat([part.labels for part in parts]), whole.labels)
        for part in parts:
            assert np.array_equal(whole.indices[part.rows.start : part.rows.stop], part.indices)
            assert part.rows.total == len(whole.labels)
    empty = each[2][-1]
    assert empty.images.shape == (0, 3, INPUT, INPUT)
    assert empty.labels.shape == (0,)
    assert (empty.rows.size, empty.rows.total) == (0, 2)


@pytest.mark.parametrize("first_step", [0, 1, 4, 5, 6])
def test_a_resumed_epoch_gives_the_batches_of_an_uninterrupted_one(
    store: Store, first_step: int
) -> None:
    undisturbed = loader(store)
    list(undisturbed.epoch(0))
    expected = list(undisturbed.epoch(1))[first_step:]
    actual = list(loader(store).epoch(1, first_step=first_step))
    assert len(actual) == len(expected) == 6 - first_step
    for one, other in zip(actual, expected, strict=True):
        assert torch.equal(one.images, other.images)
        assert torch.equal(one.labels, other.labels)


@pytest.mark.parametrize("taken", [0, 1, 3, 5, 6])
def test_an_abandoned_epoch_does_not_affect_the_next(store: Store, taken: int) -> None:
    expected = together(list(loader(store).epoch(1)))
    used = loader(store)
    given_up = used.epoch(0)
    for _ in range(taken):
        next(given_up)
    assert torch.equal(together(list(used.epoch(1))), expected)


def test_an_epoch_iterator_is_invalid_after_another_has_started(store: Store) -> None:
    used = loader(store)
    first, second = used.epoch(0), used.epoch(1)
    next(first)
    next(second)
    with pytest.raises(RuntimeError, match="new one"):
        next(first)
    assert len(list(second)) == 5


def test_every_image_appears_once_per_epoch_with_its_label(store: Store) -> None:
    split = store.split("train")
    for epoch in range(2):
        batches = list(loader(store).epoch(epoch))
        indices = np.concatenate([batch.indices for batch in batches])
        assert sorted(indices) == list(range(COUNT))
        labels = torch.cat([batch.labels for batch in batches])
        assert labels.dtype == torch.int64
        assert labels.tolist() == split.labels[indices].tolist()
    assert loader(store).steps_per_epoch == len(batches) == 6


def test_batches_that_are_kept_are_not_overwritten(store: Store) -> None:
    expected = [batch.images.clone() for batch in loader(store, batch_size=2).epoch(0)]
    used = loader(store, batch_size=2)
    kept = list(used.epoch(0))
    list(used.epoch(1))
    del used
    assert all(torch.equal(b.images, e) for b, e in zip(kept, expected, strict=True))


def test_writing_to_a_batch_does_not_affect_others(store: Store) -> None:
    expected = [batch.images.clone() for batch in loader(store, batch_size=2).epoch(0)]
    for batch, images in zip(loader(store, batch_size=2).epoch(0), expected, strict=True):
        assert torch.equal(batch.images, images)
        batch.images.fill_(float("nan"))


def test_an_input_larger_than_the_store_is_refused(store: Store) -> None:
    with pytest.raises(ConfigError, match=f"input_size=41: must be 1 to {SIZE}"):
        loader(store, input_size=41)
    with pytest.raises(ConfigError, match="views=5"):
        EvalLoader(store, store.split("val"), PAPER, input_size=INPUT, views=5, batch_size=4)


@RECIPES
def test_an_input_as_large_as_the_store_has_one_position(
    store: Store, augment: AugmentConfig
) -> None:
    still = replace(augment, flip=False, lighting=False, train_divisor=1.0)
    batch = next(loader(store, still, input_size=SIZE).epoch(0))
    paths = store.split("train").paths
    expected = np.stack([decoded(paths[i]) - store.mean_image for i in batch.indices])
    assert np.array_equal(batch.images.permute(0, 2, 3, 1).numpy(), expected)


@pytest.mark.parametrize("damage", ["missing", "truncated", "text", "another image", "pipe"])
def test_a_missing_or_damaged_image_is_named(store: Store, tmp_path: Path, damage: str) -> None:
    shutil.copytree(store.root, tmp_path / "store")
    broken = Store.open(tmp_path / "store")
    path = Path(broken.split("train").paths[17])
    whole = path.read_bytes()
    if damage in ("missing", "pipe"):
        path.unlink()
    if damage == "pipe":
        os.mkfifo(path)  # which waits for a writer
    elif damage != "missing":
        another = Path(broken.split("train").paths[16]).read_bytes()  # a valid JPEG
        damaged = {"truncated": whole[:600], "text": b"not an image", "another image": another}
        path.write_bytes(damaged[damage])
    used = loader(broken)
    message = f"{path}: (cannot be read .*|does not match its checksum|is not a regular file)"
    with pytest.raises(ConfigError, match=message) as caught:
        list(used.epoch(0))
    assert "\n" not in str(caught.value) and "prepare it again" in str(caught.value)
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
    assert torch.equal(together(list(used.epoch(1))), together(list(loader(store).epoch(1))))


@pytest.mark.parametrize("batch_size", [4, 64])  # one image per thread, or several
def test_every_image_is_verified_in_both_splits(
    store: Store, tmp_path: Path, batch_size: int
) -> None:
    shutil.copytree(store.root, tmp_path / "store")
    broken = Store.open(tmp_path / "store")
    for split in (broken.split("train"), broken.split("val")):
        for at in (0, len(split.paths) - 1):
            path = Path(split.paths[at])
            whole = path.read_bytes()
            path.write_bytes(whole + b"\0")  # ignored by decoders
            used = EvalLoader(
                broken, split, PAPER, input_size=INPUT, views=1, batch_size=batch_size
            )
            with pytest.raises(ConfigError, match=f"{path}: does not match its checksum"):
                list(used)
            path.write_bytes(whole)


def test_loading_prints_no_output_or_warnings(
    store: Store, capfd: pytest.CaptureFixture[str]
) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        used = loader(store, CODE)
        next(used.epoch(0))
        list(used.epoch(1))
        list(EvalLoader(store, store.split("val"), CODE, input_size=INPUT, views=10, batch_size=4))
    assert capfd.readouterr() == ("", "")


def test_the_content_digest_tells_any_two_batches_apart(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In C and in torch alike: ranks of different machines may not have the same."""
    images = next(loader(store).epoch(0)).images
    one_bit = images.clone()
    one_bit[1, 2, 3, 4] = torch.nextafter(one_bit[1, 2, 3, 4], torch.tensor(torch.inf))
    two_pixels = images.clone()
    two_pixels[0, :, 0, :2] = images[0, :, 0, :2].flip(1)
    others = [one_bit, two_pixels, images.flip(0), images[:, [1, 0, 2]], images[:0], -images]
    of_kernels = [content_digest(batch) for batch in (images, *others)]
    assert content_digest(images.clone()) == of_kernels[0]
    assert content_digest(images.contiguous()) == of_kernels[0]  # in another layout
    assert len({*of_kernels}) == len(of_kernels)
    monkeypatch.setattr(native, "kernels", lambda: None)
    assert [content_digest(batch) for batch in (images, *others)] == of_kernels
