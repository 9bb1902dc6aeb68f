"""What a run tells of itself while it goes on: its records, and a line for a person."""

from __future__ import annotations

import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

from PIL import Image

from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.config.schema import TrackingConfig
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.tracking.backends import is_viewed
from alexnet2012.tracking.progress_bar import TrainProgress
from alexnet2012.tracking.tracker import Tracker
from alexnet2012.utils.metrics import ErrorCounts

LAST_ONLY = "wrong-guesses"  # of these pictures a run keeps that of the last validation


class Reporter:
    """Records and display on rank 0, where they are given; silent on the others."""

    def __init__(
        self,
        tracker: Tracker | None = None,
        display: TrainProgress | None = None,
        *,
        viewed: bool = False,
    ) -> None:
        """``viewed``: somebody looks at more than the records, the same on every rank."""
        self._tracker, self._display, self.viewed = tracker, display, viewed
        self._closing = ExitStack()

    @classmethod
    def here(
        cls,
        config: TrackingConfig,
        run_dir: Path,
        progress: Progress,
        total_steps: int,
        mesh: Mesh,
    ) -> Reporter:
        """This rank's. Collective.

        Raises:
            ConfigError: on every rank alike: a view of the records cannot be opened.
        """
        found: list[Tracker] = []

        def begin() -> bool:
            settings, before = progress.settings, progress.records
            found.append(Tracker(config, run_dir, settings, resumed=before))
            found[0].begun(progress.step, unix_s=round(time.time()), total_steps=total_steps)
            return config.watch and is_viewed(config)

        viewed = run_on_rank_0(begin, mesh)
        display = TrainProgress(total_steps, progress.step) if mesh.rank == 0 else None
        return cls(found[0] if found else None, display, viewed=viewed)

    def __enter__(self) -> Reporter:
        for part in (self._tracker, self._display):
            if part is not None:
                self._closing.enter_context(part)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._closing.__exit__(kind, error, traceback)

    def written(self) -> dict[str, int]:
        """Lines of each file of records, all on the disk."""
        return {} if self._tracker is None else self._tracker.sync()

    def advanced(self, epoch: int, pictures: int) -> None:
        if self._display is not None:
            self._display.advance(epoch, pictures)

    def training(
        self,
        step: int,
        epoch: int,
        means: dict[str, float],
        now: LearningRates,
        pace: dict[str, float],
        update_ratios: dict[str, float],
    ) -> None:
        if self._tracker is not None:
            self._tracker.metrics("train", step, epoch=epoch, **means, rate=now.weight)
            self._tracker.timings("pace", step, **pace)
            if update_ratios:
                self._tracker.watched("update_ratio", step, **update_ratios)
        if self._display is not None:
            self._display.training(means["loss"], means["train_error_pct"])

    def epoch(self, step: int, epoch: int, means: dict[str, float]) -> None:
        if self._tracker is not None:
            self._tracker.metrics("epoch", step, epoch=epoch, **means)

    def validating(self) -> None:
        if self._display is not None:
            self._display.validating()

    def validation(
        self, step: int, epoch: int, views: int, errors: ErrorCounts, timings: dict[str, float]
    ) -> None:
        if self._tracker is not None:
            self._tracker.metrics(
                "validation",
                step,
                epoch=epoch,
                views=views,
                pictures=errors.pictures,
                loss=errors.loss,
                top1_error_pct=errors.top1_error_pct,
                top5_error_pct=errors.top5_error_pct,
            )
            self._tracker.timings("throughput", step, **timings)
        if self._display is not None:
            self._display.validation(epoch, errors.top1_error_pct, errors.top5_error_pct)

    def pictures(self, step: int, pictures: Mapping[str, Image.Image]) -> None:
        if self._tracker is not None:
            for name, picture in pictures.items():
                self._tracker.picture(name, step, picture, last_only=name == LAST_ONLY)
