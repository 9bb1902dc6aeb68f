"""The files of a run, checked against each other without training.

A run says many things twice. The means of an epoch follow from its records, the learning rates from
the schedule and the earlier errors, the steps of the records from the number of images, and each
checkpoint repeats the settings, the errors so far and the checksum of the data.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import Progress, config_of
from alexnet2012.checkpoint.run_dir import AUTO, SETTINGS, SUMMARY, with_defaults
from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, RunError, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.lr_schedule import learning_rates, warmup_factor
from alexnet2012.tracking.run_index import (
    METRICS,
    TIMINGS,
    DamagedRunError,
    RunState,
    load_settings,
    load_summary,
    read_run,
)
from alexnet2012.tracking.tracker import BEGUN, read_records
from alexnet2012.training import image_errors
from alexnet2012.utils.untrusted import open_regular

TOLERANCE = 1e-9  # of means: sums of float64 in another order
BLOCK = 1 << 20  # bytes
_RESULTS = (Role.variant, Role.identity)


class Finding(NamedTuple):
    """A difference between what a run recorded and what follows from its other files."""

    where: str
    what: str

    def __str__(self) -> str:
        return f"{self.where}: {self.what}"


class Part(NamedTuple):
    """Of a run, from a start of its process to the next: settings that may change on resume."""

    step: int  # at the start
    total_steps: int
    log_every_steps: int
    eval_every_epochs: int


@dataclass
class RunFiles:
    """What a run directory holds, and what is wrong with it."""

    folder: Path
    config: TrainConfig
    settings: dict[str, Any]  # that change the trained weights, by full key
    store: Store | None  # None if it is not that of the run
    records: list[dict[str, Any]]
    summary: dict[str, Any]
    checkpoints: dict[Path, Progress]  # those that are intact, oldest first
    parts: list[Part] = field(default_factory=list)  # empty without images to count steps by
    images: int = 0  # of the store, compared with their checksums
    findings: list[Finding] = field(default_factory=list)

    @property
    def from_start(self) -> bool:
        """Whether the run began with step 0, and not with the checkpoint of another run."""
        return self.config.resume in (None, AUTO)

    @property
    def newest(self) -> Path | None:
        return next(reversed(self.checkpoints), None)

    @property
    def steps(self) -> int:
        """Steps that the run made, up to its last record or checkpoint."""
        recorded = (record["step"] for record in self.records)
        return max([*recorded, *(saved.step for saved in self.checkpoints.values())], default=0)


def check_files(folder: Path, store: str | None, mesh: Mesh) -> RunFiles:
    """Read a run and compare its files; the findings say what does not agree.

    Raises:
        ConfigError: the folder is no run or one that is training, or there is no store.
    """
    if (folder / "ledger.json").is_file():
        remedy = f"is a reproduction; `alexnet2012 ledger verify {folder}` recomputes its verdicts"
        raise ConfigError("run", folder, remedy)
    if read_run(folder).state is RunState.running:
        raise ConfigError("run", folder, "is training; wait until it ends")
    try:
        settings, summary = load_settings(folder), load_summary(folder)
        config = config_of(Progress(0, 0, settings=manifest.without_retired(settings)))
    except (DamagedRunError, ValueError) as error:
        raise ConfigError("run", folder, f"{error}; give the directory of a run") from error
    root = Path(store or str(config.data.store))
    if not (root / "manifest.json").is_file():
        remedy = "holds no store; store=… names where the images of this run are now"
        raise ConfigError("store", root, remedy)
    run = RunFiles(folder, config, _result_settings(settings), None, [], summary, {})
    try:
        run.records = read_records(folder / METRICS)
    except RunError as error:
        run.findings.append(Finding(METRICS, str(error)))
    _read_checkpoints(run, mesh)
    _check_data(run, root)
    if run.store is not None:
        run.parts = _parts(run, run.store)
        walk = _Walk(run, run.store) if run.from_start else None
        run.findings += walk.findings() if walk else []
        for path, saved in run.checkpoints.items():
            run.findings += _of_checkpoint(run, run.store, path, saved, walk)
    run.findings += _of_summary(run)
    return run


def _read_checkpoints(run: RunFiles, mesh: Mesh) -> None:
    for path in reversed(manifest.list_checkpoints(run.folder)):
        try:
            manifest.verify(path, mesh)
            manifest.read_mean_image(path)
            run.checkpoints[path] = manifest.read_progress(path)
        except ConfigError as error:
            run.findings.append(Finding(path.name, error.remedy))


def _check_data(run: RunFiles, root: Path) -> None:
    """Open the store, and compare every image that the run used with its checksum."""
    data = run.config.data
    try:
        store = Store.open(root).narrowed(data.first_classes, data.skip_classes)
        splits = [store.split(name, data.limit) for name in store.splits]
    except ConfigError as error:
        run.findings.append(Finding("store", str(error)))
        return
    recorded = [progress.store_fingerprint for progress in run.checkpoints.values()]
    recorded += [str(run.summary[key]) for key in ("store_fingerprint",) if key in run.summary]
    if any(fingerprint != store.fingerprint for fingerprint in recorded):
        what = f"{root} holds other images or labels than those that the run recorded"
        run.findings.append(Finding("store", what))
        return
    changed = 0
    for split in splits:
        for path, digest in zip(split.paths, split.sha256, strict=True):
            run.images += 1
            if _sha256(Path(path)) != digest.tobytes():
                changed += 1
                run.findings.append(Finding("store", f"{path} is missing or was changed"))
    if not changed:
        run.store = store


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with open_regular(path) as file:
            while block := file.read(BLOCK):
                digest.update(block)
    except (OSError, ValueError):
        return b""
    return digest.digest()


def epoch_size(config: TrainConfig, store: Store) -> tuple[int, int]:
    """Images and steps of an epoch."""
    images = len(store.split("train", config.data.limit).labels)
    return images, -(-images // config.data.batch_size)


def _parts(run: RunFiles, store: Store) -> list[Part]:
    """The parts of a run, in order; the settings of the last one are those of the run."""
    config = run.config
    total = config.schedule.epochs * config.schedule.epochs_factor * epoch_size(config, store)[1]
    last = Part(
        0,
        min(total, config.max_steps or total),
        config.tracking.log_every_steps,
        config.eval_every_epochs,
    )
    parts: list[Part] = []
    for record in read_records(run.folder / TIMINGS):
        if record["kind"] != BEGUN:
            continue
        while parts and parts[-1].step >= record["step"]:  # its steps were trained again
            parts.pop()
        values = {key: record.get(key) for key in Part._fields}
        known = {k: v for k, v in values.items() if type(v) is int and (v > 0 or k == "step")}
        parts.append(last._replace(**known))
    return [*parts[:-1], last._replace(step=parts[-1].step)] if parts else [last]


class _Walk:
    """The records of a run in order, against those that its settings and images give."""

    def __init__(self, run: RunFiles, store: Store) -> None:
        self.run, self.config = run, run.config
        self.count, self.per_epoch = epoch_size(run.config, store)
        self.total = run.parts[-1].total_steps
        self.step = 0  # up to which there are records of training
        self.validated: dict[int, float] = {}  # top-1 error in %, by step
        self.validation_errors: list[float] = []  # by epoch
        self.train_errors: list[float] = []
        self.after: list[tuple[int, int, int]] = [(0, 0, 0)]  # of n lines: the step, and errors
        self._required: list[str] = []  # kinds of record that follow, all of this step
        self._optional: list[str] = []
        self._sums = [0.0, 0.0]  # of loss and error over the images of the epoch so far

    def images(self, first: int, last: int) -> int:
        """Images of the steps after ``first``, up to ``last``."""

        def until(step: int) -> int:
            epochs, steps = divmod(step, self.per_epoch)
            return epochs * self.count + min(self.count, steps * self.config.data.batch_size)

        return until(last) - until(first)

    def findings(self) -> Iterator[Finding]:
        for number, record in enumerate(self.run.records, start=1):
            where = f"{METRICS}, line {number}"
            expected = self._expected(record["step"])
            if record["kind"] not in expected:
                found = f"{record['kind']} at step {record['step']}"
                yield Finding(where, f"is {found}, and {self._following()} was to follow")
                return  # all others are displaced
            try:
                problems = list(self._check(record))
            except KeyError as error:
                yield Finding(where, f"has no {error.args[0]}")
                return
            except TypeError:
                yield Finding(where, "has a value that is no number")
                return
            yield from (Finding(where, problem) for problem in problems)
            errors = len(self.train_errors), len(self.validation_errors)
            self.after.append((self.step, *errors))
        if self.run.summary and (self._required or not self._is_end()):
            yield Finding(METRICS, f"ends before {self._following()}, but the run has a summary")

    def _is_end(self) -> bool:
        target = self.config.stop_at_train_error_pct
        reached = target is not None and self.train_errors and self.train_errors[-1] <= target
        return self.step == self.total or bool(reached)

    def _next_step(self) -> int:
        """The step of the next record of training."""
        due = 0
        for part, later in zip_longest(self.run.parts, self.run.parts[1:]):
            step = max(self.step, part.step)
            every = part.log_every_steps
            epoch_end = (step // self.per_epoch + 1) * self.per_epoch
            ends = {part.total_steps} if step < part.total_steps else set()
            due = min((step // every + 1) * every, epoch_end, *ends)
            if later is None or due <= later.step:
                break
        return due

    def _expected(self, step: int) -> list[str]:
        """Kinds of record that may follow with this step."""
        if self._required:
            return self._required[:1] if step == self.step else []
        kinds = self._optional if step == self.step else []
        return [*kinds, "train"] if step == self._next_step() else kinds

    def _following(self) -> str:
        if self._required:
            return f"{self._required[0]} at step {self.step}"
        return f"train at step {self._next_step()}"

    def _check(self, record: dict[str, Any]) -> Iterator[str]:
        """Problems of a record that is in its place."""
        kind, step = record["kind"], record["step"]
        epoch = (step - 1) // self.per_epoch
        complete = step % self.per_epoch == 0
        if record["epoch"] != epoch:
            yield f"epoch is {record['epoch']}; step {step} is of epoch {epoch}"
        if kind == "train":
            yield from self._train(record, step, epoch)
            return
        for kinds in (self._required, self._optional):
            if kind in kinds:
                kinds.remove(kind)
        if kind == "validation":
            self.validated[step] = record["top1_error_pct"]
            self.validation_errors += [record["top1_error_pct"]] * complete
            return
        images = self.images(epoch * self.per_epoch, step)
        for key, total in zip(("loss", "train_error_pct"), self._sums, strict=True):
            if not math.isclose(record[key], total / images, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                yield f"{key} is {record[key]}, and the records of the epoch give {total / images}"
        self.train_errors += [record["train_error_pct"]] * complete

    def _train(self, record: dict[str, Any], step: int, epoch: int) -> Iterator[str]:
        if self.step == epoch * self.per_epoch:
            self._sums = [0.0, 0.0]
        images = self.images(self.step, step)
        self._sums[0] += record["loss"] * images
        self._sums[1] += record["train_error_pct"] * images
        self.step = step
        complete = step % self.per_epoch == 0
        parts = self.run.parts
        part = next((p for p in reversed(parts) if p.step < step), parts[0])
        ends = step == part.total_steps
        due = ends or (complete and (epoch + 1) % part.eval_every_epochs == 0)
        if any(later.step == step for later in parts):  # the one before may lack its validation
            self._required = ["epoch"] * complete
            self._optional = ["epoch"] * (ends and not complete)
            self._optional += ["validation"] * (ends or complete)
        else:
            self._required = ["epoch"] * (ends or complete) + ["validation"] * due
            self._optional = ["validation"] * (complete and not due)
        if record["rate"] != (rate := self._rate(step, epoch)):
            yield f"rate is {record['rate']}, and the schedule gives {rate}"

    def _rate(self, step: int, epoch: int) -> float:
        schedule = self.config.schedule
        on_training_error = schedule.kind is ScheduleKind.train_plateau
        errors = self.train_errors if on_training_error else self.validation_errors
        rates = learning_rates(schedule, epoch, errors, self.config.data.batch_size)
        return rates.scaled(warmup_factor(schedule, step - 1, self.per_epoch)).weight


def _result_settings(settings: dict[str, Any]) -> dict[str, Any]:
    """Those that change the trained weights, by full key."""
    every = with_defaults(settings).items()
    return {key: value for key, value in every if role_of(TrainConfig, key) in _RESULTS}


def _of_checkpoint(
    run: RunFiles, store: Store, path: Path, saved: Progress, walk: _Walk | None
) -> Iterator[Finding]:
    """What a checkpoint repeats of the run."""
    where = path.name
    if saved.step != manifest.checkpoint_step(path):
        yield Finding(where, f"is of step {saved.step}, and named for another")
    settings, own = run.settings, _result_settings(saved.settings)
    for key in sorted(k for k in settings | own if settings.get(k) != own.get(k)):
        yield Finding(where, f"has {key}={own.get(key)}, and {SETTINGS} {settings.get(key)}")
    if list(store.classes) != saved.classes:
        yield Finding(where, "has other classes than the store")
    assert store.mean_image is not None  # of a store that was trained on
    if not np.array_equal(manifest.read_mean_image(path), store.mean_image):
        yield Finding(where, "its mean image is not that of the store")
    if walk is None:
        return
    lines = saved.records.get(METRICS, 0)
    if not 0 <= lines < len(walk.after):
        count = len(walk.after) - 1
        yield Finding(where, f"was saved after {lines} records, and {METRICS} has {count} in order")
        return
    step, *counts = walk.after[lines]
    images = sum(sums[2] for sums in saved.sums)
    if saved.step < step or images != walk.images(step, saved.step):
        yield Finding(where, f"is of step {saved.step}, and its {lines} records end at step {step}")
    for name, recorded, errors, count in (
        ("training", saved.train_errors, walk.train_errors, counts[0]),
        ("validation", saved.validation_errors, walk.validation_errors, counts[1]),
    ):
        # One that was saved during a validation has not yet counted its epoch.
        if recorded not in (errors[:count], errors[: min(count, saved.epoch)]):
            yield Finding(where, f"its {name} errors by epoch are not those of {METRICS}")
    if saved.top1_error_pct is not None and saved.top1_error_pct != walk.validated.get(saved.step):
        yield Finding(where, f"its validation error is not that of {METRICS}")


def _of_summary(run: RunFiles) -> Iterator[Finding]:
    """The summary against the last records, the last checkpoint and the errors by image."""
    if not run.summary:
        return
    validations = [r for r in run.records if r["kind"] == "validation"]
    last = validations[-1] if validations else {}
    for key in ("loss", "pictures", "top1_error_pct", "top5_error_pct"):
        if key in last and run.summary.get(key) != last[key]:
            what = f"{key} is {run.summary.get(key)}, and {last[key]} in {METRICS}"
            yield Finding(SUMMARY, what)
    newest = None if run.newest is None else run.checkpoints[run.newest]
    if newest is not None and newest.summary is not None and newest.step == run.steps:
        for key in sorted(newest.summary.keys() | run.summary.keys()):
            if newest.summary.get(key) != run.summary.get(key):
                what = f"{key} is {run.summary.get(key)}, and {newest.summary.get(key)}"
                yield Finding(SUMMARY, f"{what} in the last checkpoint")
    yield from _of_image_errors(run)


def _of_image_errors(run: RunFiles) -> Iterator[Finding]:
    path = run.folder / image_errors.FILE
    if not path.is_file():
        return
    try:
        with np.load(path, allow_pickle=False) as arrays:
            by_image = {key: arrays[key].astype(np.float64) for key in ("top1", "top5")}
    except Exception as error:  # NumPy raises almost anything on a damaged file
        yield Finding(path.name, f"cannot be read ({manifest.first_line(error)})")
        return
    for key, errors in by_image.items():
        count, recorded = errors.sum() / image_errors.UNITS, run.summary.get(f"{key}_errors")
        # Each is rounded to the unit.
        if recorded is not None and abs(count - recorded) > len(errors) / image_errors.UNITS:
            yield Finding(path.name, f"has {count:g} {key} errors, and {SUMMARY} {recorded:g}")
