"""Top-1 and top-5 errors of checkpoints on a store; several checkpoints form an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from torch import Tensor

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.loaders import Batch, EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.trained_model import TrainedModel, check_finite, load_ensemble
from alexnet2012.training.evaluation import evaluate
from alexnet2012.training.image_errors import ImageErrors
from alexnet2012.utils.metrics import ErrorCounts


def evaluate_checkpoints(config: EvaluateConfig) -> ErrorCounts:
    """Count top-1 and top-5 errors on the validation images of the store."""
    return evaluate_images(config)[0]


def evaluate_images(config: EvaluateConfig) -> tuple[ErrorCounts, ImageErrors]:
    """The same, and the error of each image."""
    reuse_memory()
    models = load_ensemble(config.checkpoint, config.device)
    store, split = _validation_split(config, models[0])
    _check_compatible(config, models, store)
    first = models[0].model
    loader = EvalLoader(
        replace(store, mean_image=models[0].mean_image),
        split,
        first.recipe.augment,
        input_size=first.config.input_size,
        views=config.views,
        batch_size=max(1, config.batch_size // config.views),
        placement=LoaderPlacement(device=first.mesh.device, threads=config.decode_threads),
    )
    of_images = ImageErrors.empty(loader)

    def add(batch: Batch, predictions: Tensor) -> None:  # of all models
        check_finite(predictions, "the output", config.checkpoint)
        of_images.add(batch, predictions)

    networks = [trained.model for trained in models]
    return evaluate(networks, loader.batches(), first.mesh, add), of_images


def _validation_split(config: EvaluateConfig, trained: TrainedModel) -> tuple[Store, Split]:
    """The validation images of ``config.store``, or else of the model's training data."""
    if config.store is not None:
        store = Store.open(Path(config.store))
        return store, store.split("val")
    data = trained.data
    if data is None or data.store is None:
        remedy = "does not record its training data; set store=…"
        raise ConfigError("checkpoint", config.checkpoint, remedy)
    store = Store.open(Path(data.store)).narrowed(data.first_classes, data.skip_classes)
    return store, store.split("val", data.limit)


def _check_compatible(config: EvaluateConfig, models: Sequence[TrainedModel], store: Store) -> None:
    """Refuse models that cannot be evaluated on the same batches."""
    paths = config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint]
    first = models[0].model
    for path, trained in zip(paths, models, strict=True):
        if trained.classes != store.classes:
            remedy = f"its classes differ from those of {store.root}; set store=…"
            raise ConfigError("checkpoint", path, remedy)
        if (size := len(trained.mean_image)) != store.size:
            remedy = f"was trained on images of {size} pixels, but {store.root} has {store.size}"
            raise ConfigError("checkpoint", path, f"{remedy}; set store=…")
        model = trained.model
        if not (
            model.config.input_size == first.config.input_size
            and model.precision is first.precision
            and model.recipe.augment.mean_follows_crop == first.recipe.augment.mean_follows_crop
            and np.array_equal(trained.mean_image, models[0].mean_image)
        ):
            remedy = (
                f"differs from {paths[0]} in input size, precision, recipe or training images; "
                "the models of an ensemble must agree in these"
            )
            raise ConfigError("checkpoint", path, remedy)
