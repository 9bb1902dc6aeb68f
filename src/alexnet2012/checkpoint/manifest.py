"""Checkpoints on disk: listing, verification by checksum, and everything but the tensors.

``SHA256SUMS`` has a line for each file of a checkpoint, in the format of sha256sum. Separate from
:mod:`alexnet2012.checkpoint.io`: launching a run must not import torch.distributed.checkpoint.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, get_args, get_origin, get_type_hints

import numpy as np
import numpy.typing as npt

from alexnet2012.config.compose import typed_config
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig, TrainConfig
from alexnet2012.config.validation import LIST_RUNS
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.utils.files import checksum_lines
from alexnet2012.utils.logs import log
from alexnet2012.utils.untrusted import read_array, read_bytes, read_json_object

if TYPE_CHECKING:  # launching a run does not import torch
    from alexnet2012.distributed.mesh import Mesh

Value = TypeVar("Value")
METADATA = "checkpoint.json"
MEAN_IMAGE = "mean_image.npy"
CHECKSUMS = "SHA256SUMS"
WRITING, REMOVING = ".writing", ".removing"  # suffixes of incomplete checkpoints


@dataclass
class Progress:
    """Position of a run and its metadata. ``settings`` is its configuration as JSON types."""

    step: int  # steps finished
    epoch: int  # epochs finished, including their validation
    validation_errors: list[float] = field(default_factory=list)  # top-1, %, by epoch
    train_errors: list[float] = field(default_factory=list)  # top-1, %, by epoch
    top1_error_pct: float | None = None  # of these weights, if measured
    # Sums of loss, errors and images by replica: of the epoch so far, and since the last record.
    epoch_sums: list[list[float]] = field(default_factory=list)
    sums: list[list[float]] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)  # lines by .jsonl file
    summary: dict[str, Any] | None = None  # of a finished run
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    store_fingerprint: str = ""
    code: str = ""  # commit and torch version
    machine: str = ""  # processor that computed rank 0's part; equal ones round alike
    threads: int = 0  # of each process on a CPU; 0 if unknown or on a GPU


def to_plain(config: TrainConfig | RecipeConfig | ModelConfig) -> dict[str, Any]:
    """A configuration as JSON types."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=lambda e: e.value))
    return values


def without_retired(settings: Any) -> Any:
    """Drop saved settings that no longer exist and never changed results."""
    if not isinstance(settings, dict) or not isinstance(settings.get("mesh"), dict):
        return settings
    mesh = {key: value for key, value in settings["mesh"].items() if key != "hide_exchanges"}
    return settings | {"mesh": mesh}


def config_of(progress: Progress) -> TrainConfig:
    """The training configuration of a checkpoint; ValueError if its settings are not one."""
    return typed_config(TrainConfig, progress.settings)


def verify(folder: Path, mesh: Mesh) -> None:
    """Compare the SHA-256 of every file with ``SHA256SUMS``, or raise ConfigError. Collective."""

    def expected() -> str:
        if not (folder / METADATA).is_file() and not (folder / CHECKSUMS).is_file():
            raise missing_error(folder)
        return _read(folder, CHECKSUMS, read_bytes).decode("ascii", "replace")

    expected_sums = run_on_rank_0(expected, mesh)
    actual_sums = checksums(folder, mesh)
    if actual_sums != expected_sums:
        actual, expected_lines = ({*sums.splitlines()} for sums in (actual_sums, expected_sums))
        changed = (*actual - expected_lines, *expected_lines - actual)
        name = next((line[66:] for line in changed), "") or CHECKSUMS
        raise damaged_error(folder, ValueError(f"checksum of {name} does not match"))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The complete checkpoints of a run directory, newest first."""
    folders = [f for f in (run_dir / "checkpoints").glob("step-*") if f.name[5:].isdecimal()]
    return sorted(folders, key=checkpoint_step, reverse=True)


def checkpoint_step(folder: Path) -> int:
    return int(folder.name[5:])


def latest(run_dir: Path) -> Path | None:
    """The newest checkpoint of a run directory, valid or not."""
    return next(iter(list_checkpoints(run_dir)), None)


def find_valid(path: Path, mesh: Mesh) -> Path:
    """The checkpoint at ``path``, or the newest valid one of a run directory. Collective."""
    folders = run_on_rank_0(lambda: list_checkpoints(path), mesh)
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
    raise ConfigError("checkpoint", path, "contains no valid checkpoint; use another directory")


def remove(folder: Path) -> None:
    """Remove a checkpoint; renamed first, so that no partial checkpoint is ever listed."""
    shutil.rmtree(folder.replace(folder.with_name(folder.name + REMOVING)), ignore_errors=True)


def remove_incomplete(run_dir: Path) -> None:
    """Remove checkpoints that a killed process was writing or removing."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.suffix in (WRITING, REMOVING):
            shutil.rmtree(folder, ignore_errors=True)


