"""Run directories: what a run finds there, and whether it may go on from it."""

from __future__ import annotations

import fcntl
import json
import shutil
import time
from pathlib import Path
from typing import IO, Any

from omegaconf import OmegaConf

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import Progress, to_plain, without_retired
from alexnet2012.config.enums import Decoder, Precision
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.data.store import Store, fingerprint
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh, uses_gpus
from alexnet2012.distributed.process_env import local_processes
from alexnet2012.tracking.backends import check_backends
from alexnet2012.utils.files import replace_text

AUTO = "auto"
SUMMARY, SETTINGS, LOCK = "summary.json", "config.yaml", ".lock"
DAMAGED = ".damaged"  # suffix of a checkpoint that was passed over
LET_GO_S = 5.0  # for a process that is being ended


def check_start(config: TrainConfig, run_dir: Path) -> None:
    """What can be told before a single picture is prepared.

    Raises:
        ConfigError: the run directory is taken, a checkpoint to start from is none, a GPU is asked
            for that is not used, or nothing can show the records.
    """
    check_backends(config.tracking)
    occupied = (run_dir / "metrics.jsonl").exists() or manifest.latest(run_dir) is not None
    if config.resume is None and occupied:
        remedy = "holds a run already; set resume=auto to go on with it, or another directory"
        raise ConfigError("hydra.run.dir", run_dir, remedy)
    if config.resume == AUTO and occupied:
        if (settings := _settings(run_dir)) is not None:
            _check_same(settings, config, "hydra.run.dir", run_dir, "holds a run with")
        if manifest.latest(run_dir) is None and (run_dir / SUMMARY).exists():
            remedy = "holds a finished run and no checkpoint to go on from; take another directory"
            raise ConfigError("hydra.run.dir", run_dir, remedy)
    if config.resume not in (None, AUTO):
        manifest.read_progress(Path(str(config.resume)))
    if config.init_from is not None:
        path = Path(config.init_from)
        if (path / SETTINGS).is_file() and not (path / SUMMARY).is_file():
            remedy = "is a run that has not ended; end it first, or name one of its checkpoints"
            raise ConfigError("init_from", path, remedy)
        manifest.read_progress(manifest.latest(path) or path)
    there = uses_gpus(config.mesh.device, local_processes(config.mesh.processes))
    if config.data.decoder is Decoder.gpu and not there:
        raise ConfigError("data.decoder", "gpu", "pictures go to the cpu here; use auto or cpu")
    if config.precision is Precision.tf32 and not there:
        raise ConfigError("precision", "tf32", "is a GPU's, and none is used; set fp32 or bf16")


def check_run(config: TrainConfig, run_dir: Path, mesh: Mesh) -> tuple[Store, Path | None]:
    """The store of a run, and the good checkpoint that it goes on from, if any. Collective.

    Raises:
        ConfigError: they do not go with the configuration, or the run directory is another run's.
    """
    check_start(config, run_dir)
    assert config.data.store is not None
    store = Store.open(Path(config.data.store)).narrowed(config.data.first_classes)
    if store.size != config.data.store_size:
        remedy = f"holds pictures of {store.size} pixels; set data.store_size alike"
        raise ConfigError("data.store", config.data.store, remedy)
    newest = run_on_rank_0(lambda: manifest.latest(run_dir), mesh)
    if config.resume is None or (config.resume == AUTO and newest is None):
        return store, None
    folder = manifest.find_valid(run_dir if config.resume == AUTO else Path(config.resume), mesh)
    found = manifest.read_progress(folder)
    check_compatible(folder, found, config)
    if found.store_fingerprint != store.fingerprint:
        remedy = f"was trained on another store than data.store={config.data.store}"
        raise ConfigError("resume", folder, f"{remedy}; use that one, or start a new run")
    if (
        config.resume != AUTO
        and newest is not None
        and manifest.checkpoint_step(newest) > found.step
    ):
        remedy = f"{newest} is later; set resume=auto, or another hydra.run.dir"
        raise ConfigError("resume", folder, remedy)
    return store, folder


