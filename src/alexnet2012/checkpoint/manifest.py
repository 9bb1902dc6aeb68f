"""What lies on the disk of a checkpoint: found, verified, and read but for its tensors.

``SHA256SUMS`` has a line for each of a checkpoint's files, as sha256sum prints and reads them.
Apart from checkpoint.py, so that a process that starts a run need not load torch's checkpoints.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from alexnet2012.config.compose import literal
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.distributed.mesh import Mesh, log
from alexnet2012.utils.files import checksum_lines

METADATA = "checkpoint.json"
MEAN_IMAGE = "mean_image.npy"
CHECKSUMS = "SHA256SUMS"
# Suffixes of one that is not complete.
WRITING, REMOVING = ".writing", ".removing"


@dataclass
class Progress:
    """How far a run came, and of what. ``settings`` is its whole configuration, as plain data."""

    step: int
    epoch: int  # epochs finished, each with its validation
    validation_errors: list[float] = field(default_factory=list)  # after each whole epoch
    top1_error_pct: float | None = None  # of these very weights, where it was measured
    # Loss, errors and pictures by replica: of the epoch so far, and since the last record.
    epoch_sums: list[list[float]] = field(default_factory=list)
    sums: list[list[float]] = field(default_factory=list)
    records: dict[str, int] = field(default_factory=dict)  # lines of each .jsonl file
    summary: dict[str, Any] | None = None  # of a run that has come to its end
    settings: dict[str, Any] = field(default_factory=dict)
    classes: list[str] = field(default_factory=list)
    store_fingerprint: str = ""
    code: str = ""  # the commit, and torch's version

    @classmethod
    def at_start(cls, config: TrainConfig, store: Store, code: str) -> Progress:
        return cls(
            step=0,
            epoch=0,
            settings=to_plain(config),
            classes=list(store.classes),
            store_fingerprint=store.fingerprint,
            code=code,
        )


def to_plain(config: TrainConfig | RecipeConfig | ModelConfig) -> dict[str, Any]:
    """A configuration as JSON types."""
    values: dict[str, Any] = json.loads(json.dumps(asdict(config), default=lambda e: e.value))
    return values


def without_retired(settings: Any) -> Any:
    """Saved settings less those that no longer exist; they never changed what is computed."""
    if not isinstance(settings, dict) or not isinstance(settings.get("mesh"), dict):
        return settings
    mesh = {key: value for key, value in settings["mesh"].items() if key != "hide_exchanges"}
    return settings | {"mesh": mesh}


def config_of(progress: Progress) -> TrainConfig:
    """The configuration that a checkpoint was trained with."""
    settings = literal(progress.settings)
    config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(TrainConfig), settings))
    assert isinstance(config, TrainConfig)
    return config


def verify(folder: Path, mesh: Mesh) -> None:
    """Compare the SHA-256 of every file with what was written. Collective; all say the same.

    Raises:
        ConfigError: there is no checkpoint, or a bit of it has changed.
    """

    def expected() -> str:
        if not (folder / METADATA).is_file() and not (folder / CHECKSUMS).is_file():
            raise missing_error(folder)
        return (folder / CHECKSUMS).read_bytes().decode("ascii", "replace")

    try:
        wanted = run_on_rank_0(expected, mesh)
        found = checksums(folder, mesh)
    except OSError as error:
        raise damaged_error(folder, error) from error
    if found != wanted:
        here, there = set(found.splitlines()), set(wanted.splitlines())
        name = next((line[66:] for line in (*here - there, *there - here)), "") or CHECKSUMS
        raise damaged_error(folder, ValueError(f"{name} has another checksum"))


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The checkpoints of a run directory, the last one first; one that was cut off is none."""
    folders = [f for f in (run_dir / "checkpoints").glob("step-*") if f.name[5:].isdigit()]
    return sorted(folders, key=checkpoint_step, reverse=True)


def checkpoint_step(folder: Path) -> int:
    return int(folder.name[5:])


def latest(run_dir: Path) -> Path | None:
    """The last checkpoint of a run directory, good or not."""
    return next(iter(list_checkpoints(run_dir)), None)


def find_valid(path: Path, mesh: Mesh) -> Path:
    """A checkpoint whose files are as they were written, or the last such of a run. Collective.

    Raises:
        ConfigError: there is none.
    """
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
    raise ConfigError("checkpoint", path, "has none that is not damaged; take another directory")


def remove(folder: Path) -> None:
    """At once for whoever looks for it; a process that ends meanwhile leaves no half of it."""
    shutil.rmtree(folder.replace(folder.with_name(folder.name + REMOVING)), ignore_errors=True)


def remove_incomplete(run_dir: Path) -> None:
    """What a process that was killed had begun to write, or to remove."""
    for folder in (run_dir / "checkpoints").glob("step-*"):
        if folder.suffix in (WRITING, REMOVING):
            shutil.rmtree(folder, ignore_errors=True)


def read_progress(folder: Path) -> Progress:
    """What a checkpoint holds, without its tensors.

    Raises:
        ConfigError: there is no checkpoint, or not all of it.
    """
    file = folder / METADATA
    if not file.is_file():
        raise missing_error(folder)
    try:
        progress = Progress(**json.loads(file.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError) as error:
        raise damaged_error(folder, error) from error
    progress.settings = without_retired(progress.settings)
    return progress


def read_mean_image(folder: Path) -> npt.NDArray[np.float32]:
    """The mean image [P, P, 3] of the pictures that a net was trained on."""
    try:
        mean_image: npt.NDArray[np.float32] = np.load(folder / MEAN_IMAGE, allow_pickle=False)
    except (OSError, EOFError, ValueError) as error:
        raise damaged_error(folder, error) from error
    return mean_image


def checksums(folder: Path, mesh: Mesh) -> str:
    """What ``SHA256SUMS`` should hold; the ranks share the reading. Collective."""

    def names() -> list[str]:
        files = (path.name for path in folder.iterdir() if path.name != CHECKSUMS)
        return sorted(name for name in files if not name.startswith("."))  # a desktop's, or NFS's

    every = run_on_rank_0(names, mesh)
    own = every[mesh.rank :: mesh.world_size]
    return sorted_lines(gather_results(lambda: checksum_lines(folder, own), mesh))


def sorted_lines(parts: Sequence[list[str]]) -> str:
    """Lines of checksums by file name."""
    return "".join(sorted((line for part in parts for line in part), key=lambda line: line[66:]))


def missing_error(folder: Path) -> ConfigError:
    remedy = f"is no checkpoint (no {METADATA}); name a folder such as RUN/checkpoints/step-0001000"
    return ConfigError("checkpoint", folder, remedy)


def damaged_error(folder: Path, error: BaseException) -> ConfigError:
    return ConfigError(
        "checkpoint", folder, f"is damaged ({first_line(error)}); use an earlier one"
    )


def first_line(error: BaseException) -> str:
    """The first line of what went wrong."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    first_line = str(error).strip().splitlines()[:1]
    return first_line[0] if first_line else type(error).__name__
