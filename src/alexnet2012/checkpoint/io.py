"""Saving and loading of checkpoints, across meshes of different sizes.

Tensors are saved by torch.distributed.checkpoint under the names and shapes of the full tensors, as
safetensors: nothing in a checkpoint is ever unpickled. :mod:`alexnet2012.checkpoint.manifest` has
the functions that need no tensors.
"""

from __future__ import annotations

import json
import math
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from alexnet2012.checkpoint.manifest import (
    CHECKSUMS,
    MEAN_IMAGE,
    METADATA,
    WRITING,
    Progress,
    damaged_error,
    first_line,
    read_progress,
    remove,
    sorted_lines,
)
from alexnet2012.checkpoint.safetensors_writer import TensorWriter
from alexnet2012.checkpoint.state import TrainingState, tensors_of
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.utils.files import array_bytes, checksum_lines, sync_folder, synced
from alexnet2012.utils.untrusted import open_regular

# At import: warnings.catch_warnings would change the filters of other threads, too.
warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")


def save(
    folder: Path, snapshot: TrainingState, mesh: Mesh, group: dist.ProcessGroup | None = None
) -> None:
    """Write a checkpoint under a temporary name, then rename it. Collective in ``group``.

    Raises:
        RunError: on every rank: the checkpoint cannot be written, or a tensor is not finite. No
            part of it remains, and earlier checkpoints are intact.
    """
    writing = folder.with_name(folder.name + WRITING)
    for name in gather_results(snapshot.not_finite, mesh, group):
        if name is not None:
            message = f"{name} is not finite; no checkpoint is saved"
            raise RunError(f"step {snapshot.progress.step}: {message}")
    try:
        run_on_rank_0(lambda: _begin(writing, snapshot), mesh, group)
        writer = TensorWriter(writing)
        no_dist = mesh.world_size == 1
        dcp.save(snapshot.state, storage_writer=writer, process_group=group, no_dist=no_dist)
        sums = gather_results(lambda: writer.sums, mesh, group)
        run_on_rank_0(lambda: _commit(writing, folder, sums), mesh, group)
    except (OSError, CheckpointException) as error:
        reason = first_line(_first_failure(error))
        run_on_rank_0(lambda: shutil.rmtree(writing, ignore_errors=True), mesh, group)
        if isinstance(_first_failure(error), FileNotFoundError):
            raise RunError(f"{folder}: its directory was removed during the run") from error
        raise RunError(
            f"{folder}: cannot be written ({reason}); earlier checkpoints are intact. "
            "Free disk space and run the same command again to resume from the last one"
        ) from error


def load(folder: Path, model: AlexNet, optimizer: PaperSGD | None = None) -> Progress:
    """Load a verified checkpoint into a model, and into an optimizer if given. Collective.

    Raises:
        ConfigError: the checkpoint is damaged, or its dropout streams are of incompatible code.
    """
    progress = read_progress(folder)
    state = tensors_of(model, optimizer)
    streams = {key: tensor for key, tensor in state.items() if key.startswith("random.")}
    saved = saved_shapes(folder) if streams else {}
    if any(saved.get(key, tensor.shape) != tensor.shape for key, tensor in streams.items()):
        remedy = "has dropout random states from incompatible code; resume with that code"
        raise ConfigError("checkpoint", folder, f"{remedy} ({progress.code}), or use init_from")
    _load(state, folder, model)
    if streams:
        model.load_random_state({k.removeprefix("random."): t for k, t in streams.items()})
    return progress


def load_pretrained(folder: Path, model: AlexNet, names: Sequence[str]) -> None:
    """Initialize layers of a model from a verified checkpoint. Collective.

    ``names`` are the layers; if empty, all but the last, whose classes may differ.

    Raises:
        ConfigError: the checkpoint lacks a layer, or its shape differs.
    """
    saved = saved_shapes(folder)
    chosen = list(names) or [name for name in model.layers() if name != "fc8"]
    if unknown := [name for name in chosen if name not in model.layers()]:
        remedy = f"no such layer; use any of {', '.join(model.layers())}"
        raise ConfigError("init_layers", unknown[0], remedy)
    shapes = model.full_shapes().items()
    differing = {n: shape for n, shape in shapes if saved.get(f"model.{n}") != shape}
    unequal = {name.split(".")[0] for name in differing}
    for name, shape in differing.items():
        if name.split(".")[0] in chosen:
            saved_shape = saved.get(f"model.{name}")
            of_checkpoint = "is missing" if saved_shape is None else f"is {tuple(saved_shape)}"
            remedy = f"{name} {of_checkpoint} in the checkpoint, {tuple(shape)} in this model; "
            equal = ",".join(layer for layer in chosen if layer not in unequal)
            remedy += (
                f"set init_layers=[{equal}]"
                if equal
                else "no layer that was asked for fits; use another"
            )
            raise ConfigError("init_from", folder, remedy)
    state = {k: v for k, v in tensors_of(model, None).items() if k.split(".")[1] in chosen}
    _load(state, folder, model)


def _begin(writing: Path, snapshot: TrainingState) -> None:
    shutil.rmtree(writing, ignore_errors=True)  # left by a run that was killed
    writing.mkdir(parents=True)
    with synced(writing / METADATA) as file:
        file.write(json.dumps(asdict(snapshot.progress), indent=1, sort_keys=True).encode())
    with synced(writing / MEAN_IMAGE) as file:
        file.write(array_bytes(snapshot.mean_image))


def _commit(writing: Path, folder: Path, tensor_sums: Sequence[list[str]]) -> None:
    sums = sorted_lines([checksum_lines(writing, [METADATA, MEAN_IMAGE]), *tensor_sums])
    with synced(writing / CHECKSUMS) as file:
        file.write(sums.encode("ascii"))
    sync_folder(writing)
    if folder.exists():  # saved at this step before its validation
        remove(folder)
    writing.replace(folder)
    sync_folder(folder.parent)


def _load(state: dict[str, Tensor], folder: Path, model: AlexNet) -> None:
    _load_into(state, folder, no_dist=model.mesh.world_size == 1)


def _load_into(state: dict[str, Tensor], folder: Path, *, no_dist: bool) -> None:
    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(state, storage_reader=reader, no_dist=no_dist)
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise damaged_error(folder, _first_failure(error)) from error


def saved_shapes(folder: Path) -> dict[str, torch.Size]:
    """Shapes of a checkpoint's tensors, by name; ConfigError if its files are damaged."""
    return {name: entry.size for name, entry in _saved_entries(folder).items()}


def _saved_entries(folder: Path) -> dict[str, TensorStorageMetadata]:
    try:
        for file in folder.glob("*.safetensors"):
            open_regular(file).close()
        entries = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    except Exception as error:  # the reader trusts its files: junk raises anything
        raise damaged_error(folder, error) from error
    tensors = {}
    for name, entry in entries.items():
        if isinstance(entry, TensorStorageMetadata):
            if sum(math.prod(chunk.sizes) for chunk in entry.chunks) != math.prod(entry.size):
                raise damaged_error(folder, ValueError(f"parts of {name} are missing"))
            tensors[name] = entry
    return tensors


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """All tensors of a verified checkpoint, whole and by name; ConfigError if it is damaged."""
    state = {}
    for name, entry in _saved_entries(folder).items():
        state[name] = torch.empty(entry.size, dtype=entry.properties.dtype)
    _load_into(state, folder, no_dist=True)
    return state


def _first_failure(error: BaseException) -> BaseException:
    if isinstance(error, CheckpointException) and error.failures:
        return next(iter(error.failures.values()))[0]
    return error
