"""Images that are decoded once and kept give the batches of images that are decoded at each use."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from programs import TINY
from ranks import run_ranks
from test_tower_feed import summarize

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Keep
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data import augmentation, kept
from alexnet2012.data.device_augment import DevicePipeline
from alexnet2012.data.kept import keep_images, resolve_keep
from alexnet2012.data.loaders import TrainLoader, make_loaders
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process

ALONE = single_process()
BATCH = 19  # of 96 images: the last batch has one


def config_of(root: str, *overrides: str) -> TrainConfig:
    words = (*TINY, f"data.store={root}", f"data.batch_size={BATCH}", "schedule.epochs=2")
    return compose_config("train", TrainConfig, [*words, "data.decode_threads=1", *overrides])[0]


def batches(root: str, mesh: Mesh, *overrides: str) -> list[object]:
    """Two epochs of training, the second resumed as well, and validation twice."""
    config = config_of(root, *overrides)
    train, val, _ = make_loaders(config, Store.open(Path(root)), mesh)
    epochs = [train.epoch(0), train.epoch(1, lighting=False), train.epoch(1, first_step=3)]
    return [summarize(list(loaded)) for loaded in (*epochs, val, val)]


def batches_of_rank(root: str, towers: int, *overrides: str) -> list[object]:
    return batches(root, init_mesh(towers, device="cpu"), *overrides)


@pytest.mark.parametrize("views", [1, 10])
@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_kept_images_give_the_same_bits(photos_store: Store, recipe: str, views: int) -> None:
    root, words = str(photos_store.root), (f"recipe={recipe}", f"eval_views={views}")
    decoded = batches(root, ALONE, *words, "data.keep=no")
    assert batches(root, ALONE, *words, "data.keep=memory") == decoded
    assert batches(root, ALONE, *words, "seed=1", "data.keep=memory") != decoded


@pytest.mark.parametrize("feed", ["split", "duplicate"])
@pytest.mark.parametrize("towers", [2, 1])
def test_ranks_that_share_kept_images_get_the_same_bits(
    photos_store: Store, feed: str, towers: int
) -> None:
    """Two towers of a replica, and two replicas of a tower."""
    root, word = str(photos_store.root), f"data.feed={feed}"
    decoded = run_ranks(2, batches_of_rank, root, towers, word, "data.keep=no")
    assert run_ranks(2, batches_of_rank, root, towers, word, "data.keep=memory") == decoded


def sees_what_rank_0_writes(root: str) -> bool:
    mesh, store = init_mesh(2, device="cpu"), Store.open(Path(root))
    config = config_of(root)
    (images,) = keep_images([store.split("val")], store.size, config.data.decoder, 1, mesh)
    mesh.barrier()
    if mesh.rank == 0:
        images[0] = 77
    mesh.barrier()
    return bool((images[0] == 77).all())


def test_the_processes_of_a_machine_share_one_copy(photos_store: Store) -> None:
    assert run_ranks(2, sees_what_rank_0_writes, str(photos_store.root)) == [True, True]


def test_a_damaged_image_is_named_before_the_first_step(
    photos_store: Store, tmp_path: Path
) -> None:
    split = photos_store.split("val")
    damaged = tmp_path / "damaged.jpg"
    data = bytearray(Path(split.paths[5]).read_bytes())
    data[-3] ^= 1
    damaged.write_bytes(data)
    paths = [*split.paths[:5], str(damaged), *split.paths[6:]]
    decoder = config_of(str(photos_store.root)).data.decoder
    with pytest.raises(ConfigError, match=r"damaged\.jpg: does not match its checksum"):
        keep_images([replace(split, paths=paths)], photos_store.size, decoder, 1, ALONE)


@pytest.mark.parametrize(
    ("keep", "epochs", "available", "resolved"),
    [
        (Keep.auto, 2, 2 * 3 * 100 * 10**2, Keep.memory),
        (Keep.auto, 2, 2 * 3 * 100 * 10**2 - 1, Keep.no),  # it would take more than half
        (Keep.auto, 1, 1 << 40, Keep.no),  # nothing is decoded twice
        (Keep.memory, 1, 1 << 40, Keep.memory),
        (Keep.no, 2, 1 << 40, Keep.no),
    ],
)
def test_auto_keeps_what_takes_half_of_the_memory_at_most(
    monkeypatch: pytest.MonkeyPatch, keep: Keep, epochs: int, available: int, resolved: Keep
) -> None:
    monkeypatch.setattr(kept, "available_bytes", lambda: available)
    assert resolve_keep(keep, images=100, size=10, epochs=epochs, mesh=ALONE) is resolved


def test_images_that_do_not_fit_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept, "available_bytes", lambda: 100 << 30)
    with pytest.raises(ConfigError, match=r"data\.keep=memory: .* 234\.6 GiB, and 100\.0 GiB"):
        resolve_keep(Keep.memory, images=1_281_167, size=256, epochs=90, mesh=ALONE)
    with pytest.raises(ConfigError, match=r"data\.keep=device: this run is on the CPU"):
        resolve_keep(Keep.device, images=1, size=256, epochs=90, mesh=ALONE)


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_augmenting_on_a_device_equals_dalis(photos_store: Store, recipe: str) -> None:
    """Bit for bit without lighting noise; with it to one rounding of values below 512."""
    augment, size = load_recipe(recipe).augment, 64
    split = photos_store.split("train")
    decoder = config_of(str(photos_store.root)).data.decoder
    (images,) = keep_images([split], photos_store.size, decoder, 1, ALONE)
    loader = TrainLoader(
        photos_store, split, augment, input_size=size, batch_size=BATCH, seed=3, kept=images
    )
    for lighting in (False, True):
        want = [batch.images.clone() for batch in loader.epoch(0, lighting=lighting)]
        files, loader._input = loader._input, DevicePipeline(images, size, torch.device("cpu"))
        got = [batch.images.clone() for batch in loader.epoch(0, lighting=lighting)]
        loader._input = files
        for ours, dalis in zip(got, want, strict=True):
            bound = 2.0**-15 if lighting else 0
            torch.testing.assert_close(ours, dalis, rtol=0, atol=bound)
    assert augmentation.epoch_order(96, 3, 0).tolist() != list(range(96))
