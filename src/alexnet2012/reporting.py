"""What a run tells of itself while it goes on: its records, and a line for a person."""

from __future__ import annotations

from contextlib import ExitStack
from types import TracebackType

from alexnet2012.evaluation import Errors
from alexnet2012.progress import TrainProgress
from alexnet2012.schedule import Rates
from alexnet2012.tracking import Tracker


class Reporter:
    """Both on rank 0, where they are given; silent on the others."""

    def __init__(
        self, tracker: Tracker | None = None, display: TrainProgress | None = None
    ) -> None:
        self._tracker, self._display = tracker, display
        self._closing = ExitStack()

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

    def training(self, step: int, epoch: int, means: dict[str, float], now: Rates) -> None:
        if self._tracker is not None:
            self._tracker.metrics("train", step, epoch=epoch, **means, rate=now.weight)
        if self._display is not None:
            self._display.training(step, means["loss"], means["train_error_pct"])

    def epoch(self, step: int, epoch: int, means: dict[str, float]) -> None:
        if self._tracker is not None:
            self._tracker.metrics("epoch", step, epoch=epoch, **means)

    def validation(
        self, step: int, epoch: int, views: int, errors: Errors, timings: dict[str, float]
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
