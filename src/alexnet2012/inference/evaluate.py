"""Top-1 and top-5 errors of checkpoints on a store; several checkpoints form an ensemble."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.loaders import Batch, EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import LoaderPlacement
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.evaluation_files import ImageResults, submitted_numbers, write_files
from alexnet2012.inference.label_space import LabelSpace, label_space
from alexnet2012.inference.trained_model import TrainedModel, check_finite, load_ensemble
from alexnet2012.tracking.progress_bar import over_images
from alexnet2012.training.evaluation import evaluate
from alexnet2012.training.image_errors import ImageErrors
from alexnet2012.utils.logs import announce
from alexnet2012.utils.metrics import ErrorCounts


@dataclass(frozen=True)
class Evaluation:
    """The result of an evaluation, as a whole and by image."""

    errors: ErrorCounts
    results: ImageResults
    images_left_out: int  # without a label among the classes that are compared


def evaluate_checkpoints(config: EvaluateConfig) -> ErrorCounts:
    """Count top-1 and top-5 errors on the validation images of the store."""
    return evaluate_in_detail(config).errors


def evaluate_images(config: EvaluateConfig) -> tuple[ErrorCounts, ImageErrors]:
    """The same, and the error of each image."""
    found = evaluate_in_detail(config)
    return found.errors, found.results.errors


def evaluate_in_detail(config: EvaluateConfig, *, progress: bool = False) -> Evaluation:
    """The same with the predictions of each image; writes the files that the settings name.

    With ``progress``, standard error says what is under way.
    """
    reuse_memory()
    models = load_ensemble(config.checkpoint, config.device)
    store, split = _validation_split(config, models[0])
    _check_compatible(config, models, store)
    by_path = store.source_names("val")
    names = [by_path[path] for path in split.paths]
    space = label_space(config, models[0].classes, store.classes, split.labels, names)
    numbers = submitted_numbers(config, space.names)
    first = models[0].model
    loader = EvalLoader(
        replace(store, mean_image=models[0].mean_image),
        replace(split, labels=space.labels),
        first.recipe.augment,
        input_size=first.config.input_size,
        views=config.views,
        batch_size=max(1, config.batch_size // config.views),
        placement=LoaderPlacement(device=first.mesh.device, threads=config.decode_threads),
        only=None if len(space.images) == len(names) else space.images,
    )
    evaluated = [names[i] for i in space.images]
    results = ImageResults.empty(evaluated, space.names, ImageErrors.empty(loader))
    batches = loader.batches()
    if progress:
        views = "1 view" if config.views == 1 else f"{config.views} views"
        announce(f"evaluating {len(evaluated):,} images, {views} each")
        batches = over_images(batches, lambda batch: len(batch.labels), len(evaluated))

    def add(batch: Batch, predictions: Tensor) -> None:  # of all models
        check_finite(predictions, "the output", config.checkpoint)
        results.add(batch, predictions)

    networks = [_Columns.of(trained, space) for trained in models]
    errors = evaluate(networks, batches, first.mesh, len(space.names), add)
    write_files(config, results, numbers)
    return Evaluation(errors, results, len(names) - len(evaluated))


class _Columns(nn.Module):
    """A network whose outputs are those of some classes: [n, 3, S, S] → [n, C]."""

    def __init__(self, network: nn.Module, columns: npt.NDArray[np.int64]) -> None:
        super().__init__()
        self.network, self.columns = network, torch.from_numpy(columns)

    @classmethod
    def of(cls, trained: TrainedModel, space: LabelSpace) -> nn.Module:
        same = len(space.columns) == len(trained.classes)
        return trained.model if same else cls(trained.model, space.columns)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.network(images)
        return logits[:, self.columns.to(logits.device)]


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
        if (size := len(trained.mean_image)) != store.size:
            remedy = f"was trained on images of {size} pixels, but {store.root} has {store.size}"
            raise ConfigError("checkpoint", path, f"{remedy}; prepare a store with size={size}")
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
