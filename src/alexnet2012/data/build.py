"""The batches that a configuration asks for, in training and in validation."""

from __future__ import annotations

from alexnet2012.config.enums import Feed
from alexnet2012.config.schema import TrainConfig
from alexnet2012.data.loaders import EvalLoader, TrainLoader
from alexnet2012.data.store import Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.mesh import Mesh


def loaders(config: TrainConfig, store: Store, mesh: Mesh) -> tuple[TrainLoader, EvalLoader]:
    """Of this rank, for training and for validation."""
    data, augment = config.data, config.recipe.augment
    split = data.feed is Feed.split
    place = LoaderPlacement(
        replica=mesh.replica,
        replicas=mesh.replicas,
        device=mesh.device,
        threads=data.decode_threads,
        decoder=data.decoder,
        comm=communicator_of(mesh) if split else None,
    )
    train_loader = TrainLoader(
        store,
        store.split("train", data.limit),
        augment,
        input_size=config.model.input_size,
        batch_size=data.batch_size,
        seed=config.seed,
        place=place,
    )
    val_loader = EvalLoader(
        store,
        store.split("val", data.limit),
        augment,
        input_size=config.model.input_size,
        views=config.eval_views,
        batch_size=data.eval_batch_size,
        place=place,
    )
    return train_loader, val_loader
