"""Checkpoint manager: saves in the background, keeps the newest checkpoints and the best."""

from __future__ import annotations

import time
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.run_dir import LOCK
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.schema import CheckpointConfig, ConfigError, RunError
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.utils.threads import in_background


class CheckpointManager:
    """Saves checkpoints of a run on a thread; training waits only for the copy of the state.

    The thread has its own process group (gloo), so its collectives do not mix with training's.
    """

    def __init__(self, config: CheckpointConfig, run_dir: Path, mesh: Mesh, step: int) -> None:
        self._config, self._mesh = config, mesh
        self._run_dir, self._folder = run_dir, run_dir / "checkpoints"
        self._lock = _identity(run_dir / LOCK)
        self._group = dist.new_group(backend="gloo") if mesh.world_size > 1 else None
        self._writing: Future[None] | None = None
        self._last_due_s = time.monotonic()
        self.last_step = step  # the last one saved or being saved

    def due_by_step(self, step: int) -> bool:
        interval = self._config.every_steps
        return interval is not None and step % interval == 0

    def due_by_clock(self) -> bool:
        """True once per interval, on this rank's clock; call it on rank 0 only."""
        interval, now = self._config.every_minutes, time.monotonic()
        busy = self._writing is not None and not self._writing.done()
        if interval is None or busy or now - self._last_due_s < 60 * interval:
            return False
        self._last_due_s = now
        return True

    @property
    def failed(self) -> bool:
        """Whether :meth:`wait` would raise."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(self, snapshot: TrainingState) -> None:
        """Start saving; the previous save must have finished. Collective."""
        folder = self._folder / f"step-{snapshot.progress.step:07d}"
        self._writing = in_background(lambda: self._write(folder, snapshot), "checkpoint")
        self.last_step, self._last_due_s = snapshot.progress.step, time.monotonic()

    def wait(self) -> None:
        """Wait until the last save has finished; RunError on every rank if it failed."""
        if self._writing is not None:
            self._writing.result()

    def _write(self, folder: Path, snapshot: TrainingState) -> None:
        run_on_rank_0(self._check_run_dir, self._mesh, self._group)
        checkpoint.save(folder, snapshot, self._mesh, self._group)
        if self._mesh.rank == 0:
            self._prune()

    def _check_run_dir(self) -> None:
        """RunError if the directory was removed: a new one would have no lock and no settings."""
        if _identity(self._run_dir / LOCK) != self._lock:
            raise RunError(f"{self._run_dir}: was removed or replaced during the run")

    def _prune(self) -> None:
        keep_last = self._config.keep_last
        if keep_last is None:
            return
        folders = manifest.list_checkpoints(self._folder.parent)
        kept = folders[:keep_last]
        if self._config.keep_best:
            kept += _best(folders)
        for folder in folders:
            if folder not in kept:
                manifest.remove(folder)


def _identity(file: Path) -> tuple[int, int] | None:
    try:
        status = file.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino


def _best(folders: list[Path]) -> list[Path]:
    """The checkpoint with the lowest validation error, the first of equals; empty without any."""
    errors = {}
    for folder in reversed(folders):
        try:
            error = manifest.read_progress(folder).top1_error_pct
        except ConfigError:  # damaged; reported when it is loaded
            continue
        if error is not None:
            errors[folder] = error
    return [min(errors, key=errors.__getitem__)] if errors else []
