"""Load trained models from runs, checkpoints and exported files, and predict with them.

Shapes: N images, V views per image, K classes, U hidden units, P pixels a side of a stored image,
S pixels a side of the input.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import config_of, to_plain
from alexnet2012.config.compose import literal
from alexnet2012.config.enums import Device, Precision
from alexnet2012.config.schema import ConfigError, DataConfig, ModelConfig, RecipeConfig
from alexnet2012.data.ten_crop import extract_views, view_positions
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.precision import allow_tf32

MEAN_IMAGE = "mean_image"  # tensor of an exported file, beside the parameters
METADATA = "alexnet2012"  # metadata key of an exported file; its value is JSON


@dataclass(frozen=True)
class TrainedModel:
    """A model in this process, with its classes and the mean image that preprocessing subtracts."""

    model: AlexNet
    classes: tuple[str, ...]
    mean_image: npt.NDArray[np.float32]  # [P, P, 3], of the training images
    data: DataConfig | None  # the training data, if known

    def views(self, images: Tensor, count: int) -> Tensor:
        """Preprocessed crops of images: uint8 [N, P, P, 3] → [N, V, 3, S, S]."""
        size, device = self.model.config.input_size, self.model.mesh.device
        positions = view_positions(count, len(self.mean_image), size)
        mean = torch.from_numpy(self.mean_image).to(device)
        return extract_views(images.to(device), positions, mean, self.model.recipe.augment, size)


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    name: str
    probability: float
    index: int  # of the class; class names need not be unique


def load_trained(path: Path, device: Device = Device.auto) -> TrainedModel:
    """Load a model from a run (its newest checkpoint), a checkpoint, or an exported file.

    Raises:
        ConfigError: ``path`` is none of these.
    """
    if path.is_file():
        return _load_exported(path, device)
    mesh = single_process(device)
    folder = manifest.find_valid(path, mesh)
    progress = manifest.read_progress(folder)
    config = config_of(progress)
    allow_tf32(config.precision)
    classes = tuple(progress.classes)
    model = AlexNet(
        config.recipe, len(classes), model=config.model, mesh=mesh, precision=config.precision
    )
    checkpoint.load(folder, model)
    return TrainedModel(model.eval(), classes, manifest.read_mean_image(folder), config.data)


def load_ensemble(given: Any, device: Device = Device.auto) -> list[TrainedModel]:
    """Load the model of a path, or the models of a list of paths, which must share their classes.

    Raises:
        ConfigError: a path holds no model, or its classes differ from those of the first.
    """
    paths = given if isinstance(given, list) else [given]
    models = [load_trained(Path(str(path)), device) for path in paths]
    for path, trained in zip(paths, models, strict=True):
        if trained.classes != models[0].classes:
            remedy = f"has different classes than {paths[0]}; use models with the same classes"
            raise ConfigError("checkpoint", path, remedy)
    return models


@torch.no_grad()
def probabilities(
    models: Sequence[TrainedModel], images: Mapping[int, Tensor], views: int
) -> Tensor:
    """Class probabilities averaged over views, then over models: [N, K].

    Args:
        images: the same N images, uint8 [N, P, P, 3], at every stored size P of the models.
    """
    means = []
    for trained in models:
        crops = trained.views(images[len(trained.mean_image)], views)  # [N, V, 3, S, S]
        logits = trained.model(crops.flatten(0, 1))
        means.append(F.softmax(logits.double(), dim=1).unflatten(0, crops.shape[:2]).mean(1))
    return torch.stack(means).mean(0).cpu()


def top_predictions(classes: Sequence[str], row: Tensor, count: int) -> list[Prediction]:
    """The ``count`` most probable classes of one image's probabilities [K], best first."""
    best = row.topk(min(count, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Prediction(classes[index], probability, index) for index, probability in pairs]


@torch.no_grad()
def last_hidden(trained: TrainedModel, images: Tensor) -> Tensor:
    """Last hidden activations of the centre crop: uint8 [N, P, P, 3] → [N, U]."""
    return trained.model.features(trained.views(images, 1)[:, 0]).cpu()


def export_metadata(trained: TrainedModel) -> str:
    """JSON metadata of an exported file, which :func:`load_trained` reads back."""
    return json.dumps(
        {
            "recipe": to_plain(trained.model.recipe),
            "model": to_plain(trained.model.config),
            "precision": trained.model.precision.value,
            "classes": trained.classes,
            "picture_size": len(trained.mean_image),
            "input": "RGB values 0-255; images scaled so that the short side is picture_size, "
            "then cropped at the centre",
        }
    )


def _load_exported(path: Path, device: Device) -> TrainedModel:
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {})[METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe, config = (
            OmegaConf.to_object(
                OmegaConf.merge(OmegaConf.structured(schema), literal(metadata[key]))
            )
            for schema, key in ((RecipeConfig, "recipe"), (ModelConfig, "model"))
        )
        assert isinstance(recipe, RecipeConfig) and isinstance(config, ModelConfig)
        mean_image = state.pop(MEAN_IMAGE).numpy()
        classes, precision = tuple(metadata["classes"]), Precision(metadata["precision"])
        allow_tf32(precision)
        mesh = single_process(device)
        model = AlexNet(recipe, len(classes), model=config, mesh=mesh, precision=precision)
        model.load_full_state_dict(state)
        if mean_image.shape != (len(mean_image), len(mean_image), 3):
            raise ValueError(f"the mean image has shape {mean_image.shape}")
    except (SafetensorError, OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"is not a safetensors file written by alexnet2012.export ({reason})"
        raise ConfigError("checkpoint", path, remedy) from error
    return TrainedModel(model.eval(), classes, mean_image, None)
