"""Reporting of a run: its records and the progress display, on rank 0."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.config.schema import TrackingConfig
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.tracking.backends import has_backends
from alexnet2012.tracking.bands import BandWatch, Classes, Departure
from alexnet2012.tracking.likely_causes import evidence_of, likely_causes
from alexnet2012.tracking.progress_bar import TrainProgress
from alexnet2012.tracking.run_index import DEPARTED, METRICS, TIMINGS
from alexnet2012.tracking.tracker import OBSERVED, Tracker, read_records
from alexnet2012.utils.logs import log
from alexnet2012.utils.metrics import ErrorCounts

LAST_ONLY = "wrong-guesses"  # images of which a run keeps only the last
Values = dict[str, float]


@dataclass
class Reporter:
    """Writes records and updates the display, where given; does nothing without them."""

    _tracker: Tracker | None = None
    _display: TrainProgress | None = None
    log_stats: bool = False  # log kernels and update ratios; the same on every rank
    _watch: BandWatch | None = None
    _observed: Values = field(default_factory=dict)  # of the first step
    _summary: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        config: TrackingConfig,
        run_dir: Path,
        progress: Progress,
        total_steps: int,
        mesh: Mesh,
        make_watch: Callable[[], BandWatch],
    ) -> Iterator[Reporter]:
        """Open the records and loggers on rank 0, until the context ends. Collective."""
        trackers: list[Tracker] = []
        watches: list[BandWatch] = []

        def start() -> bool:
            tracker = Tracker(config, run_dir, progress.settings, resumed=progress.records)
            trackers.append(tracker)
            watches.append(make_watch())
            classes = Classes.of(progress.classes)
            tracker.started(
                progress.step,
                unix_s=round(time.time()),
                total_steps=total_steps,
                log_every_steps=config.log_every_steps,
                eval_every_epochs=progress.settings["eval_every_epochs"],
                classes=classes.number,
                classes_digest=classes.digest,
            )
            return config.watch and has_backends(config)

        log_stats = run_on_rank_0(start, mesh)
        with ExitStack() as stack:
            reporter = cls(log_stats=log_stats)
            if mesh.rank == 0:
                reporter._tracker = stack.enter_context(trackers[0])
                reporter._watch = watches[0]
                reporter._restore(run_dir)
                display = TrainProgress(total_steps, progress.step)
                reporter._display = stack.enter_context(display)
            yield reporter

    def _restore(self, run_dir: Path) -> None:
        """Take up the records before a resume."""
        assert self._watch is not None
        for record in read_records(run_dir / METRICS):
            if record["kind"] == "train":
                self._watch.add(record["step"], record["loss"], record["train_error_pct"])
        for record in read_records(run_dir / TIMINGS):
            kind, step = record.pop("kind"), record.pop("step")
            if kind == OBSERVED:
                self._observed = record
            elif kind == DEPARTED:
                self._summary = {"step": step, **record}

    def observe(self, step: int, make: Callable[[], Values]) -> None:
        """Measure the first step, unless that was done before a resume."""
        if self._tracker is not None and self._watch is not None and not self._observed:
            self._observed = make()
            self._tracker.noted(OBSERVED, step, **self._observed)

    def diverged(self, step: int, loss: float) -> None:
        if self._watch is not None:
            self._report(self._watch.diverged(step, loss))

    def band(self) -> dict[str, Any]:
        """For the summary: the reference band of the run, if any, and where the run left it."""
        band = None if self._watch is None else self._watch.band
        of = {} if band is None else {"name": band.name, "runs": band.runs}
        return {**of, "left": self._summary or None}

    def _report(self, departure: Departure | None) -> None:
        """Say once that the run left its band, or is at chance, and the likeliest causes."""
        if departure is None or self._watch is None or self._tracker is None or self._summary:
            return
        evidence = evidence_of(self._observed, *self._watch.reference)
        causes = likely_causes(evidence, at_chance=departure.at_chance)
        listed = "; ".join(f"{n}. {cause.text}" for n, cause in enumerate(causes, start=1))
        heading = "likeliest causes"
        if causes[0].strength <= 0:
            heading = "nothing that the first step measured is unusual; possible causes"
        log.warning("%s; %s: %s", departure, heading, listed)
        finite = {"value": departure.value} if math.isfinite(departure.value) else {}
        self._summary = {
            "step": departure.step,
            "progress_pct": departure.progress_pct,
            "metric": departure.metric,
            **finite,
            "at_chance": departure.at_chance,
            "likeliest_causes": [cause.text for cause in causes],
        }
        self._tracker.noted(DEPARTED, **self._summary)

    def sync(self) -> dict[str, int]:
        return {} if self._tracker is None else self._tracker.sync()

    def advance(self, epoch: int, images: int) -> None:
        if self._display is not None:
            self._display.advance(epoch, images)

    def training(
        self, step: int, epoch: int, means: Values, rate: float, pace: Values, ratios: Values
    ) -> None:
        if self._tracker is not None:
            self._tracker.metrics("train", step, epoch=epoch, **means, rate=rate)
            self._tracker.timings("pace", step, **pace)
            if ratios:
                self._tracker.watched("update_ratio", step, **ratios)
        if self._watch is not None:
            self._report(self._watch.add(step, means["loss"], means["train_error_pct"]))
        if self._display is not None:
            self._display.training(means["loss"], means["train_error_pct"])

    def epoch(self, step: int, epoch: int, means: Values) -> None:
        if self._tracker is not None:
            self._tracker.metrics("epoch", step, epoch=epoch, **means)

    def validating(self) -> None:
        if self._display is not None:
            self._display.validating()

    def validation(
        self, step: int, epoch: int, views: int, errors: ErrorCounts, timings: Values
    ) -> None:
        top1, top5 = errors.top1_error_pct, errors.top5_error_pct
        if self._tracker is not None:
            values = {"views": views, "pictures": errors.pictures, "loss": errors.loss}
            rates = {"top1_error_pct": top1}
            if errors.has_top5:
                rates["top5_error_pct"] = top5
            self._tracker.metrics("validation", step, epoch=epoch, **values, **rates)
            self._tracker.timings("throughput", step, **timings)
        if self._display is not None:
            self._display.validation(epoch, top1, top5 if errors.has_top5 else None)

    def images(self, step: int, images: Mapping[str, Image.Image]) -> None:
        if self._tracker is not None:
            for name, image in images.items():
                self._tracker.image(name, step, image, last_only=name == LAST_ONLY)
