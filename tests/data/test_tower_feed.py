"""Split and duplicate feeds give bit-identical batches, from any step on."""

from __future__ import annotations

import hashlib
import shutil
import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import run_ranks

from alexnet2012.config.enums import Decoder
from alexnet2012.config.schema import ConfigError
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch, EvalLoader, TrainLoader
from alexnet2012.data.store import Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.mesh import init_mesh

INPUT = 64
# 96 images in batches of 19: the last has one image, so the second tower decodes none.
BATCH, STEPS = 19, 6


def placement(split: bool) -> LoaderPlacement:
    mesh = init_mesh(2, device="cpu")
    comm = Communicator(mesh.tower_group, mesh.towers, mesh.tower) if split else None
    return LoaderPlacement(mesh.replica, mesh.replicas, threads=1, comm=comm)


def summarize(batches: list[Batch]) -> list[tuple[str, list[int], list[int], tuple[int, ...]]]:
    """Digests and indices that identify batches, small enough to send."""
    return [
        (
            hashlib.sha256(batch.images.contiguous().numpy().tobytes()).hexdigest(),
            batch.labels.tolist(),
            batch.indices.tolist(),
            tuple(batch.rows),
        )
        for batch in batches
    ]


def train_batches(root: str, recipe: str, split: bool, *cases: tuple[int, int]) -> object:
    """The batches of an epoch for each case: (first step, steps of an abandoned earlier epoch)."""
    store = Store.open(Path(root))
    loader = TrainLoader(
        store,
        store.split("train"),
        load_recipe(recipe).augment,
        input_size=INPUT,
        batch_size=BATCH,
        seed=3,
        placement=placement(split),
    )
    results = []
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for first_step, abandoned_steps in cases:
            earlier = loader.epoch(0)
            for _ in range(abandoned_steps):
                next(earlier)
            results.append(summarize(list(loader.epoch(1, first_step=first_step))))
    return results


def eval_batches(root: str, recipe: str, split: bool, views: int) -> object:
    store = Store.open(Path(root))
    loader = EvalLoader(
        store,
        store.split("val"),
        load_recipe(recipe).augment,
        input_size=INPUT,
        views=views,
        batch_size=7,
        placement=placement(split),
    )
    first = summarize(list(loader.batches()))
    assert summarize(list(loader.batches())) == first
    return first


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_split_towers_get_the_batches_of_one_process(photos_store: Store, recipe: str) -> None:
    root = str(photos_store.root)
    ((alone,),) = run_ranks(1, train_batches, root, recipe, False, (0, 0))
    for tower in run_ranks(2, train_batches, root, recipe, True, (0, 0)):
        assert tower == [alone]
    assert len(alone) == STEPS
    assert sorted(i for _, _, indices, _ in alone for i in indices) == list(range(96))


@pytest.mark.parametrize("views", [1, 10])
def test_split_towers_evaluate_the_batches_of_one_process(photos_store: Store, views: int) -> None:
    root = str(photos_store.root)
    for recipe in ("paper", "code145"):
        (alone,) = run_ranks(1, eval_batches, root, recipe, False, views)
        for tower in run_ranks(2, eval_batches, root, recipe, True, views):
            assert tower == alone
        assert [i for _, _, indices, _ in alone for i in indices] == list(range(48))


@pytest.mark.parametrize("split", [True, False], ids=["split", "duplicate"])
def test_a_resumed_epoch_gives_the_batches_of_an_uninterrupted_one(
    photos_store: Store, split: bool
) -> None:
    root = str(photos_store.root)
    cases = ((2, 0), (3, 2), (5, STEPS), (6, 1))
    ((undisturbed,),) = run_ranks(1, train_batches, root, "paper", False, (0, 0))
    for tower in run_ranks(2, train_batches, root, "paper", split, *cases):
        assert tower == [undisturbed[first_step:] for first_step, _ in cases]


def test_towers_of_a_replica_share_its_batches(photos_store: Store) -> None:
    root = str(photos_store.root)
    ((alone,),) = run_ranks(1, train_batches, root, "paper", False, (0, 0))
    ranks = [batches for (batches,) in run_ranks(4, train_batches, root, "paper", True, (0, 0))]
    assert ranks[0] == ranks[1]
    assert ranks[2] == ranks[3]
    for whole, first, second in zip(alone, ranks[0], ranks[2], strict=True):
        assert first[2] + second[2] == whole[2]
        assert first[1] + second[1] == whole[1]


def damaged(root: str) -> str:
    try:
        return str(train_batches(root, "paper", True, (0, 0)))
    except ConfigError as error:
        dist.destroy_process_group()  # as when its process ends, so the peer does not wait
        return str(error)
    except RuntimeError as error:  # the peer is gone, or fails in turn
        return f"lost: {error}"


def test_a_tower_names_the_file_that_it_cannot_read(photos_store: Store, tmp_path: Path) -> None:
    shutil.copytree(photos_store.root, tmp_path / "store")
    victim = Store.open(tmp_path / "store").split("train").paths[17]
    Path(victim).write_bytes(b"not a image")
    answers = run_ranks(2, damaged, str(tmp_path / "store"))
    assert any(victim in answer for answer in answers), answers


def test_gpu_decoding_without_a_gpu_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"data\.decoder=gpu: the images are needed on the cpu"):
        LoaderPlacement(decoder=Decoder.gpu)
    assert replace(LoaderPlacement(), decoder=Decoder.cpu).device == torch.device("cpu")


def test_the_gather_keeps_the_order_of_images() -> None:
    for tower in run_ranks(2, gathered_rows):
        assert np.array_equal(tower, np.arange(5, dtype=np.uint8)[:, None])


def gathered_rows() -> np.ndarray:
    from alexnet2012.distributed.collectives import gather_rows
    from alexnet2012.utils.shard import shard_of

    mesh = init_mesh(2, device="cpu")
    own = shard_of(5, 2, mesh.tower)
    rows = torch.arange(5, dtype=torch.uint8)[own.start : own.stop, None]
    comm = Communicator(mesh.tower_group, 2, mesh.tower)
    return gather_rows(rows, own, comm, "input", "input").numpy()
