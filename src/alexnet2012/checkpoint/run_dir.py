"""Run directories: compatibility checks, initialization and the lock."""

from __future__ import annotations

import fcntl
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from omegaconf import OmegaConf

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import Progress, to_plain, without_retired
from alexnet2012.config.enums import Decoder, Precision
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, DropConfig, TrainConfig
from alexnet2012.data.store import Store, fingerprint
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.devices import uses_gpus
from alexnet2012.distributed.process_env import local_processes
from alexnet2012.tracking.backends import check_backends
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.untrusted import read_json_object, read_yaml

if TYPE_CHECKING:  # launching a run does not import torch
    from alexnet2012.distributed.mesh import Mesh

AUTO = "auto"
SUMMARY, SETTINGS, LOCK = "summary.json", "config.yaml", ".lock"
HYDRAS = (".hydra", "multirun.yaml")  # what Hydra writes into the folders of a run and a sweep
DAMAGED = ".damaged"  # suffix of a checkpoint that was skipped
LOCK_TIMEOUT_S = 5.0  # for a previous process that is exiting
_MUST_MATCH = (Role.variant, Role.identity)  # on resume


def check_start(config: TrainConfig, run_dir: Path) -> None:
    """Check all that can be checked before images are prepared."""
    check_backends(config.tracking)
    occupied = (run_dir / "metrics.jsonl").exists() or manifest.latest(run_dir) is not None
    if config.resume is None and occupied:
        remedy = "already contains a run; set resume=auto to resume it, or use another directory"
        raise ConfigError("hydra.run.dir", run_dir, remedy)
    if config.resume == AUTO and occupied:
        if (settings := _saved_settings(run_dir)) is not None:
            _check_same(settings, config, "hydra.run.dir", run_dir, "contains a run with")
        if manifest.latest(run_dir) is None and (run_dir / SUMMARY).exists():
            remedy = "contains a finished run without checkpoints; use another directory"
            raise ConfigError("hydra.run.dir", run_dir, remedy)
    if config.resume not in (None, AUTO):
        path = Path(str(config.resume))
        manifest.read_progress(manifest.latest(path) or path, "resume")
    if config.init_from is not None:
        path = Path(config.init_from)
        if (path / SETTINGS).is_file() and not (path / SUMMARY).is_file():
            remedy = "is an unfinished run; finish it first, or use one of its checkpoints"
            raise ConfigError("init_from", path, remedy)
        manifest.read_progress(manifest.latest(path) or path, "init_from")
    on_gpu = uses_gpus(config.mesh.device, local_processes(config.mesh.processes))
    if config.data.decoder is Decoder.gpu and not on_gpu:
        raise ConfigError("data.decoder", "gpu", "this run is on the CPU; use auto or cpu")
    if config.precision is Precision.tf32 and not on_gpu:
        remedy = "needs a GPU; this run is on the CPU; use fp32 or bf16"
        raise ConfigError("precision", "tf32", remedy)


def check_run(config: TrainConfig, run_dir: Path, mesh: Mesh) -> tuple[Store, Path | None]:
    """Open the store of a run and find the valid checkpoint to resume from, if any. Collective."""
    check_start(config, run_dir)
    data = config.data
    assert data.store is not None
    store = Store.open(Path(data.store)).narrowed(data.first_classes, data.skip_classes)
    store.require("train")
    if store.size != data.store_size:
        remedy = f"contains images of {store.size} pixels; set data.store_size={store.size}"
        raise ConfigError("data.store", data.store, remedy)
    store.require("train")
    newest = run_on_rank_0(lambda: manifest.latest(run_dir), mesh)
    if config.resume is None or (config.resume == AUTO and newest is None):
        return store, None
    folder = manifest.find_valid(run_dir if config.resume == AUTO else Path(config.resume), mesh)
    progress = manifest.read_progress(folder)
    check_compatible(folder, progress, config)
    if progress.store_fingerprint != store.fingerprint:
        remedy = f"was trained on a different store than data.store={config.data.store}"
        raise ConfigError("resume", folder, f"{remedy}; use that store, or start a new run")
    last_step = -1 if newest is None else manifest.checkpoint_step(newest)
    if config.resume != AUTO and last_step > progress.step:
        remedy = f"{newest} is newer; set resume=auto, or use another hydra.run.dir"
        raise ConfigError("resume", folder, remedy)
    return store, folder


def is_finished(config: TrainConfig, run_dir: Path) -> bool:
    """Whether the directory has a finished run with these settings on the current images."""
    file = run_dir / SUMMARY
    settings = _saved_settings(run_dir)
    if not file.exists() or with_defaults(settings) != with_defaults(to_plain(config)):
        return False
    store = Path(str(config.data.store))
    if not (store / "manifest.json").is_file():
        return True
    current = fingerprint(store)
    summary = _read(file, read_json_object)
    return bool(summary.get("store_fingerprint", current) == current)


