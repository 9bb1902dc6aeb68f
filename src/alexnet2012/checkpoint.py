"""Checkpoints that any mesh can load, whatever mesh saved them.

Each process holds rows of a full tensor; wrapped as a DTensor at save time, they are written by
torch.distributed.checkpoint under the full tensor's name and shape.
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed.checkpoint as dcp
from omegaconf import OmegaConf
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.tensor import DTensor, Shard

from alexnet2012.checkpoint_files import CheckpointReader, CheckpointWriter
from alexnet2012.checks import literal
from alexnet2012.config import ConfigError, ModelConfig, RecipeConfig, TrainConfig
from alexnet2012.model import AlexNet
from alexnet2012.optimizer import PaperSGD

METADATA = "checkpoint.json"
MEAN_IMAGE = "mean_image.npy"
WRITING = ".writing"  # suffix of one that is not complete


@dataclass
class Progress:
    """How far a run came, and of what. ``settings`` is its whole configuration, as plain data."""

    step: int
    epoch: int  # epochs finished
    validation_errors: list[float] = field(default_factory=list)  # after each whole epoch
    # Loss, errors and pictures of an epoch that max_steps cut short.
    epoch_sums: list[float] = field(default_factory=lambda: [0.0, 0.0, 0.0])
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    store_fingerprint: str = ""


def plain(config: TrainConfig | RecipeConfig | ModelConfig) -> dict[str, Any]:
    """A configuration as JSON types."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=lambda e: e.value))
    return values


def config_of(progress: Progress) -> TrainConfig:
    """The configuration that a checkpoint was trained with."""
    settings = literal(progress.settings)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), settings))
    assert isinstance(config, TrainConfig)
    return config


def save(
    folder: Path,
    model: AlexNet,
    optimizer: PaperSGD | None,
    progress: Progress,
    mean_image: npt.NDArray[np.float32],
) -> None:
    """Write a checkpoint under a temporary name, then rename it. Collective.

    The mean image [P, P, 3] that the net was trained with goes along: it belongs to the net, not
    to the pictures that it may be shown later.
    """
    writing = folder.with_name(folder.name + WRITING)
    if model.mesh.rank == 0:
        shutil.rmtree(writing, ignore_errors=True)
        writing.mkdir(parents=True)
    model.mesh.barrier()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecations
        dcp.save(
            _state(model, optimizer),
            storage_writer=CheckpointWriter(writing),
            no_dist=model.mesh.world_size == 1,
        )
    if model.mesh.rank == 0:
        text = json.dumps(asdict(progress), indent=1, sort_keys=True)
        (writing / METADATA).write_text(text, encoding="utf-8")
        np.save(writing / MEAN_IMAGE, mean_image)
        shutil.rmtree(folder, ignore_errors=True)
        writing.replace(folder)
    model.mesh.barrier()


def load(folder: Path, model: AlexNet, optimizer: PaperSGD | None = None) -> Progress:
    """Fill a model, and an optimizer where one is given. Collective."""
    progress = read_progress(folder)
    state = _state(model, optimizer)
    _load(state, folder, model)
    if optimizer is not None:
        model.load_random_state(
            {
                key.removeprefix("random."): t
                for key, t in state.items()
                if key.startswith("random.")
            }
        )
    return progress


def take_over(path: Path, model: AlexNet, names: Sequence[str]) -> None:
    """Start layers of a model from those of a checkpoint, or of a run's newest. Collective.

    ``names`` are the layers; without any it is all but the last, whose classes may be others.

    Raises:
        ConfigError: there is no checkpoint, or it has no such layers, or of other shapes.
    """
    folder = newest(path) or path
    read_progress(folder)
    saved = _saved_shapes(folder)
    chosen = list(names) or [name for name in model.layers() if name != "fc8"]
    if unknown := [name for name in chosen if name not in model.layers()]:
        remedy = f"is no layer of this net; use some of {', '.join(model.layers())}"
        raise ConfigError("init_layers", unknown[0], remedy)
    for name, shape in model.full_shapes().items():
        there = saved.get(f"model.{name}")
        if name.split(".")[0] in chosen and there != shape:
            has = "none" if there is None else str(tuple(there))
            remedy = (
                f"{name} is {has} there, {tuple(shape)} here; leave its layer out of init_layers"
            )
            raise ConfigError("init_from", folder, remedy)
    state = {k: v for k, v in _state(model, None).items() if k.split(".")[1] in chosen}
    _load(state, folder, model)


