"""Errors of saved checkpoints on a store; several checkpoints make an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.trained_model import TrainedModel, load_ensemble
from alexnet2012.training.evaluation import evaluate
from alexnet2012.utils.metrics import ErrorCounts


def evaluate_checkpoints(config: EvaluateConfig) -> ErrorCounts:
    """Errors on the validation pictures of the store.

    Raises:
        ConfigError: a checkpoint that is none, or that was trained on other classes.
    """
    reuse_memory()
    nets = load_ensemble(config.checkpoint, config.device)
    store, split = _validation_pictures(config, nets[0])
    paths = config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint]
    _check_alike(paths, nets, store)
    loader = EvalLoader(
        replace(store, mean_image=nets[0].mean_image),
        split,
        nets[0].model.recipe.augment,
        input_size=nets[0].model.config.input_size,
        views=config.views,
        batch_size=max(1, config.batch_size // config.views),
        placement=LoaderPlacement(device=nets[0].model.mesh.device, threads=config.decode_threads),
    )
    mesh = nets[0].model.mesh
    return evaluate([net.model for net in nets], loader.batches(), mesh)


def _validation_pictures(config: EvaluateConfig, net: TrainedModel) -> tuple[Store, Split]:
    """Those of the given store, or of what the net was trained on."""
    if config.store is not None:
        store = Store.open(Path(config.store))
        return store, store.split("val")
    if net.data is None or net.data.store is None:
        remedy = "does not say what it was trained on; set store=…"
        raise ConfigError("checkpoint", config.checkpoint, remedy)
    store = Store.open(Path(net.data.store)).narrowed(net.data.first_classes)
    return store, store.split("val", net.data.limit)


def _check_alike(paths: Sequence[object], nets: Sequence[TrainedModel], store: Store) -> None:
    """Refuse nets that cannot be shown the same pictures."""
    first = nets[0].model
    for path, net in zip(paths, nets, strict=True):
        if net.classes != store.classes:
            remedy = f"was trained on other classes than those of {store.root}; set store=…"
            raise ConfigError("checkpoint", path, remedy)
        if len(net.mean_image) != store.size:
            remedy = f"was trained on pictures of {len(net.mean_image)} pixels, {store.root} has "
            raise ConfigError("checkpoint", path, f"{remedy}{store.size}; set store=…")
        augment = net.model.recipe.augment
        alike = (
            net.model.config.input_size == first.config.input_size
            and net.model.precision is first.precision
            and augment.mean_follows_crop == first.recipe.augment.mean_follows_crop
            and np.array_equal(net.mean_image, nets[0].mean_image)
        )
        if not alike:
            remedy = (
                f"differs from {paths[0]} in input size, precision, recipe or training pictures"
            )
            raise ConfigError("checkpoint", path, f"{remedy}; an ensemble needs them alike")
