"""One checkpoint: written, checked and read, by any mesh whatever mesh has written it.

Written by torch.distributed.checkpoint under the full tensors' names and shapes, as safetensors:
nothing in a checkpoint is ever unpickled. ``SHA256SUMS`` has a line for each of its files, as
sha256sum prints and reads them.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import TensorStorageMetadata

from alexnet2012.agreement import agree, on_rank_0
from alexnet2012.config import ConfigError, RunError
from alexnet2012.files import checksum_lines, sync_folder, synced
from alexnet2012.mesh import Mesh, log
from alexnet2012.model import AlexNet
from alexnet2012.optimizer import PaperSGD
from alexnet2012.snapshot import Progress, Snapshot, state_of
from alexnet2012.tensor_files import TensorWriter

METADATA = "checkpoint.json"
MEAN_IMAGE = "mean_image.npy"
CHECKSUMS = "SHA256SUMS"
# Suffixes of one that is not complete.
WRITING, REMOVING = ".writing", ".removing"

# Here, as a context would change the filters of other threads, too.
warnings.filterwarnings("ignore", module=r"torch\.distributed\.checkpoint")


def save(
    folder: Path,
    snapshot: Snapshot,
    mesh: Mesh,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Write a checkpoint under a temporary name, then rename it. Collective in ``group``.

    Raises:
        RunError: on every rank alike: it cannot be written, or what it would hold is not finite.
            Nothing of it is left then, and nothing that was there before is harmed.
    """
    writing = folder.with_name(folder.name + WRITING)
    for name in agree(snapshot.not_finite, mesh, group):
        if name is not None:
            raise RunError(f"step {snapshot.progress.step}: {name} is no longer finite; not saved")
    try:
        on_rank_0(lambda: _begin(writing, snapshot), mesh, group)
        writer = TensorWriter(writing)
        dcp.save(
            snapshot.state,
            storage_writer=writer,
            process_group=group,
            no_dist=mesh.world_size == 1,
        )
        sums = agree(lambda: writer.sums, mesh, group)
        on_rank_0(lambda: _commit(writing, folder, sums), mesh, group)
    except (OSError, CheckpointException) as error:
        on_rank_0(lambda: shutil.rmtree(writing, ignore_errors=True), mesh, group)
        raise RunError(
            f"{folder}: cannot be written ({_cause(error)}); earlier checkpoints are as they were. "
            "Make room there and start the same command again: it goes on from the last one"
        ) from error


def verify(folder: Path, mesh: Mesh) -> None:
    """Compare the SHA-256 of every file with what was written. Collective; all say the same.

    Raises:
        ConfigError: there is no checkpoint, or a bit of it has changed.
    """

    def expected() -> str:
        if not (folder / METADATA).is_file() and not (folder / CHECKSUMS).is_file():
            raise _missing(folder)
        return (folder / CHECKSUMS).read_bytes().decode("ascii", "replace")

    try:
        wanted = on_rank_0(expected, mesh)
        found = _checksums(folder, mesh)
    except OSError as error:
        raise _damaged(folder, error) from error
    if found != wanted:
        here, there = set(found.splitlines()), set(wanted.splitlines())
        name = next((line[66:] for line in (*here - there, *there - here)), "") or CHECKSUMS
        raise _damaged(folder, ValueError(f"{name} has another checksum"))


def of_run(run_dir: Path) -> list[Path]:
    """The checkpoints of a run directory, the last one first; one that was cut off is none."""
    folders = [f for f in (run_dir / "checkpoints").glob("step-*") if f.name[5:].isdigit()]
    return sorted(folders, key=step_of, reverse=True)


def step_of(folder: Path) -> int:
    return int(folder.name[5:])


def newest(run_dir: Path) -> Path | None:
    """The last checkpoint of a run directory, good or not."""
    return next(iter(of_run(run_dir)), None)


def find(path: Path, mesh: Mesh) -> Path:
    """A checkpoint whose files are as they were written, or the last such of a run. Collective.

    Raises:
        ConfigError: there is none.
    """
    folders = on_rank_0(lambda: of_run(path), mesh)
    if not folders:
        verify(path, mesh)
        return path
    for folder in folders:
        try:
            verify(folder, mesh)
        except ConfigError as error:
            if mesh.rank == 0:
                log.warning("%s", error)
        else:
            return folder
    raise ConfigError("checkpoint", path, "has none that is not damaged; take another directory")


def remove(folder: Path) -> None:
    """At once for whoever looks for it; a process that ends meanwhile leaves no half of it."""
    shutil.rmtree(folder.replace(folder.with_name(folder.name + REMOVING)), ignore_errors=True)


