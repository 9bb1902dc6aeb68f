"""What a person sees of a run: one live line in a terminal, plain lines in a log file."""

from __future__ import annotations

from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TextColumn,
    TimeRemainingColumn,
)


class TrainProgress:
    """Progress of a training run, for rank 0."""

    def __init__(self, total_steps: int, done_steps: int) -> None:
        self.console = Console()
        self._bar = Progress(
            SpinnerColumn(),
            TextColumn("epoch {task.fields[epoch]}"),
            BarColumn(bar_width=16),
            MofNCompleteColumn(),
            TextColumn("{task.fields[state]}"),
            TextColumn("{task.fields[speed]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=not self.console.is_terminal,
            speed_estimate_period=30,
        )
        self._steps = self._bar.add_task(
            "", total=total_steps, completed=done_steps, epoch=0, state="", speed=""
        )

    def advance(self, epoch: int, pictures: int) -> None:
        """One step of ``pictures`` pictures is done."""
        speed = self._bar.tasks[0].speed  # steps per second
        text = f"{speed * pictures:.0f} images/s" if speed else ""
        self._bar.update(self._steps, advance=1, epoch=epoch, speed=text)

    def training(self, step: int, loss: float, error_pct: float) -> None:
        self._bar.update(self._steps, state=f"loss {loss:.3f}")
        if not self.console.is_terminal:
            self.console.print(f"step {step}: loss {loss:.3f}, training error {error_pct:.1f}%")

    def validation(self, epoch: int, top1_error_pct: float, top5_error_pct: float) -> None:
        self.console.print(
            f"epoch {epoch}: validation error "
            f"{top1_error_pct:.1f}% top-1, {top5_error_pct:.1f}% top-5"
        )

    def __enter__(self) -> TrainProgress:
        self._bar.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._bar.stop()
