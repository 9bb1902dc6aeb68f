"""One training run on a mesh: the same code on every rank, output on rank 0."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from signal import Signals
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing.api import SignalException

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manager import CheckpointManager
from alexnet2012.checkpoint.manifest import Progress, to_plain
from alexnet2012.checkpoint.run_dir import SUMMARY, check_run, init_run_dir, lock_run_dir
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.schema import RunError, TrainConfig
from alexnet2012.data.build import loaders
from alexnet2012.data.loaders import Batch, content_digest
from alexnet2012.distributed.consensus import ControlFlags, FlagSync, run_on_rank_0
from alexnet2012.distributed.mesh import Mesh, log
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates, learning_rates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.tracking.reporter import Reporter
from alexnet2012.tracking.train_stats import TrainStats
from alexnet2012.training.divergence import diverged
from alexnet2012.training.evaluation import evaluate
from alexnet2012.training.meters import LossMeter, ThroughputMeter
from alexnet2012.training.signals import SignalWatcher
from alexnet2012.training.train_step import StepOutput, TrainStep
from alexnet2012.utils.environment import running_commit, versions
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.metrics import ErrorCounts


class Trainer:
    """Holds what one run needs; :meth:`run` trains to the end and returns the summary.

    Raises:
        ConfigError: the store or the checkpoint does not go with the configuration, or another
            process trains in the run directory.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, run_dir: Path) -> None:
        self.config, self.mesh, self.run_dir = config, mesh, run_dir
        self._closing = ExitStack()
        with self._closing:
            run_on_rank_0(lambda: self._closing.enter_context(lock_run_dir(run_dir)).name, mesh)
            self.store, self._resumed = check_run(config, run_dir, mesh)
            self._build()
            self._closing = self._closing.pop_all()  # all went well: not before the run has ended

    def _build(self) -> None:
        config, mesh = self.config, self.mesh
        self.model = AlexNet(
            config.recipe,
            len(self.store.classes),
            model=config.model,
            mesh=mesh,
            seed=config.seed,
            precision=config.precision,
        )
        self.optimizer = PaperSGD(self.model, config.recipe.optimizer)
        self.train_step = TrainStep(
            self.model, self.optimizer, gather_logits=config.mesh.gather_logits
        )
        self.train_loader, self.val_loader = loaders(config, self.store, mesh)
        self._commit, changed = running_commit() if mesh.rank == 0 else ("", False)
        code = f"{self._commit}{' with changes' if changed else ''}, torch {torch.__version__}"
        self.progress = Progress.at_start(config, self.store, code)
        self.sums = LossMeter()  # since the last record
        self.epoch_sums = LossMeter()
        self.throughput = ThroughputMeter()
        if self._resumed is not None:
            self._resume(self._resumed)
        elif config.init_from is not None:
            folder = manifest.find_valid(Path(config.init_from), mesh)
            checkpoint.load_pretrained(folder, self.model, config.init_layers)
            log.info("starting from the layers of %s", config.init_from)
        self._saver = CheckpointManager(config.checkpoint, self.run_dir, mesh, self.progress.step)
        self._exchange = FlagSync(mesh, config.mesh.timeout_s)
        self._interrupts = SignalWatcher()
        self._due = False  # a checkpoint, by the clock
        self._reporter = Reporter()
        shown = self.store.split("val", config.data.limit), self.store.classes
        self._watch = TrainStats(self.model, self.optimizer, mesh, *shown)

    def run(self) -> dict[str, Any]:
        """Train, validate, save; returns what summary.json holds. Collective.

        Raises:
            DivergedError: the loss became NaN or infinite.
            RunError: a checkpoint could not be written.
            SignalException: SIGTERM or SIGINT came; the state is saved.
        """
        with self._closing as stack:
            self._start(stack)
            while self.progress.summary is None:
                epoch = self.progress.epoch
                train_error_pct = self.train_epoch(epoch)
                self._finish_epoch(epoch, train_error_pct)
            self._saver.wait()
            text = json.dumps(self.progress.summary, indent=1, sort_keys=True) + "\n"
            run_on_rank_0(lambda: replace_text(self.run_dir / SUMMARY, text), self.mesh)
        return self.progress.summary

    def train_epoch(self, epoch: int) -> float:
        """Train to the end of an epoch, if it is not there yet; its training error, per cent."""
        lr = self._rates(epoch)
        first_step = self.progress.step - epoch * self.train_loader.steps_per_epoch
        last = min(self._end_of(epoch), self.total_steps)
        if first_step == 0:
            self.epoch_sums = LossMeter()
        if self.progress.step < last:
            self.model.train()
            self.optimizer.set_rates(lr)
            self.progress.top1_error_pct = None
            batches = self.train_loader.epoch(epoch, first_step=first_step, lighting=lr.lighting)
            self.throughput.start()
            for batch in batches:
                self.throughput.waited()
                self._before_step(batch)
                output = self.train_step(batch)
                self._after_step(epoch, batch, output, lr)
                if self.progress.step == last:
                    break  # what is wished now waits for the epoch's records
                self._heed_wishes()
                self.throughput.lap()
            self.throughput.lap()
            if self.progress.step % self.config.tracking.log_every_steps:
                self._record_training(epoch, lr)  # what is left of the epoch
            self._reporter.epoch(self.progress.step, epoch, self.epoch_sums.means(self.mesh))
        return self.epoch_sums.means(self.mesh)["train_error_pct"]

    def _start(self, stack: ExitStack) -> None:
        """Compare the ranks, open the records, heed signals. Collective."""
        remedy = "start every rank with the same command, code and data"
        same = {**to_plain(self.config), **versions(), "store": self.store.fingerprint}
        self.mesh.check_same("what runs", same, remedy, within_replica=False)
        self.mesh.watchdog.folder = self.run_dir
        if self.progress.summary is not None:
            log.info(
                "nothing to do: %d steps are done; raise schedule.epochs, or see evaluate",
                self.progress.step,
            )
            return
        settings = self.progress.settings
        run_on_rank_0(lambda: init_run_dir(self.run_dir, settings, self._resumed), self.mesh)
        told = self.config.tracking, self.run_dir, self.progress, self.total_steps
        self._reporter = stack.enter_context(Reporter.open(*told, self.mesh))
        self._watch.enabled = self._reporter.log_stats
        stack.enter_context(self._interrupts)

    @property
    def total_steps(self) -> int:
        steps = self.config.schedule.epochs * self.train_loader.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def _end_of(self, epoch: int) -> int:
        return (epoch + 1) * self.train_loader.steps_per_epoch

    def _rates(self, epoch: int) -> LearningRates:
        errors, batch_size = self.progress.validation_errors, self.config.data.batch_size
        return learning_rates(self.config.schedule, epoch, errors, batch_size)

    def _finish_epoch(self, epoch: int, train_error_pct: float) -> None:
        """Validate and save where it is due; after the last epoch make the summary."""
        whole = self.progress.step == self._end_of(epoch)  # not cut short by max_steps
        enough = self.config.stop_at_train_error_pct
        ended = self.progress.step >= self.total_steps
        ended |= whole and enough is not None and train_error_pct <= enough
        if ended or (epoch + whole) % self.config.eval_every_epochs == 0:
            errors = self._validate(epoch)
            self.progress.top1_error_pct = errors.top1_error_pct
            if whole:
                self.progress.validation_errors.append(errors.top1_error_pct)
        self.progress.epoch += whole
        if ended:
            self.progress.summary = self._summary(errors)
        if self._saves_after(ended=ended, whole=whole):
            self._save()

    def _before_step(self, batch: Batch) -> None:
        self.mesh.watchdog.own.record.step = self.progress.step + 1
        due = self.progress.step % self.config.data.check_every_steps == 0
        if due and self.mesh.towers > 1:
            remedy = "all towers must read the same store with the same seed and library versions"
            what = f"the batch of step {self.progress.step + 1}"
            digest = {"CRC-32": content_digest(batch.images)}
            self.mesh.check_same(what, digest, remedy, within_replica=True)

    def _after_step(self, epoch: int, batch: Batch, output: StepOutput, lr: LearningRates) -> None:
        if not math.isfinite(output.global_loss):
            with suppress(RunError):
                self._saver.wait()
            step = self.progress.step + 1
            loss = output.global_loss
            raise diverged(self.model, batch, self.run_dir, step, loss, lr.weight)
        self.progress.step += 1
        for sums in (self.sums, self.epoch_sums):
            sums.add(output.loss, output.errors, batch.rows.size)
        self.throughput.trained(batch)
        self._reporter.advance(epoch, batch.rows.total)
        if self.progress.step % self.config.tracking.log_every_steps == 0:
            self._record_training(epoch, lr)

    def _record_training(self, epoch: int, now: LearningRates) -> None:
        means = self.sums.means(self.mesh)
        self.sums = LossMeter()
        pace = self.throughput.pace(self.model.comm.traffic)
        step = self.progress.step
        self._reporter.training(step, epoch, means, now, pace, self._watch.ratios())

    def _validate(self, epoch: int) -> ErrorCounts:
        self._reporter.validating()
        batches = self._heeding(self.val_loader.batches())
        errors = evaluate([self.model], batches, self.mesh, self._watch.update)
        timings = self.throughput.timings(self.model.comm.traffic)
        step, views = self.progress.step, self.config.eval_views
        self._reporter.validation(step, epoch, views, errors, timings)
        self._reporter.images(step, self._watch.images())
        return errors

    def _heeding(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._heed_wishes(training=False)
            yield batch

    def _heed_wishes(self, *, training: bool = True) -> None:
        """Save, or save and leave, if any rank wished so a step ago. Collective."""
        wished = self._exchange(
            ControlFlags(
                signal=self._interrupts.number,
                save=self.mesh.rank == 0 and self._saver.due_by_clock(),
                failed=self._saver.failed,
            )
        )
        if wished.failed:
            self._saver.wait()
        self._due |= bool(wished.save)
        if training and (self._due or self._saver.due_by_step(self.progress.step)):
            self._save()
        if wished.signal:
            if self.config.checkpoint.wanted:
                if self._saver.last_step != self.progress.step:
                    self._save()
                self._saver.wait()
                log.info("step %d is saved: the same command goes on there", self.progress.step)
            raise SignalException("ended", Signals(wished.signal))

    def _save(self) -> None:
        self.progress.epoch_sums = self.epoch_sums.by_replica(self.mesh)
        self.progress.sums = self.sums.by_replica(self.mesh)
        self.progress.records = self._reporter.sync()
        self._due = False
        self._saver.wait()  # else two copies of the state would be under way
        mean_image = self.store.mean_image
        self._saver.save(TrainingState.of(self.model, self.optimizer, self.progress, mean_image))

    def _saves_after(self, *, ended: bool, whole: bool) -> bool:
        every = self.config.checkpoint.every_epochs
        by_epoch = every is not None and whole and self.progress.epoch % every == 0
        due = self._due or self._saver.due_by_step(self.progress.step)
        return self.config.checkpoint.wanted and (ended or by_epoch or due)

    def _resume(self, folder: Path) -> None:
        found = checkpoint.load(folder, self.model, self.optimizer)
        if self.mesh.rank == 0 and found.code != self.progress.code:
            log.warning("saved by %s, taken up by %s", found.code, self.progress.code)
        self.epoch_sums = LossMeter.restored(found.epoch_sums, self.mesh)
        self.sums = LossMeter.restored(found.sums, self.mesh)
        here = folder.resolve().parent.parent == self.run_dir.resolve()  # the records of the run
        ended = found.step >= self.total_steps or found.settings == self.progress.settings
        self.progress = replace(
            self.progress,
            step=found.step,
            epoch=found.epoch,
            validation_errors=found.validation_errors,
            top1_error_pct=found.top1_error_pct,
            records=found.records if here else {},
            summary=found.summary if ended else None,
        )
        log.info("going on from %s: epoch %d, step %d", folder, found.epoch, found.step)

    def _summary(self, errors: ErrorCounts) -> dict[str, Any]:
        return {
            **errors.summary(),
            "steps": self.progress.step,
            "epochs": self.progress.epoch,
            "world_size": self.mesh.world_size,
            "device": str(self.mesh.device),
            "commit": self._commit,
            "store_fingerprint": self.store.fingerprint,
            **self.throughput.summary(self.model.comm.traffic, self.mesh.towers),
        }
