"""Replay of a stretch of a finished run: the same steps from the same state, in a folder apart.

The order of the images, their augmentation and the dropout masks are functions of the seed and the
step, and a checkpoint holds everything else, so any stretch can be computed again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from alexnet2012.checkpoint.run_dir import init_run_dir
from alexnet2012.config.enums import Keep, WandbMode
from alexnet2012.config.schema import (
    CheckpointConfig,
    RunError,
    TrackingConfig,
    TrainConfig,
)
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.tracking.reporter import Reporter
from alexnet2012.tracking.tracker import Tracker
from alexnet2012.training.train_step import StepOutput
from alexnet2012.training.trainer import Trainer
from alexnet2012.training.worker import join_mesh, process_settings
from alexnet2012.utils.files import replace_text

OUTCOME = "replayed.json"  # machine and code of a replay, an error if any, and the evaluation


@dataclass(frozen=True)
class Target:
    """Where a replay ends: the steps and epochs that are finished there."""

    step: int
    epoch: int
    finished: bool  # the run ended there, with an evaluation and a summary
    save: bool  # the state at the end is wanted, not only the records


@dataclass(frozen=True)
class Job:
    """A stretch to replay: the configuration says from where, None as target only evaluates."""

    config: TrainConfig
    folder: Path  # gets the records, and the checkpoint at the end
    target: Target | None
    threads: int  # of each process on a CPU; 0: as in training


def replay_config(
    config: TrainConfig, store: str, start: Path | None, micro_batch: int | None = None
) -> TrainConfig:
    """The configuration that replays a run from ``start``, or from its initial weights."""
    data = replace(config.data, source=None, store=store, keep=Keep.no)
    if micro_batch is not None:
        data = replace(data, micro_batch=micro_batch)
    tracking = TrackingConfig(
        wandb=WandbMode.disabled, log_every_steps=config.tracking.log_every_steps
    )
    never = CheckpointConfig(every_epochs=None, every_steps=None, every_minutes=None)
    return replace(
        config,
        data=data,
        tracking=tracking,
        checkpoint=never,
        profile=None,
        resume=None if start is None else str(start),
    )


def worker(jobs: Sequence[Job]) -> None:
    """Replay each stretch, on one process of those that the run had."""
    with join_mesh(jobs[0].config) as mesh:
        for job in jobs:
            with process_settings(job.config, mesh):
                if job.threads and mesh.device.type == "cpu":
                    torch.set_num_threads(job.threads)
                _replay(job, mesh)


def _replay(job: Job, mesh: Mesh) -> None:
    """Write the outcome; a stretch that cannot be replayed does not keep others from it."""
    outcome: dict[str, Any] = {}
    try:
        replay = Replay(job.config, mesh, job.folder)
        outcome |= {"machine": replay.progress.machine, "code": replay.progress.code}
        if job.target is None:
            outcome["evaluation"] = replay.evaluate()
        else:
            replay.run_to(job.target)
    except (ValueError, RunError) as error:  # the same on every rank
        outcome["error"] = str(error)
    run_on_rank_0(lambda: replace_text(job.folder / OUTCOME, json.dumps(outcome)), mesh)


class _ReachedError(Exception):
    """The target is within an epoch."""


class Replay(Trainer):
    """A trainer that stops where it is told, and records nothing but ``metrics.jsonl``."""

    _target: Target

    def run_to(self, target: Target) -> None:
        """Train to the target, and save the state there if it is wanted. Collective."""
        self._target = target
        progress = self.progress = replace(self.progress, summary=None)
        with self._closing as stack:
            self._start(stack)
            with suppress(_ReachedError):
                while progress.summary is None and not self._is_reached(target):
                    epoch = progress.epoch
                    error_pct = self.train_epoch(epoch)
                    if self._is_reached(target):
                        break  # the run was saved here before it validated
                    self._finish_epoch(epoch, error_pct)
            if target.save:
                self._save()
                self._checkpoints.wait()

    def _is_reached(self, target: Target) -> bool:
        steps, epochs = self.progress.step, self.progress.epoch
        return (steps, epochs) == (target.step, target.epoch) and not target.finished

    def evaluate(self) -> dict[str, Any]:
        """What the summary says about the errors of these weights. Collective."""
        with self._closing:
            errors, of_images = self._evaluate(self.val_loader)
            return {**errors.summary(), **self._finish_evaluation(of_images)}

    def _start(self, stack: ExitStack) -> None:
        settings = self.progress.settings
        run_on_rank_0(lambda: init_run_dir(self.run_dir, settings, None), self.mesh)
        if self.mesh.rank == 0:
            tracker = Tracker(self.config.tracking, self.run_dir, settings)
            self._reporter = Reporter(stack.enter_context(tracker))

    def _after_step(self, epoch: int, batch: Batch, output: StepOutput, lr: LearningRates) -> None:
        super()._after_step(epoch, batch, output, lr)
        ends = self._end_step(epoch), self.total_steps
        if self.progress.step == self._target.step and self.progress.step not in ends:
            raise _ReachedError
