"""One training run on a mesh: the same code on every rank, output on rank 0."""

from __future__ import annotations

import json
import math
import time
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import OmegaConf
from torch import Tensor

from alexnet2012 import checkpoint
from alexnet2012.choices import Feed
from alexnet2012.collectives import link_of
from alexnet2012.config import RunError, TrainConfig
from alexnet2012.data.feeding import Place
from alexnet2012.data.loaders import Batch, EvalLoader, TrainLoader, content_digest
from alexnet2012.evaluation import Errors, evaluate
from alexnet2012.machine import running_commit, versions
from alexnet2012.mesh import Mesh, log
from alexnet2012.metrics import topk_errors
from alexnet2012.model import DTYPES, AlexNet
from alexnet2012.optimizer import PaperSGD
from alexnet2012.progress import TrainProgress
from alexnet2012.runs import check_run
from alexnet2012.schedule import Rates, rates
from alexnet2012.tracking import Tracker


class DivergedError(RunError):
    """The loss is no longer a number."""


@dataclass
class Sums:
    """Running sums of a stretch of training, on this replica."""

    loss: float = 0.0
    errors: float = 0.0
    pictures: float = 0.0

    def over_replicas(self, mesh: Mesh) -> Sums:
        """The sums of all replicas. Collective."""
        if mesh.data_group is None:
            return self
        sums = torch.tensor([self.loss, self.errors, self.pictures], dtype=torch.float64)
        sums = sums.to(mesh.device)
        mesh.sum_over_replicas([sums], "records")
        return Sums(*sums.tolist())

    def means(self) -> dict[str, float]:
        return {
            "loss": self.loss / self.pictures,
            "train_error_pct": 100 * self.errors / self.pictures,
        }