def read_progress(folder: Path, key: str = "checkpoint") -> Progress:
    """Read the metadata of a checkpoint; ConfigError if there is none, or it is damaged.

    ``key`` is the setting that names the folder.
    """
    file = folder / METADATA
    if not file.is_file():
        raise missing_error(folder, key)
    values = _read(folder, METADATA, read_json_object)
    for name, kind in get_type_hints(Progress).items():
        if name in values and not _is_of(values[name], kind):
            raise damaged_error(folder, ValueError(f"{name} is not {kind} in {METADATA}"))
    try:
        progress = Progress(**values)
    except TypeError as error:
        raise damaged_error(folder, error) from error
    progress.settings = without_retired(progress.settings)
    return progress


def _is_of(value: Any, kind: Any) -> bool:
    """Whether a value of a JSON file is of an annotated type."""
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return True
    if origin is list:
        return isinstance(value, list) and all(_is_of(item, inner[0]) for item in value)
    if origin is dict:
        return isinstance(value, dict) and all(_is_of(item, inner[1]) for item in value.values())
    if inner:  # a union
        return any(_is_of(value, alternative) for alternative in inner)
    if kind is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, kind) and not (kind is int and isinstance(value, bool))


def read_mean_image(folder: Path) -> npt.NDArray[np.float32]:
    """Read the training-set mean image [P, P, 3]."""
    mean_image = _read(folder, MEAN_IMAGE, read_array)
    if (
        mean_image.dtype != np.float32
        or mean_image.ndim != 3
        or mean_image.shape != (len(mean_image), len(mean_image), 3)
        or not np.isfinite(mean_image).all()
    ):
        problem = f"{MEAN_IMAGE} is not a mean image: {mean_image.dtype} {mean_image.shape}"
        raise damaged_error(folder, ValueError(problem))
    return mean_image


def _read(folder: Path, name: str, reader: Callable[[Path], Value]) -> Value:
    """A file of a checkpoint, or ConfigError."""
    try:
        return reader(folder / name)
    except (OSError, ValueError) as error:
        raise damaged_error(folder, ValueError(f"{name}: {first_line(error)}")) from error


def checksums(folder: Path, mesh: Mesh) -> str:
    """Compute the contents of ``SHA256SUMS``; each rank reads a part of the files. Collective."""

    def names() -> list[str]:
        try:
            files = [path.name for path in folder.iterdir() if path.name != CHECKSUMS]
        except OSError as error:
            raise damaged_error(folder, error) from error
        return sorted(name for name in files if not name.startswith("."))  # e.g. .nfs*

    def sums(names_of_rank: list[str]) -> list[str]:
        try:
            return checksum_lines(folder, names_of_rank)
        except (OSError, ValueError) as error:
            raise damaged_error(folder, error) from error

    names_of_rank = run_on_rank_0(names, mesh)[mesh.rank :: mesh.world_size]
    return sorted_lines(gather_results(lambda: sums(names_of_rank), mesh))


def sorted_lines(parts: Sequence[list[str]]) -> str:
    """Checksum lines sorted by file name."""
    return "".join(sorted((line for part in parts for line in part), key=lambda line: line[66:]))


def missing_error(folder: Path, key: str = "checkpoint") -> ConfigError:
    """The error for a folder that is no checkpoint and contains none."""
    if not folder.exists():
        return ConfigError(key, folder, f"does not exist; {LIST_RUNS}")
    if (folder / "config.yaml").is_file():
        remedy = "is a run without checkpoints; use another run"
        return ConfigError(key, folder, remedy)
    example = "use a run, or a directory such as RUN/checkpoints/step-0001000"
    return ConfigError(key, folder, f"contains no checkpoint ({METADATA} is missing); {example}")


def damaged_error(folder: Path, error: BaseException) -> ConfigError:
    remedy = f"is damaged ({first_line(error)}); use an earlier one"
    return ConfigError("checkpoint", folder, remedy)


def first_line(error: BaseException) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
