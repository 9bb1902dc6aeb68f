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
from safetensors import SafetensorError, safe_open
from torch import Tensor

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import config_of, to_plain
from alexnet2012.config.compose import typed_config
from alexnet2012.config.enums import Device, Precision
from alexnet2012.config.schema import ConfigError, DataConfig, ModelConfig, RecipeConfig
from alexnet2012.data.ten_crop import extract_views, view_positions
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.inference.images import stored_pixels
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.precision import allow_tf32
from alexnet2012.utils.untrusted import open_regular, parse_json, read_bytes

MEAN_IMAGE = "mean_image"  # tensor of an exported file, beside the parameters
METADATA = "alexnet2012"  # metadata key of an exported file; its value is JSON


@dataclass(frozen=True)
class TrainedModel:
    """A model in this process, with its classes and the mean image that preprocessing subtracts."""

    model: AlexNet
    classes: tuple[str, ...]
    mean_image: npt.NDArray[np.float32]  # [P, P, 3], of the training images
    data: DataConfig | None  # the training data, if known
    path: Path | None = None  # from which it was loaded

    def views(self, images: Tensor, count: int) -> Tensor:
        """Preprocessed crops of images: uint8 [N, P, P, 3] → [N, V, 3, S, S]."""
        size, device = self.model.config.input_size, self.model.mesh.device
        positions = view_positions(count, len(self.mean_image), size)
        mean = torch.from_numpy(self.mean_image).to(device)
        return extract_views(images.to(device), positions, mean, self.model.recipe.augment, size)

    def predict(self, image: Path | str, views: int = 10, count: int = 5) -> list[Prediction]:
        """The ``count`` most probable classes of an image file, best first.

        Args:
            views: 10 averages the probabilities of ten crops, as the paper does; 1 is the centre.

        Raises:
            OSError: the file cannot be read.
            ValueError: it is not an image, or is damaged.
        """
        size = len(self.mean_image)
        pixels = torch.from_numpy(stored_pixels(read_bytes(image), size))[None]
        return top_predictions(self.classes, probabilities([self], {size: pixels}, views)[0], count)


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    name: str
    probability: float
    index: int  # of the class; class names need not be unique


def load_trained(path: Path | str, device: Device = Device.auto) -> TrainedModel:
    """Load a model from a run (its newest checkpoint), a checkpoint, or an exported file.

    Raises:
        ConfigError: ``path`` is none of these, or a parameter is not finite.
    """
    path = Path(path)
    is_file = path.exists() and not path.is_dir()
    trained = (_load_exported if is_file else _load_checkpoint)(path, device)
    for name, parameter in trained.model.named_parameters():
        check_finite(parameter, name, path)
    check_finite(torch.from_numpy(trained.mean_image), "the mean image", path)
    return trained


def check_finite(values: Tensor, name: str, checkpoint: Any) -> Tensor:
    """Return ``values``, parameters or outputs of the model that was loaded from ``checkpoint``.

    Raises:
        ConfigError: some are NaN or infinite.
    """
    if not bool(values.isfinite().all()):
        remedy = f"{name} has values that are not finite (NaN or infinity); use another model"
        raise ConfigError("checkpoint", checkpoint, remedy)
    return values


def _load_checkpoint(path: Path, device: Device) -> TrainedModel:
    mesh = single_process(device)
    folder = manifest.find_valid(path, mesh)
    progress = manifest.read_progress(folder)
    classes = tuple(progress.classes)
    try:
        config = config_of(progress)
        saved = checkpoint.saved_shapes(folder)
        parameters = {n.removeprefix("model."): s for n, s in saved.items() if "model." in n}
        _check_shapes(parameters, config.recipe, len(classes), config.model)
    except ValueError as error:
        raise manifest.damaged_error(folder, error) from error
    allow_tf32(config.precision)
    model = AlexNet(
        config.recipe, len(classes), model=config.model, mesh=mesh, precision=config.precision
    )
    checkpoint.load(folder, model)
    return TrainedModel(model.eval(), classes, manifest.read_mean_image(folder), config.data, path)


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

    Raises:
        ConfigError: an output is not finite.
    """
    means = []
    for trained in models:
        crops = trained.views(images[len(trained.mean_image)], views)  # [N, V, 3, S, S]
        logits = check_finite(trained.model(crops.flatten(0, 1)), "the output", trained.path)
        means.append(F.softmax(logits.double(), dim=1).unflatten(0, crops.shape[:2]).mean(1))
    return torch.stack(means).mean(0).cpu()


def top_predictions(classes: Sequence[str], row: Tensor, count: int) -> list[Prediction]:
    """The ``count`` most probable classes of one image's probabilities [K], best first."""
    best = row.topk(min(count, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Prediction(classes[index], probability, index) for index, probability in pairs]


@torch.no_grad()
def last_hidden(trained: TrainedModel, images: Tensor) -> Tensor:
    """Last hidden activations of the centre crop: uint8 [N, P, P, 3] → [N, U].

    Raises:
        ConfigError: an activation is not finite.
    """
    activations = trained.model.features(trained.views(images, 1)[:, 0])
    return check_finite(activations, "the last hidden layer", trained.path).cpu()


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


def _check_shapes(
    saved: Mapping[str, Sequence[int]], recipe: RecipeConfig, classes: int, config: ModelConfig
) -> None:
    """ValueError unless a model has the saved shapes: built, a model can take any memory."""
    with torch.device("meta"):
        model = AlexNet(recipe, classes, model=config, mesh=Mesh(torch.device("meta")))
    for name, shape in model.full_shapes().items():
        if tuple(saved.get(name, ())) != tuple(shape):
            found = f"has shape {tuple(saved[name])}" if name in saved else "is missing"
            raise ValueError(f"{name} {found}; its settings need {tuple(shape)}")


def _load_exported(path: Path, device: Device) -> TrainedModel:
    try:
        open_regular(path).close()
        with safe_open(path, framework="pt") as file:
            metadata = parse_json((file.metadata() or {})[METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe = typed_config(RecipeConfig, metadata["recipe"])
        config = typed_config(ModelConfig, metadata["model"])
        mean_image = state.pop(MEAN_IMAGE).numpy()
        classes, precision = tuple(map(str, metadata["classes"])), Precision(metadata["precision"])
        _check_shapes({n: t.shape for n, t in state.items()}, recipe, len(classes), config)
        allow_tf32(precision)
        mesh = single_process(device)
        model = AlexNet(recipe, len(classes), model=config, mesh=mesh, precision=precision)
        model.load_full_state_dict(state)
        if mean_image.ndim != 3 or mean_image.shape != (len(mean_image), len(mean_image), 3):
            raise ValueError(f"the mean image has shape {mean_image.shape}")
    except (SafetensorError, OSError, LookupError, ValueError, TypeError, RuntimeError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"is not a safetensors file written by alexnet2012.export ({reason})"
        raise ConfigError("checkpoint", path, remedy) from error
    return TrainedModel(model.eval(), classes, mean_image, None, path)
