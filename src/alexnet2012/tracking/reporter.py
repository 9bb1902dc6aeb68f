"""Reporting of a run: its records and the progress display, on rank 0."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.config.schema import TrackingConfig
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.tracking.backends import has_backends
from alexnet2012.tracking.progress_bar import TrainProgress
from alexnet2012.tracking.tracker import Tracker
from alexnet2012.utils.metrics import ErrorCounts

LAST_ONLY = "wrong-guesses"  # images of which a run keeps only the last
Values = dict[str, float]


@dataclass
class Reporter:
    """Writes records and updates the display, where given; does nothing without them."""

    _tracker: Tracker | None = None
    _display: TrainProgress | None = None
    log_stats: bool = False  # log kernels and update ratios; the same on every rank

    @classmethod
    @contextmanager
    def open(
        cls, config: TrackingConfig, run_dir: Path, progress: Progress, total_steps: int, mesh: Mesh
    ) -> Iterator[Reporter]:
        """Open the records and loggers on rank 0, until the context ends. Collective."""
        trackers: list[Tracker] = []

        def start() -> bool:
            tracker = Tracker(config, run_dir, progress.settings, resumed=progress.records)
            trackers.append(tracker)
            tracker.started(progress.step, unix_s=round(time.time()), total_steps=total_steps)
            return config.watch and has_backends(config)

        log_stats = run_on_rank_0(start, mesh)
        with ExitStack() as stack:
            reporter = cls(log_stats=log_stats)
            if mesh.rank == 0:
                reporter._tracker = stack.enter_context(trackers[0])
                display = TrainProgress(total_steps, progress.step)
                reporter._display = stack.enter_context(display)
            yield reporter

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
