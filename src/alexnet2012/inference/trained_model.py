"""A trained net, read back whole: from a run, a checkpoint, or one exported file.

Legend: N pictures, V views a picture, K classes, U hidden units, P pixels a side of a picture.
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

MEAN_IMAGE = "mean_image"  # a tensor of an exported file, beside the parameters
METADATA = "alexnet2012"  # its note: a JSON text


@dataclass(frozen=True)
class TrainedModel:
    """A net in this process, with what it needs to be shown pictures."""

    model: AlexNet
    classes: tuple[str, ...]
    mean_image: npt.NDArray[np.float32]  # [P, P, 3] of the training pictures
    data: DataConfig | None  # what it was trained on, where that is known

    def views(self, pictures: Tensor, count: int) -> Tensor:
        """uint8 [N, P, P, 3] → what the net reads of them, [N, V, 3, S, S]."""
        size = self.model.config.input_size
        device = self.model.mesh.device
        places = view_positions(count, len(self.mean_image), size)
        mean = torch.from_numpy(self.mean_image).to(device)
        augment = self.model.recipe.augment
        return extract_views(pictures.to(device), places, mean, augment, size)


@dataclass(frozen=True)
class Prediction:
    """A class and its probability."""

    name: str
    probability: float
    index: int  # of the class: two may have the same name


def load_trained(path: Path, device: Device = Device.auto) -> TrainedModel:
    """The net of a checkpoint, of the newest checkpoint of a run, or of an exported file.

    Raises:
        ConfigError: there is none.
    """
    if path.is_file():
        return _exported(path, device)
    mesh = single_process(device)
    folder = manifest.find_valid(path, mesh)
    progress = manifest.read_progress(folder)
    trained = config_of(progress)
    allow_tf32(trained.precision)
    model = AlexNet(
        trained.recipe,
        len(progress.classes),
        model=trained.model,
        mesh=mesh,
        precision=trained.precision,
    )
    checkpoint.load(folder, model)
    mean_image = manifest.read_mean_image(folder)
    return TrainedModel(model.eval(), tuple(progress.classes), mean_image, trained.data)


def load_ensemble(given: Any, device: Device = Device.auto) -> list[TrainedModel]:
    """The nets of a path, or of a list of paths, all of the same classes.

    Raises:
        ConfigError: one of them is none, or was trained on other classes than the first.
    """
    paths = given if isinstance(given, list) else [given]
    nets = [load_trained(Path(str(path)).expanduser(), device) for path in paths]
    for path, net in zip(paths, nets, strict=True):
        if net.classes != nets[0].classes:
            raise ConfigError("checkpoint", path, f"was trained on other classes than {paths[0]}")
    return nets


@torch.no_grad()
def probabilities(
    nets: Sequence[TrainedModel], pictures: Mapping[int, Tensor], views: int
) -> Tensor:
    """Averaged over views, then over nets: [N, K].

    ``pictures`` are the same ones at each size P that a net of these was trained on.
    """
    means = []
    for net in nets:
        images = net.views(pictures[len(net.mean_image)], views)  # [N, V, 3, S, S]
        logits = net.model(images.flatten(0, 1))
        means.append(F.softmax(logits.double(), dim=1).unflatten(0, images.shape[:2]).mean(1))
    return torch.stack(means).mean(0).cpu()


def top_predictions(classes: Sequence[str], row: Tensor, count: int) -> list[Prediction]:
    """The likeliest of the classes by their probabilities [K], likeliest first."""
    best = row.topk(min(count, len(classes)))
    pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
    return [Prediction(classes[index], probability, index) for index, probability in pairs]


@torch.no_grad()
def last_hidden(net: TrainedModel, pictures: Tensor) -> Tensor:
    """The last hidden activations of centre views: uint8 [N, P, P, 3] → [N, U]."""
    return net.model.features(net.views(pictures, 1)[:, 0]).cpu()


def describe(net: TrainedModel) -> str:
    """What an exported file says of its net: JSON that :func:`load_trained` reads back."""
    return json.dumps(
        {
            "recipe": to_plain(net.model.recipe),
            "model": to_plain(net.model.config),
            "precision": net.model.precision.value,
            "classes": net.classes,
            "picture_size": len(net.mean_image),
            "input": "RGB, grey levels 0-255, pictures scaled so that the short side is "
            "picture_size, the centre cut out",
        }
    )


def _exported(path: Path, device: Device) -> TrainedModel:
    try:
        with safe_open(path, framework="pt") as file:
            note = json.loads((file.metadata() or {})[METADATA])
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        recipe, config = (
            OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), literal(note[key])))
            for schema, key in ((RecipeConfig, "recipe"), (ModelConfig, "model"))
        )
        assert isinstance(recipe, RecipeConfig) and isinstance(config, ModelConfig)
        mean_image = state.pop(MEAN_IMAGE).numpy()
        classes, precision = tuple(note["classes"]), Precision(note["precision"])
        allow_tf32(precision)
        mesh = single_process(device)
        model = AlexNet(recipe, len(classes), model=config, mesh=mesh, precision=precision)
        model.load_full_state_dict(state)
        if mean_image.shape != (len(mean_image), len(mean_image), 3):
            raise ValueError(f"its mean image is {mean_image.shape}")
    except (SafetensorError, OmegaConfBaseException, KeyError, ValueError, TypeError) as error:
        what = str(error).splitlines()[0] if str(error) else type(error).__name__
        remedy = f"is no net that alexnet2012.export wrote as safetensors ({what})"
        raise ConfigError("checkpoint", path, remedy) from error
    return TrainedModel(model.eval(), classes, mean_image, None)