class Trainer:
    """Holds what one run needs; :meth:`run` trains to the end and returns the summary.

    Raises:
        ConfigError: the store or the checkpoint does not go with the configuration.
        DivergedError: the loss became NaN or infinite.
    """

    def __init__(self, config: TrainConfig, mesh: Mesh, run_dir: Path) -> None:
        self.config, self.mesh, self.run_dir = config, mesh, run_dir
        self.store, resumed = check_run(config, run_dir)
        self.dtype = DTYPES[config.precision]
        self.model = AlexNet(
            config.recipe,
            len(self.store.classes),
            model=config.model,
            mesh=mesh,
            seed=config.seed,
            dtype=self.dtype,
        )
        self.optimizer = PaperSGD(self.model, config.recipe.optimizer)
        self.train_loader, self.val_loader = self._loaders()
        self.progress = checkpoint.Progress(
            step=0,
            epoch=0,
            settings=checkpoint.plain(config),
            classes=list(self.store.classes),
            store_fingerprint=self.store.fingerprint,
        )
        self.sums = Sums()  # since the last record
        self.epoch_sums = Sums()
        if resumed is not None:
            self._resume(resumed)
        elif config.init_from is not None:
            checkpoint.take_over(Path(config.init_from), self.model, config.init_layers)
            log.info("starting from the layers of %s", config.init_from)
        # Seconds of training (without validation), and of it waiting for input.
        self.train_s = self.input_wait_s = 0.0
        self.first_batch_s: float | None = None  # not among them: pipelines start up once
        self.pictures_seen = self.own_pictures = 0  # of all replicas; of this one

    def run(self) -> dict[str, Any]:
        """Train, validate, save; returns what summary.json holds. Collective."""
        remedy = "start every rank with the same command, code and data"
        settings = checkpoint.plain(self.config)
        same = {**settings, **versions(), "store": self.store.fingerprint}
        self.mesh.check_same("what runs", same, remedy, within_replica=False)
        self.mesh.watchdog.folder = self.run_dir
        if self.progress.step >= self.total_steps:
            log.info("nothing to do: %d steps are done; raise schedule.epochs", self.progress.step)
            return {}
        if self.mesh.rank != 0:
            return self._train(None, None)
        settings = self.progress.settings
        self.run_dir.mkdir(parents=True, exist_ok=True)
        OmegaConf.save(OmegaConf.create(settings), self.run_dir / "config.yaml")
        with (
            Tracker(
                self.config.tracking, self.run_dir, settings, resumed_step=self.progress.step
            ) as tracker,
            TrainProgress(self.total_steps, self.progress.step) as display,
        ):
            summary = self._train(tracker, display)
        summary["commit"] = running_commit()[0]
        text = json.dumps(summary, indent=1, sort_keys=True)
        (self.run_dir / "summary.json").write_text(text + "\n", encoding="utf-8")
        return summary

    @property
    def total_steps(self) -> int:
        steps = self.config.schedule.epochs * self.train_loader.steps_per_epoch
        return steps if self.config.max_steps is None else min(steps, self.config.max_steps)

    def _train(self, tracker: Tracker | None, display: TrainProgress | None) -> dict[str, Any]:
        ended = False
        while not ended:
            epoch, first_step = divmod(self.progress.step, self.train_loader.steps_per_epoch)
            now = rates(self.config.schedule, epoch, self.progress.validation_errors)
            train_error_pct = self._train_epoch(epoch, first_step, now, tracker, display)
            self.progress.epoch = self.progress.step // self.train_loader.steps_per_epoch
            whole = self.progress.epoch > epoch  # not cut short by max_steps
            ended = self.progress.step >= self.total_steps
            enough = self.config.stop_at_train_error_pct
            ended |= whole and enough is not None and train_error_pct <= enough
            if ended or self.progress.epoch % self.config.eval_every_epochs == 0:
                last = self._validate(epoch, tracker, display)
                if whole:
                    self.progress.validation_errors.append(last.top1_error_pct)
            every = self.config.checkpoint_every_epochs
            if every is not None and (ended or self.progress.epoch % every == 0):
                self._save()
        return self._summary(last)

    def _train_epoch(
        self,
        epoch: int,
        first_step: int,
        now: Rates,
        tracker: Tracker | None,
        display: TrainProgress | None,
    ) -> float:
        """Train to the end of an epoch; returns its training error, per cent."""
        self.model.train()
        self.optimizer.set_rates(now)
        if first_step == 0:
            self.epoch_sums = Sums()
        batches = self.train_loader.epoch(epoch, first_step=first_step, lighting=now.lighting)
        began = waited_since = time.perf_counter()
        for batch in batches:
            waited_s = time.perf_counter() - waited_since
            if self.first_batch_s is None:
                self.first_batch_s = waited_s
                began += waited_s
            else:
                self.input_wait_s += waited_s
            self.mesh.watchdog.own.record.step = self.progress.step + 1
            if self.progress.step % self.config.data.check_every_steps == 0:
                self._check_batch(batch)
            self._step(batch)
            self.pictures_seen += batch.rows.total
            self.own_pictures += batch.rows.size
            if display is not None:
                display.advance(epoch, batch.rows.total)
            if self.progress.step % self.config.tracking.log_every_steps == 0:
                self._record_training(epoch, now, tracker, display)
            if self.progress.step >= self.total_steps:
                break
            waited_since = time.perf_counter()
        self.train_s += time.perf_counter() - began
        if self.progress.step % self.config.tracking.log_every_steps:
            self._record_training(epoch, now, tracker, display)  # what is left of the epoch
        means = self.epoch_sums.over_replicas(self.mesh).means()
        if tracker is not None:
            tracker.metrics("epoch", self.progress.step, epoch=epoch, **means)
        return means["train_error_pct"]

    def _step(self, batch: Batch) -> None:
        logits = self.model(batch.images.to(self.dtype), batch.rows)
        # The mean over the global batch: replicas with fewer rows then weigh less.
        loss = F.cross_entropy(logits, batch.labels, reduction="sum")
        self.optimizer.zero_grad()
        (loss / batch.rows.total).backward()
        self._sum_over_replicas()
        self.optimizer.step()
        self.progress.step += 1
        errors = topk_errors(logits.detach(), batch.labels, ks=(1,))[1]
        for sums in (self.sums, self.epoch_sums):
            sums.loss += float(loss.detach())
            sums.errors += errors
            sums.pictures += batch.rows.size

    def _sum_over_replicas(self) -> None:
        """Gradients of one tower, summed over its replicas; nothing is summed between towers."""
        grads = []
        for parameter in self.model.parameters():
            assert isinstance(parameter.grad, Tensor)
            grads.append(parameter.grad)
        self.mesh.sum_over_replicas(grads, "gradients")

    def _check_batch(self, batch: Batch) -> None:
        remedy = "all towers must read the same store with the same seed and library versions"
        what = f"the batch of step {self.progress.step + 1}"
        digest = {"CRC-32": content_digest(batch.images)}
        self.mesh.check_same(what, digest, remedy, within_replica=True)

    def _record_training(
        self, epoch: int, now: Rates, tracker: Tracker | None, display: TrainProgress | None
    ) -> None:
        means = self.sums.over_replicas(self.mesh).means()
        self.sums = Sums()
        step, loss = self.progress.step, means["loss"]
        if not math.isfinite(loss):
            raise DivergedError(
                f"step {step}: the loss is {loss}; lower schedule.rate={now.weight}"
            )
        if tracker is not None:
            tracker.metrics("train", step, epoch=epoch, **means, rate=now.weight)
        if display is not None:
            display.training(step, loss, means["train_error_pct"])

    def _validate(
        self, epoch: int, tracker: Tracker | None, display: TrainProgress | None
    ) -> Errors:
        errors = evaluate([self.model], self.val_loader.batches(), self.mesh)
        if tracker is not None:
            tracker.metrics(
                "validation",
                self.progress.step,
                epoch=epoch,
                views=self.config.eval_views,
                pictures=errors.pictures,
                loss=errors.loss,
                top1_error_pct=errors.top1_error_pct,
                top5_error_pct=errors.top5_error_pct,
            )
            tracker.timings("throughput", self.progress.step, **self._timings())
        if display is not None:
            display.validation(epoch, errors.top1_error_pct, errors.top5_error_pct)
        return errors

    def _timings(self) -> dict[str, float]:
        trained_s = max(self.train_s, 1e-9)
        return {
            "images_per_s": self.pictures_seen / trained_s,
            "input_wait_pct": 100 * self.input_wait_s / trained_s,
            "first_batch_s": self.first_batch_s or 0.0,
            "exchange_pct": 100 * self.model.link.traffic.training_seconds() / trained_s,
        }

    def _save(self) -> None:
        self.progress.epoch_sums = list(astuple(self.epoch_sums.over_replicas(self.mesh)))
        folder = self.run_dir / "checkpoints" / f"step-{self.progress.step:07d}"
        mean_image = self.store.mean_image
        checkpoint.save(folder, self.model, self.optimizer, self.progress, mean_image)

    def _resume(self, folder: Path) -> None:
        found = checkpoint.load(folder, self.model, self.optimizer)
        self.progress.step, self.progress.epoch = found.step, found.epoch
        self.progress.validation_errors = found.validation_errors
        if self.mesh.replica == 0:  # they are of all replicas
            self.epoch_sums = Sums(*found.epoch_sums)
        log.info("going on from %s: epoch %d, step %d", folder, found.epoch, found.step)

    def _loaders(self) -> tuple[TrainLoader, EvalLoader]:
        data, mesh, augment = self.config.data, self.mesh, self.config.recipe.augment
        split = data.feed is Feed.split
        place = Place(
            replica=mesh.replica,
            replicas=mesh.replicas,
            device=mesh.device,
            threads=data.decode_threads,
            decoder=data.decoder,
            link=link_of(mesh) if split else None,
        )
        train_loader = TrainLoader(
            self.store,
            self.store.split("train", data.limit),
            augment,
            input_size=self.config.model.input_size,
            batch_size=data.batch_size,
            seed=self.config.seed,
            place=place,
        )
        val_loader = EvalLoader(
            self.store,
            self.store.split("val", data.limit),
            augment,
            input_size=self.config.model.input_size,
            views=self.config.eval_views,
            batch_size=data.eval_batch_size,
            place=place,
        )
        return train_loader, val_loader

    def _summary(self, errors: Errors) -> dict[str, Any]:
        return {
            **asdict(errors),
            "top1_error_pct": errors.top1_error_pct,
            "top5_error_pct": errors.top5_error_pct,
            "steps": self.progress.step,
            "epochs": self.progress.epoch,
            "world_size": self.mesh.world_size,
            "device": str(self.mesh.device),
            "exchange_bytes_per_image": self._exchange_bytes_per_image(),
            **self._timings(),
        }

    def _exchange_bytes_per_image(self) -> dict[str, dict[str, float]]:
        """By layer and direction, over all towers of a net, counted while it trained."""
        counted: dict[str, dict[str, float]] = {}
        for (layer, direction), sent in self.model.link.traffic.sent_bytes.items():
            if direction != "inference" and self.own_pictures:
                every_tower = sent * self.mesh.towers
                counted.setdefault(layer, {})[direction] = every_tower / self.own_pictures
        return counted