def is_finished(config: TrainConfig, run_dir: Path) -> bool:
    """Whether a run of the same settings, on the pictures of now, has come to its end there."""
    file = run_dir / SUMMARY
    if not file.is_file() or with_defaults(_settings(run_dir)) != flatten(to_plain(config)):
        return False
    store = Path(str(config.data.store))
    if not (store / "manifest.json").is_file():
        return True
    now = fingerprint(store)
    return bool(json.loads(file.read_text(encoding="utf-8")).get("store_fingerprint", now) == now)


def check_compatible(folder: Path, progress: Progress, config: TrainConfig) -> None:
    """Refuse to go on from a checkpoint of another net, optimizer or data order.

    Raises:
        ConfigError: names the first setting that differs.
    """
    _check_same(progress.settings, config, "resume", folder, "was saved with")


def init_run_dir(run_dir: Path, settings: dict[str, Any], resumed: Path | None) -> None:
    """Write down whose the directory is. What is incomplete goes; what is damaged is set aside."""
    (run_dir / SUMMARY).unlink(missing_ok=True)  # of fewer epochs
    replace_text(run_dir / SETTINGS, OmegaConf.to_yaml(OmegaConf.create(settings)))
    manifest.remove_incomplete(run_dir)
    for folder in manifest.list_checkpoints(run_dir):
        if resumed is not None and folder.name > resumed.name:
            aside = folder.with_name(folder.name + DAMAGED)
            shutil.rmtree(aside, ignore_errors=True)
            folder.replace(aside)


def lock_run_dir(run_dir: Path) -> IO[str]:
    """The run directory for this process alone, until the file that is returned is closed.

    Raises:
        ConfigError: another process has it.
    """
    run_dir.mkdir(parents=True, exist_ok=True)
    file = (run_dir / LOCK).open("a")
    give_up_s = time.monotonic() + LET_GO_S
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > give_up_s:
                file.close()
                remedy = "is in use by another process; wait for it, or take another directory"
                raise ConfigError("hydra.run.dir", run_dir, remedy) from None
            time.sleep(0.1)
        except OSError:  # a file system without locks
            return file
        else:
            return file


def _settings(run_dir: Path) -> Any:
    """Of the run that was last there, as plain data."""
    file = run_dir / SETTINGS
    return OmegaConf.to_container(OmegaConf.load(file)) if file.is_file() else None


def _check_same(saved: Any, config: TrainConfig, key: str, where: Path, what: str) -> None:
    here, there = flatten(to_plain(config)), with_defaults(saved)
    if here["recipe.name"] != there.get("recipe.name"):
        remedy = f"{what} recipe={there.get('recipe.name')}"
        remedy += f", this run has recipe={here['recipe.name']}; use the same"
        raise ConfigError(key, where, remedy)
    parts = (
        *("recipe.", "model.", "schedule.", "precision", "seed", "init_from", "init_layers"),
        *("data.batch_size", "data.limit", "data.first_classes"),
    )
    for name in sorted(set(here) | set(there)):
        if not name.startswith(parts) or name == "schedule.epochs":
            continue
        if here.get(name) != there.get(name):
            remedy = f"{what} {name}={there.get(name)}, this run has {name}={here.get(name)}"
            raise ConfigError(key, where, f"{remedy}; set {name} alike, or start a new run")


def with_defaults(saved: Any) -> dict[str, Any]:
    """Saved settings by their full keys; one that is newer than they are has its default."""
    return flatten(to_plain(TrainConfig())) | flatten(without_retired(saved))


def flatten(value: Any, prefix: str = "") -> dict[str, Any]:
    """Nested settings by their full keys."""
    if not isinstance(value, dict):
        return {prefix: value}
    found: dict[str, Any] = {}
    for key, inner in value.items():
        found.update(flatten(inner, f"{prefix}.{key}" if prefix else key))
    return found
