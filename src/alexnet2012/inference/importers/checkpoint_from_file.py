"""Write a checkpoint from a model file of Caffe or torchvision."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint.manifest import Progress, to_plain
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.compose import compose_config
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.importers.caffe import read_caffemodel, read_mean_image
from alexnet2012.inference.importers.file_kinds import FileKind, file_kind
from alexnet2012.inference.importers.recipe_from_net import IMAGENET_MEAN, ImportedModel, as_alexnet
from alexnet2012.inference.importers.torchvision import from_state_dict, read_state_dict
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.untrusted import open_regular


def import_checkpoint(config: ImportConfig, out: Path) -> AlexNet:
    """Convert ``config.source`` to a checkpoint in the folder ``out``; returns the model."""
    if out.exists():
        raise ConfigError("out", out, "already exists; remove it, or choose another folder")
    source = Path(config.source)
    for key in ("source", "mean", "classes"):
        if (given := getattr(config, key)) is not None:
            _check_regular(key, Path(given))
    try:
        if source.suffix == ".caffemodel" and file_kind(source) is FileKind.other:
            imported, name = read_caffemodel(source.read_bytes()), "caffe"
        else:
            state = read_state_dict(source, config.entry)
            imported, name = from_state_dict(state), "torchvision"
        model = as_alexnet(imported, load_recipe("paper"), name)
    except ValueError as error:
        raise ConfigError("source", source, str(error)) from error
    mean_image = _mean_image(config, imported)
    if len(mean_image) < imported.input_size:
        remedy = f"must be at least {imported.input_size}, the input size of the model"
        raise ConfigError("picture_size", len(mean_image), remedy)
    settings, _ = compose_config("train", TrainConfig, ["mesh=one_process"])
    settings.recipe, settings.model = model.recipe, model.config
    settings.data.source = settings.data.store = None
    settings.data.store_size = len(mean_image)
    progress = Progress(
        step=0, epoch=0, settings=to_plain(settings), classes=_classes(config, imported.num_classes)
    )
    checkpoint.save(out, TrainingState.of(model, None, progress, mean_image), model.mesh)
    return model


def _check_regular(key: str, path: Path) -> None:
    try:
        open_regular(path).close()
    except ValueError as error:
        raise ConfigError(key, path, str(error)) from error


def _mean_image(config: ImportConfig, imported: ImportedModel) -> npt.NDArray[np.float32]:
    """The mean image of ``config.mean``, or one filled with the model's mean colour: [P, P, 3]."""
    if config.mean is not None:
        path = Path(config.mean)
        try:
            file_kind(path)
            return read_mean_image(path.read_bytes())
        except ValueError as error:
            raise ConfigError("mean", path, str(error)) from error
    shape = (config.picture_size, config.picture_size, 3)
    return np.full(shape, imported.mean or IMAGENET_MEAN, dtype=np.float32)


def _classes(config: ImportConfig, count: int) -> list[str]:
    if config.classes is None:
        return [str(number) for number in range(count)]
    path = Path(config.classes)
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError("classes", path, "is not a text file in UTF-8") from error
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        remedy = f"lists {len(names)} classes, but the model has {count}"
        raise ConfigError("classes", path, remedy)
    return names
