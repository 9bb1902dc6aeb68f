"""One training run on a mesh: the same code on every rank, output on rank 0."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manager import CheckpointManager
from alexnet2012.checkpoint.manifest import Progress, to_plain
from alexnet2012.checkpoint.run_dir import SUMMARY, check_run, init_run_dir, lock_run_dir
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.schema import RunError, TrainConfig
from alexnet2012.data.loaders import Batch, EvalLoader, content_digest, make_loaders
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.flag_sync import ControlFlags, FlagSync
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates, learning_rates, warmup_factor
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.tracking.bands import BandWatch, Classes, watch_of
from alexnet2012.tracking.reporter import Reporter
from alexnet2012.tracking.train_stats import TrainStats
from alexnet2012.training import image_errors
from alexnet2012.training.divergence import diverged
from alexnet2012.training.evaluation import evaluate
from alexnet2012.training.first_step import observe
from alexnet2012.training.image_errors import ImageErrors
from alexnet2012.training.meters import LossMeter, ThroughputMeter
from alexnet2012.training.profiler import name_loading, trace_steps
from alexnet2012.training.signals import SignalWatcher
from alexnet2012.training.train_step import StepOutput, TrainStep
from alexnet2012.training.utilisation import (
    model_flop_utilisation,
    peak_memory_bytes,
    processor_name,
    reset_peak_memory,
)
from alexnet2012.utils import native
from alexnet2012.utils.environment import running_commit, versions
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.interrupt import InterruptError
from alexnet2012.utils.logs import log
from alexnet2012.utils.metrics import ErrorCounts


class Trainer:
    """The state of one run: model, optimizer, data, meters and checkpoints."""

    def __init__(self, config: TrainConfig, mesh: Mesh, run_dir: Path) -> None:
        self.config, self.mesh, self.run_dir = config, mesh, run_dir
        self._closing = ExitStack()
        with self._closing:
            run_on_rank_0(lambda: self._closing.enter_context(lock_run_dir(run_dir)).name, mesh)
            self.store, self._resumed = check_run(config, run_dir, mesh)
            self._build()
            self._closing = self._closing.pop_all()  # no error so far: close after the run

    def _build(self) -> None:
        config, mesh = self.config, self.mesh
        reset_peak_memory(mesh.device)
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
            self.model,
            self.optimizer,
            gather_logits=config.mesh.gather_logits,
            micro_batch=config.data.micro_batch,
            cuda_graph=config.mesh.graph,
        )
        self._closing.callback(self.train_step.close)
        loaders = make_loaders(config, self.store, mesh)
        self.train_loader, self.val_loader, self._train_eval_loader = loaders
        self._commit, self._dirty = running_commit() if mesh.rank == 0 else ("", False)
        code = f"{self._commit}{' with changes' if self._dirty else ''}, torch {torch.__version__}"
        self.progress = Progress(
            step=0,
            epoch=0,
            settings=to_plain(config),
            classes=list(self.store.classes),
            store_fingerprint=self.store.fingerprint,
            code=code,
            machine=processor_name(mesh.device),
            threads=torch.get_num_threads() if mesh.device.type == "cpu" else 0,
        )
        self.sums = LossMeter()  # since the last logged step
        self.epoch_sums = LossMeter()
        self.throughput = ThroughputMeter()
        if self._resumed is not None:
            self._resume(self._resumed)
        elif config.init_from is not None:
            folder = manifest.find_valid(Path(config.init_from), mesh)
            checkpoint.load_pretrained(folder, self.model, config.init_layers)
            log.info("initialized layers from %s", config.init_from)
        step = self.progress.step
        self._checkpoints = CheckpointManager(config.checkpoint, self.run_dir, mesh, step)
        self._flag_sync = FlagSync(mesh, config.mesh.timeout_s)
        self._signals = SignalWatcher()
        self._checkpoint_requested = False  # by rank 0's clock
        self._reporter = Reporter()
        self._end_traced_step: Callable[[], None] = lambda: None
        split, classes = self.store.split("val", config.data.limit), self.store.classes
        self._train_stats = TrainStats(self.model, self.optimizer, mesh, split, classes)

    def run(self) -> dict[str, Any]:
        """Train to the end, with validation and checkpoints; returns the summary. Collective.

        Raises InterruptError, with the state saved, after SIGTERM or SIGINT.
        """
        with self._closing as stack:
            self._start(stack)
            while self.progress.summary is None:
                epoch = self.progress.epoch
                self._finish_epoch(epoch, self.train_epoch(epoch))
            self._checkpoints.wait()
            text = json.dumps(self.progress.summary, indent=1, sort_keys=True) + "\n"
            run_on_rank_0(lambda: replace_text(self.run_dir / SUMMARY, text), self.mesh)
        return self.progress.summary

    def train_epoch(self, epoch: int) -> float:
        """Train to the end of an epoch; returns its training error in percent. Collective."""
        schedule, batch_size = self.config.schedule, self.config.data.batch_size
        on_training_error = schedule.kind is ScheduleKind.train_plateau
        progress, steps_per_epoch = self.progress, self.train_loader.steps_per_epoch
        errors = progress.train_errors if on_training_error else progress.validation_errors
        epoch_lr = learning_rates(schedule, epoch, errors, batch_size)
        first_step = self.progress.step - epoch * steps_per_epoch
        last = min(self._end_step(epoch), self.total_steps)
        if first_step == 0:
            self.epoch_sums = LossMeter()
        if self.progress.step < last:
            self.model.train()
            self.progress.top1_error_pct = None
            lighting = epoch_lr.lighting
            batches = self.train_loader.epoch(epoch, first_step=first_step, lighting=lighting)
            self.throughput.start()
            for batch in name_loading(batches):
                self.throughput.waited()
                lr = epoch_lr.scaled(warmup_factor(schedule, self.progress.step, steps_per_epoch))
                self.optimizer.set_rates(lr)
                self._reporter.observe(self.progress.step, partial(self._observe, batch, lr))
                self._before_step(batch)
                output = self.train_step(batch)
                self._after_step(epoch, batch, output, lr)
                self._end_traced_step()
                if self.progress.step == last:
                    break  # validate and log before the next flag sync
                self._sync_flags()
                self.throughput.lap()
            self.throughput.lap()
            if self.progress.step % self.config.tracking.log_every_steps:
                self._log_training(epoch, lr)  # the remaining steps of the epoch
            self._reporter.epoch(self.progress.step, epoch, self.epoch_sums.means(self.mesh))
        return self.epoch_sums.means(self.mesh)["train_error_pct"]

    def _start(self, stack: ExitStack) -> None:
        """Check that ranks agree, and open the metric logs. Collective."""
        remedy = "start every rank with the same command, code and data"
        setup = {**to_plain(self.config), **versions(), "store": self.store.fingerprint}
        self.mesh.check_same("configuration or code", setup, remedy, within_replica=False)
        self.mesh.watchdog.folder = self.run_dir
        if self.progress.summary is not None:
            remedy = "raise schedule.epochs to train longer"
            log.info("this run finished at step %d; %s", self.progress.step, remedy)
            return
        settings = self.progress.settings
        run_on_rank_0(lambda: init_run_dir(self.run_dir, settings, self._resumed), self.mesh)
        arguments = self.run_dir, self.progress, self.total_steps, self.mesh
        opened = Reporter.open(self.config.tracking, *arguments, self._band_watch)
        self._reporter = stack.enter_context(opened)
        self._train_stats.enabled = self._reporter.log_stats
        trace = trace_steps(self.config.profile, self.run_dir, self.mesh)
        self._end_traced_step = stack.enter_context(trace)
        self._first_step = self.progress.step + 1

    def _band_watch(self) -> BandWatch:
        classes, per_epoch = Classes.of(self.store.classes), self.train_loader.steps_per_epoch
        return watch_of(self.config, self.progress.settings, classes, per_epoch)

    @property
    def total_steps(self) -> int:
        schedule = self.config.schedule
        steps = schedule.epochs * schedule.epochs_factor * self.train_loader.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def _end_step(self, epoch: int) -> int:
        return (epoch + 1) * self.train_loader.steps_per_epoch

    def _finish_epoch(self, epoch: int, train_error_pct: float) -> None:
        """Validate and checkpoint where due; sets the summary after the last epoch."""
        complete = self.progress.step == self._end_step(epoch)  # not cut short by max_steps
        target_pct = self.config.stop_at_train_error_pct
        finished = self.progress.step >= self.total_steps
        finished |= complete and target_pct is not None and train_error_pct <= target_pct
        if finished or (epoch + complete) % self.config.eval_every_epochs == 0:
            errors, of_images = self._validate(epoch)
            self.progress.top1_error_pct = errors.top1_error_pct
            if complete:
                self.progress.validation_errors.append(errors.top1_error_pct)
        if complete:
            self.progress.train_errors.append(train_error_pct)
        self.progress.epoch += complete
        if finished:
            timings = self.throughput.summary(self.model.comm.traffic, self.mesh.towers)
            memory = self.mesh.gather_objects(peak_memory_bytes(self.mesh.device), "peak memory")
            self.progress.summary = {
                **errors.summary(),
                **self._finish_evaluation(of_images),
                "steps": self.progress.step,
                "epochs": self.progress.epoch,
                "world_size": self.mesh.world_size,
                "device": str(self.mesh.device),
                "kernels": self._kernels(),
                "commit": self._commit,
                "dirty": self._dirty,
                "store_fingerprint": self.store.fingerprint,
                "band": run_on_rank_0(self._reporter.band, self.mesh),
                **timings,
                **model_flop_utilisation(self.model, timings["images_per_s"]),
                "peak_memory_bytes": memory,
            }
        interval = self.config.checkpoint.every_epochs
        due = interval is not None and complete and self.progress.epoch % interval == 0
        due |= self._checkpoint_requested or self._checkpoints.due_by_step(self.progress.step)
        if self.config.checkpoint.wanted and (finished or due):
            self._save()

    def _kernels(self) -> str:
        """What computes normalisation and update."""
        if self.mesh.device.type == "cpu":
            return native.description()
        return "Triton kernels" if self.model.fused else "torch"

    def _before_step(self, batch: Batch) -> None:
        self.mesh.watchdog.this_rank.record.step = self.progress.step + 1
        due = self.progress.step % self.config.data.check_every_steps == 0
        if due and self.mesh.towers > 1:
            name = f"batch of step {self.progress.step + 1}"
            digest = {"digest": content_digest(batch.images)}
            remedy = "all towers must read the same store with the same seed and library versions"
            self.mesh.check_same(name, digest, remedy, within_replica=True)

    def _observe(self, batch: Batch, lr: LearningRates) -> dict[str, float]:
        step = self.progress.step
        observed = observe(self.config, self.model, batch, step)
        if step > 0:
            return observed
        schedule, per_epoch = self.config.schedule, self.train_loader.steps_per_epoch
        rate = lr.weight / warmup_factor(schedule, 0, per_epoch)
        return {**observed, "rate": rate, "batch_size": self.config.data.batch_size}

    def _after_step(self, epoch: int, batch: Batch, output: StepOutput, lr: LearningRates) -> None:
        if not math.isfinite(output.global_loss):
            with suppress(RunError):
                self._checkpoints.wait()
            step, loss = self.progress.step + 1, output.global_loss
            self._reporter.diverged(step, loss)
            parts = self.train_step.micro_batches(batch.rows)
            raise diverged(self.model, batch, parts, self.run_dir, step, loss, lr.weight)
        self.progress.step += 1
        # Earlier, and without checkpoints, nothing is lost if the process ends at once.
        if self.config.checkpoint.wanted and self.progress.step == self._first_step:
            self._closing.enter_context(self._signals)
        for meter in (self.sums, self.epoch_sums):
            meter.add(output.loss, output.errors, batch.rows.size)
        self.throughput.trained(batch)
        self._reporter.advance(epoch, batch.rows.total)
        if self.progress.step % self.config.tracking.log_every_steps == 0:
            self._log_training(epoch, lr)

    def _log_training(self, epoch: int, lr: LearningRates) -> None:
        means = self.sums.means(self.mesh)
        self.sums = LossMeter()
        pace = self.throughput.pace(self.model.comm.traffic)
        step, ratios = self.progress.step, self._train_stats.ratios()
        self._reporter.training(step, epoch, means, lr.weight, pace, ratios)

    def _validate(self, epoch: int) -> tuple[ErrorCounts, ImageErrors]:
        self._reporter.validating()
        errors, of_images = self._evaluate(self.val_loader, self._train_stats.update)
        timings = self.throughput.timings(self.model.comm.traffic)
        step, views = self.progress.step, self.config.eval_views
        self._reporter.validation(step, epoch, views, errors, timings)
        self._reporter.images(step, self._train_stats.images())
        return errors, of_images

    def _evaluate(
        self, loader: EvalLoader, also: Callable[[Batch, Tensor], None] = lambda *_: None
    ) -> tuple[ErrorCounts, ImageErrors]:
        """Errors, and those of each image that this replica evaluated. Collective."""
        of_images = ImageErrors.empty(loader)

        def on_batch(batch: Batch, probabilities: Tensor) -> None:
            of_images.add(batch, probabilities)
            also(batch, probabilities)

        batches = self._with_flag_sync(loader.batches())
        classes = len(self.store.classes)
        return evaluate([self.model], batches, self.mesh, classes, on_batch), of_images

    def _finish_evaluation(self, of_images: ImageErrors) -> dict[str, float]:
        """Keep each image's error; evaluate training images if asked to. Collective."""
        of_images.gather(self.mesh)
        arrays = of_images.arrays()
        found: dict[str, float] = {}
        if self._train_eval_loader is not None:
            errors, of_train = self._evaluate(self._train_eval_loader)
            of_train.gather(self.mesh)
            arrays |= of_train.arrays("train_")
            found = {"train_eval_error_pct": errors.top1_error_pct}
        path = self.run_dir / image_errors.FILE
        run_on_rank_0(lambda: image_errors.save(path, arrays), self.mesh)
        return found

    def _with_flag_sync(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        for batch in batches:
            self._sync_flags(training=False)
            yield batch

    def _sync_flags(self, *, training: bool = True) -> None:
        """Checkpoint, or checkpoint and exit, if a rank asked for it a step ago. Collective."""
        save = self.mesh.rank == 0 and self._checkpoints.due_by_clock()
        flags = self._flag_sync(ControlFlags(self._signals.number, save, self._checkpoints.failed))
        if flags.failed:
            self._checkpoints.wait()
        self._checkpoint_requested |= bool(flags.save)
        due = self._checkpoint_requested or self._checkpoints.due_by_step(self.progress.step)
        if training and due:
            self._save()
        if flags.signal:
            if self.config.checkpoint.wanted:
                step = self.progress.step
                if self._checkpoints.last_step != step:
                    self._save()
                self._checkpoints.wait()
                log.info("checkpoint saved at step %d; repeat the command to resume", step)
            raise InterruptError(flags.signal)

    def _save(self) -> None:
        self.progress.epoch_sums = self.epoch_sums.by_replica(self.mesh)
        self.progress.sums = self.sums.by_replica(self.mesh)
        self.progress.records = self._reporter.sync()
        self._checkpoint_requested = False
        self._checkpoints.wait()  # at most one copy of the state in memory
        assert self.store.mean_image is not None
        state = TrainingState.of(self.model, self.optimizer, self.progress, self.store.mean_image)
        self._checkpoints.save(state)

    def _resume(self, folder: Path) -> None:
        saved = checkpoint.load(folder, self.model, self.optimizer)
        codes = saved.code, self.progress.code
        if self.mesh.rank == 0 and codes[0] != codes[1]:
            log.warning("checkpoint was saved by %s; resuming with %s", *codes)
        self.epoch_sums = LossMeter.restored(saved.epoch_sums, self.mesh)
        self.sums = LossMeter.restored(saved.sums, self.mesh)
        same_run = folder.resolve().parent.parent == self.run_dir.resolve()
        finished = saved.step >= self.total_steps or saved.settings == self.progress.settings
        self.progress = replace(
            self.progress,
            step=saved.step,
            epoch=saved.epoch,
            validation_errors=saved.validation_errors,
            train_errors=saved.train_errors,
            top1_error_pct=saved.top1_error_pct,
            records=saved.records if same_run else {},
            summary=saved.summary if finished else None,
        )
        log.info("resuming from %s: epoch %d, step %d", folder, saved.epoch, saved.step)
