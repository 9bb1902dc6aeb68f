"""The checkpoints of a run: written while training goes on, the last few and the best kept."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path

import torch.distributed as dist

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.schema import CheckpointConfig, ConfigError
from alexnet2012.distributed.mesh import Mesh


class CheckpointManager:
    """Writes a run's snapshots on a thread; only the copy of the state keeps training waiting.

    The thread's collectives have a group of their own (gloo), so they never meet the training's.
    """

    def __init__(self, config: CheckpointConfig, run_dir: Path, mesh: Mesh, step: int) -> None:
        self._config, self._mesh = config, mesh
        self._folder = run_dir / "checkpoints"
        self._group = dist.new_group(backend="gloo") if mesh.world_size > 1 else None
        self._writing: Future[None] | None = None
        self._asked_s = time.monotonic()
        self.last_step = step  # the last that is saved, or on its way

    def due_by_step(self, step: int) -> bool:
        every = self._config.every_steps
        return every is not None and step % every == 0

    def due_by_clock(self) -> bool:
        """Once each time, by this rank's clock: ask rank 0 only."""
        every, now = self._config.every_minutes, time.monotonic()
        busy = self._writing is not None and not self._writing.done()
        if every is None or busy or now - self._asked_s < 60 * every:
            return False
        self._asked_s = now
        return True

    @property
    def failed(self) -> bool:
        """Whether :meth:`wait` would raise."""
        writing = self._writing
        return writing is not None and writing.done() and writing.exception() is not None

    def save(self, snapshot: TrainingState) -> None:
        """Start to write a snapshot; the one before must be written. Collective."""
        folder = self._folder / f"step-{snapshot.progress.step:07d}"
        self._writing = _in_background(lambda: self._write(folder, snapshot))
        self.last_step, self._asked_s = snapshot.progress.step, time.monotonic()

    def wait(self) -> None:
        """Until what was started is written.

        Raises:
            RunError: it could not be, on every rank.
        """
        if self._writing is not None:
            self._writing.result()

    def _write(self, folder: Path, snapshot: TrainingState) -> None:
        checkpoint.save(folder, snapshot, self._mesh, self._group)
        if self._mesh.rank == 0:
            self._prune()

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


def _best(folders: list[Path]) -> list[Path]:
    """The one of the lowest validation error, the first of several; none without any error."""
    errors = {}
    for folder in reversed(folders):
        try:
            error = manifest.read_progress(folder).top1_error_pct
        except ConfigError:  # damaged: it has its turn when it is to be loaded
            continue
        if error is not None:
            errors[folder] = error
    return [min(errors, key=errors.__getitem__)] if errors else []


def _in_background(work: Callable[[], None]) -> Future[None]:
    """On a daemon thread: a process that has to leave does not wait for a peer that is gone."""
    future: Future[None] = Future()

    def run() -> None:
        try:
            work()
        except BaseException as error:
            future.set_exception(error)
        else:
            future.set_result(None)

    threading.Thread(target=run, name="checkpoint", daemon=True).start()
    return future