def read_progress(folder: Path) -> Progress:
    """What a checkpoint holds, without its tensors.

    Raises:
        ConfigError: there is no checkpoint, or not all of it.
    """
    file = folder / METADATA
    if not file.is_file():
        remedy = (
            f"is no checkpoint (no {METADATA}); name a folder such as RUN/checkpoints/step-0001000"
        )
        raise ConfigError("checkpoint", folder, remedy)
    try:
        return Progress(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise _damaged(folder, error) from error


def read_mean_image(folder: Path) -> npt.NDArray[np.float32]:
    """The mean image [P, P, 3] of the pictures that a net was trained on."""
    try:
        mean_image: npt.NDArray[np.float32] = np.load(folder / MEAN_IMAGE, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise _damaged(folder, error) from error
    return mean_image


def newest(run_dir: Path) -> Path | None:
    """The last checkpoint of a run directory; one whose writing was cut off is none."""
    folders = [
        folder
        for folder in (run_dir / "checkpoints").glob("step-*")
        if (folder / METADATA).is_file() and folder.suffix != WRITING
    ]
    return max(folders, key=lambda f: read_progress(f).step, default=None)


def check_fits(folder: Path, progress: Progress, config: TrainConfig) -> None:
    """Refuse to go on from a checkpoint of another net, optimizer or data order.

    Raises:
        ConfigError: names the first setting that differs.
    """
    here, there = _flat(plain(config)), settings_of(progress.settings)
    if here["recipe.name"] != there.get("recipe.name"):
        remedy = f"was saved with recipe={there.get('recipe.name')}"
        remedy += f", this run has recipe={here['recipe.name']}; use the same"
        raise ConfigError("resume", folder, remedy)
    parts = (
        *("recipe.", "model.", "schedule.", "precision", "seed", "init_from", "init_layers"),
        *("data.batch_size", "data.limit", "data.first_classes"),
    )
    for key in sorted(set(here) | set(there)):
        if not key.startswith(parts) or key == "schedule.epochs":
            continue
        if here.get(key) != there.get(key):
            remedy = f"was saved with {key}={there.get(key)}, this run has {key}={here.get(key)}"
            raise ConfigError("resume", folder, f"{remedy}; set {key} alike, or start a new run")


def _load(state: dict[str, Tensor], folder: Path, model: AlexNet) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dcp.load(
                state,
                storage_reader=CheckpointReader(folder),
                no_dist=model.mesh.world_size == 1,
            )
        except (CheckpointException, OSError, ValueError, RuntimeError) as error:
            raise _damaged(folder, error) from error


def _saved_shapes(folder: Path) -> dict[str, torch.Size]:
    try:
        found = CheckpointReader(folder).read_metadata().state_dict_metadata
    except (OSError, ValueError, EOFError) as error:
        raise _damaged(folder, error) from error
    return {
        key: entry.size for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)
    }


def _damaged(folder: Path, error: BaseException) -> ConfigError:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]  # of the first rank that failed
    first_line = str(error).strip().splitlines()[:1]
    what = first_line[0] if first_line else type(error).__name__
    return ConfigError("checkpoint", folder, f"is damaged ({what}); use an earlier one")


def settings_of(saved: Any) -> dict[str, Any]:
    """Saved settings by their full keys; one that is newer than they are has its default."""
    return _flat(plain(TrainConfig())) | _flat(saved)


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if not isinstance(value, dict):
        return {prefix: value}
    flat: dict[str, Any] = {}
    for key, inner in value.items():
        flat.update(_flat(inner, f"{prefix}.{key}" if prefix else key))
    return flat


def _state(model: AlexNet, optimizer: PaperSGD | None) -> dict[str, Tensor]:
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = _sharded(model, name, parameter.detach())
        if optimizer is not None:
            velocity = optimizer.velocity(parameter)
            state[f"velocity.{name}"] = _sharded(model, name, velocity)
    if optimizer is not None:
        state.update({f"random.{k}": v.cpu() for k, v in model.random_state().items()})
    return state


def _sharded(model: AlexNet, name: str, local: Tensor) -> Tensor:
    """The own rows as part of the full tensor; shares memory with ``local``."""
    if model.mesh.device_mesh is None or model.mesh.towers == 1:
        return local
    shape = model.full_shapes()[name]
    stride = torch.empty(shape, device="meta").stride()
    tower_mesh = model.mesh.device_mesh["tower"]
    return DTensor.from_local(
        local, tower_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )
