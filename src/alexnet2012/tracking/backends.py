"""Views of a run's records, behind one interface: Weights & Biases and TensorBoard.

A view holds nothing that the run directory does not: it can be made of the files there again.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from alexnet2012.config.enums import WandbMode
from alexnet2012.config.schema import ConfigError, TrackingConfig
from alexnet2012.utils.files import replace_text

WANDB_MODE, WANDB_ID = "WANDB_MODE", "wandb_id.txt"
EVENTS = "tensorboard"  # folder of a run directory


class Backend(Protocol):
    """Takes values and pictures in the order of their steps."""

    name: str

    def values(self, step: int, values: Mapping[str, float]) -> None: ...

    def picture(self, step: int, name: str, file: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def wandb_mode(config: TrackingConfig) -> WandbMode:
    """What the environment says, else the setting; what is disabled stays so.

    Raises:
        ConfigError: the environment says what does not exist.
    """
    said = os.environ.get(WANDB_MODE)
    if config.wandb is WandbMode.disabled or not said:
        return config.wandb
    try:
        return WandbMode(said)
    except ValueError:
        remedy = f"use one of {', '.join(map(str, WandbMode))}, or unset it"
        raise ConfigError(WANDB_MODE, said, remedy) from None


def is_viewed(config: TrackingConfig) -> bool:
    """Whether anything but the files of the run directory is wanted.

    Raises:
        ConfigError: as :func:`check_backends`.
    """
    check_backends(config)
    return config.tensorboard or wandb_mode(config) is not WandbMode.disabled


def check_backends(config: TrackingConfig) -> None:
    """What can be told before a run starts.

    Raises:
        ConfigError: a mode that does not exist, or a package that is not there.
    """
    wandb_mode(config)
    if config.tensorboard and find_spec("tensorboard") is None:
        remedy = "needs a package: pip install 'alexnet2012[tensorboard]', or use tracking=wandb"
        raise ConfigError("tracking.tensorboard", "true", remedy)


def open_backends(
    config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, resumed: bool
) -> list[Backend]:
    """Those that are wanted; each is to be given all records of the run directory first.

    Raises:
        ConfigError: as :func:`check_backends`, or wandb is to send and cannot.
    """
    check_backends(config)
    found: list[Backend] = []
    if wandb_mode(config) is not WandbMode.disabled:
        found.append(Wandb(config, run_dir, settings, resumed=resumed))
    if config.tensorboard:
        found.append(TensorBoard(run_dir, resumed=resumed))
    return found


class Wandb:
    """One run of Weights & Biases, whatever number of times a run directory goes on.

    Online it is gone on with where the server stands. Offline its folder is written whole once
    more, and those before it, which hold a part of the same, are removed: of two folders with one
    id a later sync might keep either.
    """

    name = "wandb"

    def __init__(
        self, config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, resumed: bool
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # so it asks for no key, either
        give_home(run_dir / "wandb")
        import wandb  # takes a second: only where it is wanted

        mode, identity = wandb_mode(config), _wandb_id(run_dir / WANDB_ID, new=not resumed)
        online = mode is WandbMode.online
        for folder in (run_dir / "wandb").glob(f"offline-run-*-{identity}"):
            shutil.rmtree(folder, ignore_errors=True)  # first: a new one may have the same name
        try:
            self._run = wandb.init(
                project=config.project,
                mode=mode.value,
                dir=run_dir,
                id=identity,
                resume="allow" if online else None,
                name=run_dir.name,
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )
        except wandb.errors.Error as error:
            remedy = f"cannot start ({' '.join(str(error).split())}); log in, or use offline"
            raise ConfigError("tracking.wandb", mode, remedy) from error
        self._picture_of = wandb.Image
        self._first_step = self._run.starting_step if online else 0  # the server has the others

    def values(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def picture(self, step: int, name: str, file: Path) -> None:
        if step >= self._first_step:
            self._run.log({name: self._picture_of(str(file))}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TensorBoard:
    """An event file in the run directory, begun anew whenever a run goes on.

    It purges what a server has of those before. The last of them is left to a server that reads it,
    which would not find the way to the next.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # a second, and a package of its own

        folder = run_dir / EVENTS
        before = sorted(folder.glob("events.out.tfevents.*"))
        for file in before[:-1] if resumed else before:
            file.unlink(missing_ok=True)
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=30)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def picture(self, step: int, name: str, file: Path) -> None:
        with Image.open(file) as picture:
            self._writer.add_image(name, np.asarray(picture), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()


def give_home(folder: Path) -> None:
    """Name the user's home directory, or one for who has none, as in some containers.

    wandb does not do without, and a process of it looks into the environment alone.
    """
    try:
        home = Path.home()
    except RuntimeError:
        home = folder
    os.environ.setdefault("HOME", str(home))


def _wandb_id(file: Path, *, new: bool) -> str:
    """The name under which a run directory's run is known to wandb, whenever it goes on."""
    if new or not file.exists():
        replace_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")
