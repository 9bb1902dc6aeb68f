"""Loggers behind one interface: Weights & Biases and TensorBoard.

A logger holds nothing that the run directory does not: it can be rebuilt from the files.
"""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Mapping
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from alexnet2012.config.enums import WandbMode
from alexnet2012.config.schema import ConfigError, TrackingConfig
from alexnet2012.utils.files import replace_text

WANDB_MODE, WANDB_ID = "WANDB_MODE", "wandb_id.txt"
FORMER_MODES = {"dryrun": WandbMode.offline, "run": WandbMode.online}  # wandb accepts them, too


class Backend(Protocol):
    """A logger; it receives values and images in the order of their steps."""

    name: str

    def values(self, step: int, values: Mapping[str, float]) -> None: ...

    def image(self, step: int, name: str, file: Path) -> None: ...

    def close(self, *, failed: bool) -> None: ...


def wandb_mode(config: TrackingConfig) -> WandbMode:
    """The mode of W&B: disabled if the setting says so, else $WANDB_MODE, else the setting."""
    mode = os.environ.get(WANDB_MODE)
    if config.wandb is WandbMode.disabled or not mode:
        return config.wandb
    try:
        return FORMER_MODES.get(mode) or WandbMode(mode)
    except ValueError:
        remedy = f"use one of {', '.join(map(str, WandbMode))}, or unset it"
        raise ConfigError(WANDB_MODE, mode, remedy) from None


def has_backends(config: TrackingConfig) -> bool:
    """Whether any logger is on, besides the files of the run directory."""
    return config.tensorboard or wandb_mode(config) is not WandbMode.disabled


def check_backends(config: TrackingConfig) -> None:
    """Check the loggers before a run starts: $WANDB_MODE, and that packages are installed."""
    wandb_mode(config)
    if config.tensorboard and find_spec("tensorboard") is None:
        remedy = "needs an extra package: pip install 'alexnet2012[tensorboard]'"
        raise ConfigError("tracking.tensorboard", "true", f"{remedy}, or use tracking=wandb")


def open_backends(
    config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, resumed: bool
) -> list[Backend]:
    """Open the loggers that are on; ConfigError as of check_backends, or if wandb cannot start."""
    check_backends(config)
    backends: list[Backend] = []
    if wandb_mode(config) is not WandbMode.disabled:
        backends.append(Wandb(config, run_dir, settings, resumed=resumed))
    if config.tensorboard:
        backends.append(TensorBoard(run_dir, resumed=resumed))
    return backends


class Wandb:
    """One run of Weights & Biases per run directory, however often it is resumed.

    Online, a resumed run continues at the server's last step. Offline, a new folder replaces the
    earlier ones: of two with the same id, a later sync might keep either.
    """

    name = "wandb"

    def __init__(
        self, config: TrackingConfig, run_dir: Path, settings: Mapping[str, Any], *, resumed: bool
    ) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")  # also prevents the prompt for a key
        set_home(run_dir / "wandb")
        import wandb  # takes a second, so only if needed

        variables = os.environ.get
        mode, run_id = wandb_mode(config), _wandb_id(run_dir / WANDB_ID, new=not resumed)
        online = mode is WandbMode.online
        for folder in (run_dir / "wandb").glob(f"offline-run-*-{run_id}"):
            shutil.rmtree(folder, ignore_errors=True)  # first: the new one may have the same name
        try:
            self._run = wandb.init(
                project=variables("WANDB_PROJECT") or config.project,
                mode=mode.value,
                dir=run_dir,
                id=run_id,
                resume="allow" if online else None,
                # wandb itself reads its variables only once, but jobs of a sweep share a process.
                name=variables("WANDB_NAME") or run_dir.name,
                group=variables("WANDB_RUN_GROUP"),
                config=dict(settings),
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )
        except wandb.errors.Error as error:
            remedy = f"cannot start ({' '.join(str(error).split())})"
            remedy += "; log in, or use offline" if online else ""
            raise ConfigError("tracking.wandb", mode, remedy) from error
        self._to_image = wandb.Image
        self._first_step = self._run.starting_step if online else 0  # the server has earlier steps

    def values(self, step: int, values: Mapping[str, float]) -> None:
        if step >= self._first_step:
            self._run.log(dict(values), step=step)

    def image(self, step: int, name: str, file: Path) -> None:
        if step >= self._first_step:
            self._run.log({name: self._to_image(str(file))}, step=step)

    def close(self, *, failed: bool) -> None:
        self._run.finish(exit_code=int(failed))


class TensorBoard:
    """An event file in the run directory, written anew whenever a run resumes.

    A running TensorBoard drops the values of earlier files, but only moves on to the new one if the
    last earlier file, which it is reading, stays.
    """

    name = "tensorboard"

    def __init__(self, run_dir: Path, *, resumed: bool) -> None:
        from torch.utils.tensorboard import SummaryWriter  # slow, and an optional package

        folder = run_dir / "tensorboard"
        earlier = sorted(folder.glob("events.out.tfevents.*"))
        for file in earlier[:-1] if resumed else earlier:
            file.unlink(missing_ok=True)
        self._writer = SummaryWriter(str(folder), purge_step=0, flush_secs=30)

    def values(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def image(self, step: int, name: str, file: Path) -> None:
        with Image.open(file) as image:
            self._writer.add_image(name, np.asarray(image), step, dataformats="HWC")

    def close(self, *, failed: bool) -> None:
        self._writer.close()


def set_home(fallback: Path) -> None:
    """Set $HOME, which wandb reads, to ``fallback`` if the user has no home, as in containers."""
    if "HOME" not in os.environ:
        with suppress(RuntimeError):
            fallback = Path.home()
        os.environ["HOME"] = str(fallback)


def _wandb_id(file: Path, *, new: bool) -> str:
    """The id of the W&B run of a run directory, kept when the run resumes."""
    if new or not file.exists():
        replace_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")
