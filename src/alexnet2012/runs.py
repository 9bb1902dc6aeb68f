"""Run directories: what a new run finds there, and whether it may go on from it."""

from __future__ import annotations

from pathlib import Path

import torch
from omegaconf import OmegaConf

from alexnet2012 import checkpoint
from alexnet2012.choices import Decoder, Device
from alexnet2012.config import ConfigError, TrainConfig
from alexnet2012.data.store import Store


def check_start(config: TrainConfig, run_dir: Path) -> None:
    """What can be told before a single picture is prepared.

    Raises:
        ConfigError: the run directory is taken, a checkpoint to start from is none, or pictures
            cannot be decoded where the configuration wants it.
    """
    if config.resume is None and (run_dir / "metrics.jsonl").exists():
        remedy = "holds a run already; set resume=auto to go on with it, or another directory"
        raise ConfigError("hydra.run.dir", run_dir, remedy)
    if config.resume not in (None, "auto"):
        checkpoint.read_progress(Path(str(config.resume)))
    if config.init_from is not None:
        path = Path(config.init_from)
        checkpoint.read_progress(checkpoint.newest(path) or path)
    there = config.mesh.device is not Device.cpu and torch.cuda.is_available()
    if config.data.decoder is Decoder.gpu and not there:
        raise ConfigError("data.decoder", "gpu", "pictures go to the cpu here; use auto or cpu")


def check_run(config: TrainConfig, run_dir: Path) -> tuple[Store, Path | None]:
    """The store of a run, and the checkpoint that it goes on from, if any.

    Raises:
        ConfigError: they do not go with the configuration, or the run directory is another run's.
    """
    check_start(config, run_dir)
    assert config.data.store is not None
    store = Store.open(Path(config.data.store)).narrowed(config.data.first_classes)
    if store.size != config.data.store_size:
        remedy = f"holds pictures of {store.size} pixels; set data.store_size alike"
        raise ConfigError("data.store", config.data.store, remedy)
    newest = checkpoint.newest(run_dir)
    if config.resume is None:
        return store, None
    folder = newest if config.resume == "auto" else Path(config.resume)
    if folder is None:
        return store, None
    found = checkpoint.read_progress(folder)
    checkpoint.check_fits(folder, found, config)
    if found.store_fingerprint != store.fingerprint:
        remedy = f"was trained on another store than data.store={config.data.store}"
        raise ConfigError("resume", folder, f"{remedy}; use that one, or start a new run")
    if newest is not None and checkpoint.read_progress(newest).step > found.step:
        remedy = f"{newest} is later; set resume=auto, or another hydra.run.dir"
        raise ConfigError("resume", folder, remedy)
    return store, folder


def is_finished(config: TrainConfig, run_dir: Path) -> bool:
    """Whether a run of the same settings has come to its end there."""
    if not (run_dir / "summary.json").is_file():
        return False
    settings = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
    return checkpoint.settings_of(settings) == checkpoint.settings_of(checkpoint.plain(config))
