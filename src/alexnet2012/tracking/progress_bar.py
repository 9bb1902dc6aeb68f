"""Progress of long work: a live bar in a terminal, lines in log files."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager
from typing import TypeVar

from rich import progress
from rich.console import Console

from alexnet2012.utils.logs import announce

LINE_INTERVAL_S = 30.0  # between two lines in a log file, in training
IMAGES_INTERVAL_S = 10.0  # and over images
SPEED_WINDOW_S = 30.0  # over which images/s is averaged
# Set for processes started in a notebook's cell, whose output cannot redraw a line.
NOTEBOOKS = ("JPY_PARENT_PID", "COLAB_RELEASE_TAG")

Batch = TypeVar("Batch")


def is_live(console: Console) -> bool:
    """Whether the console can redraw a line; log files and notebooks cannot."""
    notebook = console.is_jupyter or any(name in os.environ for name in NOTEBOOKS)
    return console.is_terminal and not console.is_dumb_terminal and not notebook


def over_images(
    batches: Iterable[Batch],
    count: Callable[[Batch], int],
    total: int,
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Batch]:
    """The batches, with progress on standard error; ``count`` is the number of images of one."""
    console = Console(stderr=True)
    live, done = is_live(console), 0
    columns = (progress.BarColumn(), progress.MofNCompleteColumn(), progress.TextColumn("images"))
    start_s = last_s = clock()
    with progress.Progress(
        *columns, progress.TimeRemainingColumn(), console=console, disable=not live, transient=True
    ) as bar:
        task = bar.add_task("", total=total)
        for batch in batches:
            yield batch
            done += count(batch)
            bar.update(task, completed=done)
            if not live and clock() >= last_s + IMAGES_INTERVAL_S:
                last_s = clock()
                left = _duration((total - done) * (last_s - start_s) / done)
                announce(f"{done:,} of {total:,} images, {left} left")


class TrainProgress(AbstractContextManager["TrainProgress"]):
    """Progress display of a training run, for rank 0."""

    def __init__(
        self, total_steps: int, done_steps: int, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.console = Console()
        self._live = is_live(self.console)
        self._bar = progress.Progress(
            progress.SpinnerColumn(),
            progress.TextColumn("epoch {task.fields[epoch]}"),
            progress.BarColumn(bar_width=12),
            progress.MofNCompleteColumn(),
            progress.TextColumn("{task.fields[state]}"),
            progress.TextColumn("{task.fields[speed]}"),
            progress.TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self._live,
            transient=True,
            redirect_stderr=sys.stderr.isatty(),  # stderr in a file stays there
            speed_estimate_period=SPEED_WINDOW_S,
            get_time=clock,
        )
        self._clock, self._last_line_s = clock, -float("inf")
        self._start_s, self._start_step = clock(), done_steps
        self._steps = self._bar.add_task(
            "", total=total_steps, completed=done_steps, epoch=0, state="", speed=""
        )

    def advance(self, epoch: int, images: int) -> None:
        speed = self._bar.tasks[0].speed  # steps per second
        text = f"{speed * images:,.0f} images/s" if speed else ""
        self._bar.update(self._steps, advance=1, epoch=epoch, speed=text)

    def training(self, loss: float, error_pct: float) -> None:
        self._bar.update(self._steps, state=f"loss {loss:.3f}")
        if self._live or self._clock() < self._last_line_s + LINE_INTERVAL_S:
            return
        self._last_line_s = self._clock()
        task = self._bar.tasks[0]
        parts = [task.fields["speed"]]
        if task.speed and task.time_remaining:
            parts.append(f"{_duration(task.time_remaining)} left")
        line = f"step {task.completed:.0f}/{task.total:.0f}: loss {loss:.3f}"
        self._print(", ".join([line, f"error {error_pct:.1f}%", *filter(None, parts)]))

    def validating(self) -> None:
        self._bar.update(self._steps, state="validating", speed="", refresh=True)

    def validation(self, epoch: int, top1_error_pct: float, top5_error_pct: float | None) -> None:
        self._bar.update(self._steps, state="")
        errors = f"{top1_error_pct:.1f}% top-1"
        if top5_error_pct is not None:
            errors += f", {top5_error_pct:.1f}% top-5"
        self._print(f"epoch {epoch}: validation error {errors}")

    def _print(self, line: str) -> None:
        self.console.print(line, highlight=self._live, soft_wrap=True)

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._bar.stop()
        if error is None:
            steps = self._bar.tasks[0].completed - self._start_step
            unit = "step" if steps == 1 else "steps"
            self._print(f"{steps:,.0f} {unit} in {_duration(self._clock() - self._start_s)}")


def _duration(seconds: float) -> str:
    """Format as 1:02:03 or 4:05."""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