def remove_incomplete(run_dir: Path) -> None:
    """What a process that was killed had begun to write, or to remove."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.suffix in (WRITING, REMOVING):
            shutil.rmtree(folder, ignore_errors=True)


def load(folder: Path, model: AlexNet, optimizer: PaperSGD | None = None) -> Progress:
    """Fill a model, and an optimizer where one is given, from what was verified. Collective.

    Raises:
        ConfigError: its streams are of a code that drew dropout otherwise.
    """
    progress = read_progress(folder)
    state = state_of(model, optimizer)
    streams = {key: tensor for key, tensor in state.items() if key.startswith("random.")}
    saved = _saved_shapes(folder) if streams else {}
    if any(saved.get(key, tensor.shape) != tensor.shape for key, tensor in streams.items()):
        remedy = f"drew dropout otherwise: go on with its code ({progress.code}), or use init_from"
        raise ConfigError("checkpoint", folder, remedy)
    _load(state, folder, model)
    if streams:
        model.load_random_state({k.removeprefix("random."): t for k, t in streams.items()})
    return progress


def take_over(folder: Path, model: AlexNet, names: Sequence[str]) -> None:
    """Start layers of a model from those of a verified checkpoint. Collective.

    ``names`` are the layers; without any it is all but the last, whose classes may be others.

    Raises:
        ConfigError: it has no such layers, or of other shapes.
    """
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
    state = {k: v for k, v in state_of(model, None).items() if k.split(".")[1] in chosen}
    _load(state, folder, model)


def read_progress(folder: Path) -> Progress:
    """What a checkpoint holds, without its tensors.

    Raises:
        ConfigError: there is no checkpoint, or not all of it.
    """
    file = folder / METADATA
    if not file.is_file():
        raise _missing(folder)
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


def _begin(writing: Path, snapshot: Snapshot) -> None:
    shutil.rmtree(writing, ignore_errors=True)  # of a run that was killed
    writing.mkdir(parents=True)
    with synced(writing / METADATA) as file:
        file.write(json.dumps(asdict(snapshot.progress), indent=1, sort_keys=True).encode())
    buffer = io.BytesIO()  # NumPy would not say why a file cannot be written
    np.save(buffer, snapshot.mean_image)
    with synced(writing / MEAN_IMAGE) as file:
        file.write(buffer.getvalue())


def _commit(writing: Path, folder: Path, tensor_sums: Sequence[list[str]]) -> None:
    sums = _in_order([checksum_lines(writing, [METADATA, MEAN_IMAGE]), *tensor_sums])
    with synced(writing / CHECKSUMS) as file:
        file.write(sums.encode("ascii"))
    sync_folder(writing)
    if folder.exists():  # saved at this very step before its validation
        remove(folder)
    writing.replace(folder)
    sync_folder(folder.parent)


def _checksums(folder: Path, mesh: Mesh) -> str:
    """What ``SHA256SUMS`` should hold; the ranks share the reading. Collective."""

    def names() -> list[str]:
        files = (path.name for path in folder.iterdir() if path.name != CHECKSUMS)
        return sorted(name for name in files if not name.startswith("."))  # a desktop's, or NFS's

    every = on_rank_0(names, mesh)
    own = every[mesh.rank :: mesh.world_size]
    return _in_order(agree(lambda: checksum_lines(folder, own), mesh))


def _in_order(parts: Sequence[list[str]]) -> str:
    """Lines of checksums by file name."""
    return "".join(sorted((line for part in parts for line in part), key=lambda line: line[66:]))


def _load(state: dict[str, Tensor], folder: Path, model: AlexNet) -> None:
    try:
        reader = dcp.HuggingFaceStorageReader(str(folder))
        dcp.load(state, storage_reader=reader, no_dist=model.mesh.world_size == 1)
    except (CheckpointException, OSError, ValueError, RuntimeError) as error:
        raise _damaged(folder, error) from error


def _saved_shapes(folder: Path) -> dict[str, torch.Size]:
    found = dcp.HuggingFaceStorageReader(str(folder)).read_metadata().state_dict_metadata
    return {
        key: entry.size for key, entry in found.items() if isinstance(entry, TensorStorageMetadata)
    }


def _missing(folder: Path) -> ConfigError:
    remedy = f"is no checkpoint (no {METADATA}); name a folder such as RUN/checkpoints/step-0001000"
    return ConfigError("checkpoint", folder, remedy)


def _damaged(folder: Path, error: BaseException) -> ConfigError:
    return ConfigError("checkpoint", folder, f"is damaged ({_cause(error)}); use an earlier one")


def _cause(error: BaseException) -> str:
    """The first line of what went wrong, on the first rank where it did."""
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).strip().splitlines()[:1]
    return first_line[0] if first_line else type(error).__name__
