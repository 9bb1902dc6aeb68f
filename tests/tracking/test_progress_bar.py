"""Progress of training in a terminal, a log file and a notebook."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest
from programs import in_terminal
from rich.console import Console

from alexnet2012.tracking import progress_bar
from alexnet2012.tracking.progress_bar import LINE_INTERVAL_S, TrainProgress, is_live, over_images


class Clock:
    """A clock that the test sets."""

    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


def printed_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], step_s: float, steps: int
) -> list[str]:
    """The lines in the log file of a run that records every step."""
    clock = Clock()
    with TrainProgress(steps, 0, clock) as display:
        for step in range(1, steps + 1):
            clock.now_s += step_s
            display.advance(0, 128)
            display.training(6.9078 / step, 99.94)
        display.validating()
        display.validation(0, 99.94, 98.5)
    return capsys.readouterr().out.splitlines()


def test_progress_over_images_is_a_line_every_10_seconds_on_standard_error(
    capsys: pytest.CaptureFixture[str],
) -> None:
    clock = Clock()
    for batch in over_images([[0] * 64] * 5, len, 320, clock):
        assert len(batch) == 64
        clock.now_s += 6
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "128 of 320 images, 0:18 left\n256 of 320 images, 0:06 left\n"


def test_there_is_no_top5_error_of_fewer_than_six_classes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    with TrainProgress(1, 0, Clock()) as display:
        display.validation(0, 50.0, None)
    assert "epoch 0: validation error 50.0% top-1\n" in capsys.readouterr().out


def test_a_log_file_gets_a_line_every_30_seconds(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    first, *more, validation, last = printed_lines(monkeypatch, capsys, step_s=1.0, steps=95)
    assert first == "step 1/95: loss 6.908, error 99.9%"
    assert [line.split(":")[0] for line in more] == ["step 31/95", "step 61/95", "step 91/95"]
    assert more[0].endswith("loss 0.223, error 99.9%, 128 images/s, 1:04 left")
    assert validation == "epoch 0: validation error 99.9% top-1, 98.5% top-5"
    assert last == "95 steps in 1:35"


def test_each_slow_step_has_a_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert len(printed_lines(monkeypatch, capsys, step_s=LINE_INTERVAL_S, steps=5)) == 5 + 2


def test_the_lines_of_a_long_run_fit_80_columns(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock()
    with TrainProgress(1_000_000, 900_000, clock) as display:
        for _ in range(3):
            clock.now_s += LINE_INTERVAL_S
            display.advance(89, 400_000)
            display.training(6.9078, 99.94)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4
    assert max(map(len, lines)) <= 80
    assert "left" in lines[2]


def test_the_bar_of_a_long_run_fits_80_columns(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, screen = Clock(), io.StringIO()
    for name in progress_bar.NOTEBOOKS:
        monkeypatch.delenv(name, raising=False)
    made = lambda: Console(file=screen, force_terminal=True, width=80, _environ={"TERM": "xterm"})  # noqa: E731
    monkeypatch.setattr(progress_bar, "Console", made)
    with TrainProgress(1_000_000, 900_000, clock) as display:
        for _ in range(3):
            clock.now_s += 0.01
            display.advance(89, 128)
            display.training(6.9078, 99.94)
            display._bar.refresh()
    drawn = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", screen.getvalue())
    (bar, *_) = [line for line in re.split(r"[\r\n]+", drawn) if "900003/1000000" in line]
    assert "loss 6.908 12,800 images/s" in bar
    assert "…" not in bar  # nothing was cut
    assert len(bar.rstrip()) <= 80


@pytest.mark.parametrize(
    ("terminal", "environment", "live"),
    [
        (True, {}, True),
        (False, {}, False),
        (True, {"TERM": "dumb"}, False),
        (True, {"JPY_PARENT_PID": "1"}, False),  # `!python -m …` in a cell
        (True, {"COLAB_RELEASE_TAG": "r"}, False),
    ],
)
def test_lines_are_redrawn_only_in_a_terminal(
    monkeypatch: pytest.MonkeyPatch, terminal: bool, environment: dict[str, str], live: bool
) -> None:
    for name in progress_bar.NOTEBOOKS:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_live(Console(force_terminal=terminal, file=io.StringIO())) is live


def test_lines_are_not_redrawn_in_a_notebook() -> None:
    assert not is_live(Console(force_jupyter=True, file=io.StringIO()))


def test_a_log_message_does_not_mix_with_the_bar(tmp_path: Path) -> None:
    program = """
from alexnet2012.utils.logs import log, setup_logging
from alexnet2012.tracking.progress_bar import TrainProgress
setup_logging(0)
with TrainProgress(10, 0) as display:
    for _ in range(2):
        display.advance(0, 128)
        display.training(2.5, 50.0)
        display._bar.refresh()
        log.info("step %d is saved", 1)
"""
    drawn = in_terminal([sys.executable, "-c", program], tmp_path)
    assert drawn.count("step 1 is saved") == 2
    assert any("loss 2.500" in line for line in drawn)