def check_compatible(folder: Path, progress: Progress, config: TrainConfig) -> None:
    """Check that a checkpoint is of the same network, optimizer and data order."""
    _check_same(progress.settings, config, "resume", folder, "was saved with")


def init_run_dir(run_dir: Path, settings: dict[str, Any], resumed: Path | None) -> None:
    """Write the settings; remove incomplete checkpoints and set damaged ones aside."""
    (run_dir / SUMMARY).unlink(missing_ok=True)  # of a run of fewer epochs
    replace_text(run_dir / SETTINGS, OmegaConf.to_yaml(OmegaConf.create(settings)))
    manifest.remove_incomplete(run_dir)
    for folder in manifest.list_checkpoints(run_dir):
        if resumed is not None and folder.name > resumed.name:
            aside = folder.with_name(folder.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)


def lock_run_dir(run_dir: Path) -> IO[str]:
    """Lock the run directory for this process until the returned file is closed."""
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / LOCK).open("a")
    deadline_s = time.monotonic() + LOCK_TIMEOUT_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline_s:
                file.close()
                remedy = "is in use by another process; wait for it, or use another directory"
                raise ConfigError("hydra.run.dir", run_dir, remedy) from None
            time.sleep(0.1)
        except OSError:  # the file system does not support locks
            return file
        else:
            return file


def remove_unused(run_dir: Path) -> None:
    """Remove the directory of a run or sweep that did not begin, and folders that it alone is in.

    Of the folders around it, those below the working directory are removed. A directory that
    another process uses is kept, and so is the working directory.
    """
    with suppress(OSError):
        here, run_dir = Path.cwd(), run_dir.absolute()
        unused = {file.name for file in run_dir.iterdir()} <= {LOCK, *HYDRAS}
        if not unused or here.is_relative_to(run_dir):
            return
        with (run_dir / LOCK).open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(run_dir)
        for folder in run_dir.parents:
            if here in folder.parents:
                folder.rmdir()  # an error ends the loop: it is not empty


def _saved_settings(run_dir: Path) -> Any:
    """Settings of the last run in the directory, as JSON types; None without one."""
    file = run_dir / SETTINGS
    if not file.exists():
        return None
    settings = _read(file, read_yaml)
    if not isinstance(settings, dict):
        raise _damaged(file, ValueError("does not belong to a training run"))
    return settings


def _read(file: Path, reader: Callable[[Path], Any]) -> Any:
    try:
        return reader(file)
    except (OSError, ValueError) as error:
        raise _damaged(file, error) from error


def _damaged(file: Path, error: Exception) -> ConfigError:
    remedy = f"{file.name} is damaged ({manifest.first_line(error)}); use another directory"
    return ConfigError("hydra.run.dir", file.parent, remedy)


def _check_same(saved: Any, config: TrainConfig, key: str, path: Path, prefix: str) -> None:
    current, previous = with_defaults(to_plain(config)), with_defaults(saved)
    if current["recipe.name"] != previous.get("recipe.name"):
        remedy = f"{prefix} recipe={previous.get('recipe.name')}"
        remedy += f", this run has recipe={current['recipe.name']}; use that recipe"
        raise ConfigError(key, path, remedy)
    for name in sorted(set(current) | set(previous)):
        if role_of(TrainConfig, name) in _MUST_MATCH and current.get(name) != previous.get(name):
            remedy = f"{prefix} {name}={previous.get(name)}, this run has "
            remedy += f"{name}={current.get(name)}; use the same {name}, or start a new run"
            raise ConfigError(key, path, remedy)


def with_defaults(saved: Any) -> dict[str, Any]:
    """Saved settings by full key; settings added since then have their defaults.

    A max-pool and an activation before it commute: their order is always pool, activation.
    """
    settings = flatten(to_plain(TrainConfig())) | flatten(without_retired(saved))
    drops = settings["schedule.drops"]
    with suppress(TypeError):  # of a damaged file: they differ from any that a run can have
        drops = [asdict(DropConfig(**drop)) for drop in drops]
    for key in [key for key in settings if key.endswith(".after")]:
        with suppress(TypeError):
            names = " ".join(settings[key])
            settings[key] = names.replace("activation max_pool", "max_pool activation").split()
    return settings | {"schedule.drops": drops}


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by full key, such as ``data.limit``."""
    if not isinstance(value, dict):
        return {prefix: value}
    settings: dict[str, Any] = {}
    for key, inner in value.items():
        settings.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return settings
