"""Epoch order and augmentation parameters are functions of seed, epoch and position."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet2012.config.enums import LightingScale, Shuffle
from alexnet2012.config.schema import AugmentConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data import augmentation
from alexnet2012.data.ten_crop import view_positions

PAPER = load_recipe("paper").augment
CODE = load_recipe("code145").augment
MARGIN = 32  # 256 - 224

counts = st.integers(1, 200)
seeds = st.integers(0, 2**32)
epochs = st.integers(0, 100)


def positions(count: int, batch: int, replicas: int, first_step: int = 0) -> list[np.ndarray]:
    """Positions read by all replicas together, for each step."""
    parts = [
        augmentation.replica_steps(count, batch, r, replicas)[first_step:] for r in range(replicas)
    ]
    at = np.arange(count)
    return [np.concatenate([at[part] for part, _ in step]) for step in zip(*parts, strict=True)]


@given(counts, seeds, epochs)
def test_every_image_appears_exactly_once_per_epoch(count: int, seed: int, epoch: int) -> None:
    assert sorted(augmentation.epoch_order(count, seed, epoch)) == list(range(count))


@given(st.integers(50, 200), seeds, st.integers(1, 100))
def test_an_order_drawn_once_is_that_of_the_first_epoch(count: int, seed: int, epoch: int) -> None:
    order = augmentation.epoch_order(count, seed, epoch, Shuffle.once)
    assert np.array_equal(order, augmentation.epoch_order(count, seed, 0))
    assert not np.array_equal(order, augmentation.epoch_order(count, seed, epoch))


@given(counts, st.integers(1, 64), st.integers(1, 6))
def test_replicas_together_read_the_global_batches_in_order(
    count: int, batch: int, replicas: int
) -> None:
    steps = positions(count, batch, replicas)
    assert [len(step) for step in steps[:-1]] == [batch] * (len(steps) - 1)
    assert np.array_equal(np.concatenate(steps), np.arange(count))


@given(counts, st.integers(1, 64), st.integers(1, 6))
def test_rows_are_the_replicas_rows_of_the_global_batch(
    count: int, batch: int, replicas: int
) -> None:
    for replica in range(replicas):
        for step, (at, rows) in enumerate(
            augmentation.replica_steps(count, batch, replica, replicas)
        ):
            assert at.start == step * batch + rows.start
            assert at.stop - at.start == rows.size
            assert rows.total == min(batch, count - step * batch)


@given(counts, st.integers(1, 64), st.integers(1, 4), st.data())
def test_a_resumed_epoch_reads_the_remaining_steps(
    count: int, batch: int, replicas: int, data: st.DataObject
) -> None:
    whole = positions(count, batch, replicas)
    first = data.draw(st.integers(0, len(whole)))
    for restarted, undisturbed in zip(
        positions(count, batch, replicas, first), whole[first:], strict=True
    ):
        assert np.array_equal(restarted, undisturbed)


def test_slicing_params_slices_every_field() -> None:
    whole = augmentation.sample_params(PAPER, 100, MARGIN, seed=3, epoch=1)
    part = whole[17:40]
    assert len(part) == 23
    assert np.array_equal(part.crop_yx, whole.crop_yx[17:40])
    assert np.array_equal(part.flip, whole.flip[17:40])
    assert np.array_equal(part.alpha, whole.alpha[17:40])


@pytest.mark.parametrize("kind", ["seed", "name", "epoch"])
def test_streams_differ_in(kind: str) -> None:
    other = {"seed": (1, "a", 0), "name": (0, "b", 0), "epoch": (0, "a", 1)}[kind]
    assert (
        augmentation.random_stream(0, "a", 0).random()
        != augmentation.random_stream(*other).random()
    )


def test_a_stream_is_the_same_in_every_process() -> None:
    # Recorded values: a change, of string hashing or NumPy's generator, would make past runs
    # irreproducible.
    assert augmentation.random_stream(0, "order", 0).integers(2**31, size=3).tolist() == [
        1949664952,
        2003482808,
        130549370,
    ]


@pytest.mark.parametrize(("augment", "last"), [(PAPER, 31), (CODE, 32)], ids=["paper", "code145"])
def test_crops_reach_every_position_evenly(augment: AugmentConfig, last: int) -> None:
    count = 40_000
    yx = augmentation.sample_params(
        replace(augment, images_per_draw=1), count, MARGIN, seed=0, epoch=0
    ).crop_yx
    for axis in range(2):
        times = np.bincount(yx[:, axis])
        assert len(times) == last + 1
        # Six standard deviations of a count, for 65 counts: fails once in 10⁷ seeds.
        expected = count / (last + 1)
        assert np.abs(times - expected).max() < 6 * np.sqrt(expected)
    assert abs(np.corrcoef(yx.T)[0, 1]) < 0.03  # rows and columns are independent


def test_half_of_the_images_are_flipped() -> None:
    flip = augmentation.sample_params(PAPER, 40_000, MARGIN, seed=0, epoch=0).flip
    assert abs(flip.mean() - 0.5) < 6 * 0.5 / 200


def test_alpha_has_the_standard_deviation_of_the_recipe() -> None:
    alpha = augmentation.sample_params(PAPER, 40_000, MARGIN, seed=0, epoch=0).alpha
    assert alpha.dtype == np.float32
    assert np.abs(alpha.std(axis=0) - 0.1).max() < 6 * 0.1 / np.sqrt(2 * 40_000)
    assert np.abs(alpha.mean(axis=0)).max() < 6 * 0.1 / 200


def test_code145_shares_crop_and_flip_among_32_images_but_not_lighting() -> None:
    drawn = augmentation.sample_params(CODE, 100, MARGIN, seed=0, epoch=0)
    for start in (0, 32, 64, 96):
        group = drawn[start : start + 32]
        assert (group.crop_yx == group.crop_yx[0]).all()
        assert (group.flip == group.flip[0]).all()
        assert len(np.unique(group.alpha[:, 0])) == len(group)
    assert len(np.unique(drawn.crop_yx, axis=0)) == 4


def test_disabled_augmentations_have_neutral_params() -> None:
    off = replace(PAPER, crop=False, flip=False, lighting=False)
    drawn = augmentation.sample_params(off, 10, MARGIN, seed=0, epoch=0)
    assert (drawn.crop_yx == 16).all()
    assert not drawn.flip.any()
    assert not drawn.alpha.any()


def test_disabling_one_augmentation_does_not_change_the_others() -> None:
    with_flip = augmentation.sample_params(PAPER, 50, MARGIN, seed=0, epoch=0)
    without = augmentation.sample_params(replace(PAPER, flip=False), 50, MARGIN, seed=0, epoch=0)
    assert np.array_equal(with_flip.crop_yx, without.crop_yx)
    assert np.array_equal(with_flip.alpha, without.alpha)


@pytest.mark.parametrize("augment", [PAPER, CODE], ids=["paper", "code145"])
def test_without_a_margin_there_is_one_crop_position(augment: AugmentConfig) -> None:
    assert not augmentation.sample_params(augment, 50, 0, seed=0, epoch=0).crop_yx.any()


# What cuda-convnet2 stores for ImageNet: standard deviations and eigenvectors, largest last.
STD = np.array([19.72, 37.09, 121.78])
VECTORS = np.array([[0.418, -0.713, -0.564], [-0.817, -0.024, -0.576], [0.397, 0.701, -0.592]])


@pytest.mark.parametrize(
    ("scale", "lengths"),
    [
        (LightingScale.standard_deviations, [121.78, 37.09, 19.72]),
        (LightingScale.eigenvalues, [121.78**2 / 255, 37.09**2 / 255, 19.72**2 / 255]),
    ],
)
def test_lighting_of_imagenet_has_the_published_strength(
    scale: LightingScale, lengths: list[float]
) -> None:
    orthogonal, _ = np.linalg.qr(VECTORS)  # orthogonal only to three digits
    basis = augmentation.lighting_basis(orthogonal * STD**2 @ orthogonal.T, scale)
    assert np.allclose(np.linalg.norm(basis, axis=0), lengths, rtol=1e-9)
    # The largest component is grey: its three channels have one sign, made positive.
    assert (basis[:, 0] > 0).all()


def test_lighting_noise_has_the_covariance_of_the_pixels() -> None:
    root = np.random.default_rng(0).normal(size=(3, 3)) * 50
    covariance = root @ root.T
    basis = augmentation.lighting_basis(covariance, LightingScale.standard_deviations)
    assert np.allclose(basis @ basis.T, covariance)


def test_lighting_of_grey_images_is_grey() -> None:
    basis = augmentation.lighting_basis(np.full((3, 3), 900.0), LightingScale.standard_deviations)
    assert np.allclose(basis[:, 0], 30)
    assert np.allclose(basis[:, 1:], 0, atol=1e-5)


def test_ten_views_are_corners_and_centre_and_their_flips() -> None:
    views = view_positions(10, 256, 224).tolist()
    corners = [[0, 0], [0, 32], [32, 0], [32, 32], [16, 16]]
    assert views == [[*c, 0] for c in corners] + [[*c, 1] for c in corners]
    assert view_positions(1, 256, 224).tolist() == [[16, 16, 0]]
