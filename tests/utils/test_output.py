"""What a command prints and writes: names without control characters, errors of the machine."""

from __future__ import annotations

import errno
import logging
import os
import resource
import sys
import threading
import time
from pathlib import Path

import pytest

from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.schema import ConfigError, ReproduceConfig, RunError
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.watchdog import watchdog
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR, write_failure
from alexnet2012.ledger.reproduction import Reproduce
from alexnet2012.utils import logs
from alexnet2012.utils.files import naming, os_error_line, replace_text
from alexnet2012.utils.interrupt import InterruptError
from alexnet2012.utils.text import printable_lines, say
from alexnet2012.utils.threads import map_in_background

HOSTILE = "a\x1b]0;title\x07\x9b31m\u202eb\rc"


def ended(application: object) -> int:
    with pytest.raises(SystemExit) as ending:
        exit_on_error(application)  # type: ignore[arg-type]
    assert isinstance(ending.value.code, int)
    return ending.value.code


def raising(error: BaseException) -> object:
    def application() -> None:
        raise error

    return application


def test_every_way_to_the_terminal_escapes_names(capfd: pytest.CaptureFixture[str]) -> None:
    say(HOSTILE)
    logs._StderrHandler().handle(logging.makeLogRecord({"msg": "%s: %s", "args": (HOSTILE,) * 2}))
    write_failure(RunError(HOSTILE), 0)
    for error in (
        ConfigError("key", HOSTILE, HOSTILE),
        RunError(HOSTILE),
        OSError(errno.ENOENT, "No such file or directory", HOSTILE),
    ):
        ended(raising(error))
    printed = "".join(capfd.readouterr())
    assert printed.count("title") == 8
    assert all(c.isprintable() or c == "\n" for c in printed)


def test_lines_stay_lines() -> None:
    assert printable_lines("a\n  b\tc") == "a\n  b\\tc"


@pytest.mark.parametrize(
    "number", ["ENOSPC", "EDQUOT", "EROFS", "EMFILE", "ENFILE", "EIO", "EFBIG"]
)
@pytest.mark.parametrize("named", [True, False])
def test_an_error_of_the_machine_is_one_line_with_a_place_and_a_remedy(
    capfd: pytest.CaptureFixture[str], number: str, named: bool, tmp_path: Path
) -> None:
    error = OSError(getattr(errno, number), os.strerror(getattr(errno, number)))
    if named:
        error.filename = str(tmp_path / "x")
    assert ended(raising(error)) == 2
    line = capfd.readouterr().err
    assert line.count("\n") == 1 and os.strerror(getattr(errno, number)) in line and ";" in line
    where = (
        str(tmp_path / "x") if named else "this process" if "FILE" in number else str(Path.cwd())
    )
    assert where in line


def test_an_error_without_a_number_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="a bug"):
        exit_on_error(raising(OSError("a bug")))  # type: ignore[arg-type]


def test_a_rank_that_meets_an_error_of_the_machine_reports_its_line() -> None:
    def worker() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "metrics.jsonl")

    with pytest.raises(RunError, match=r"^metrics\.jsonl: No space left on device; free"):
        launch(worker, 1)


def test_an_error_of_the_machine_in_the_words_of_a_library_is_one_line() -> None:
    def worker() -> None:
        raise RuntimeError("[enforce fail at socket.cc:24] rv != -1. socket: Too many open files")

    with pytest.raises(RunError, match=r"^this process: Too many open files; raise the limit"):
        launch(worker, 1)


@pytest.mark.parametrize(
    ("soft", "hard", "raised"), [(12, 100, 100), (12, 10**6, 4096), (12, 12, None), (-1, -1, -1)]
)
def test_the_limit_on_open_files_is_raised_or_reported(
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    soft: int,
    hard: int,
    raised: int | None,
) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, limit: limits.append(limit))
    if raised is None:
        assert ended(raising(AssertionError())) == 2
        line = "alexnet2012: ulimit -n=12: at least 64 open files are needed; raise the hard limit"
        assert capfd.readouterr().err == line + "\n"
        return
    exit_on_error(lambda: None)
    assert limits[-1] == (raised, hard)


def test_a_file_that_cannot_be_written_is_named_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a.json").write_text("old")

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space") as caught:
        replace_text(tmp_path / "a.json", "new")
    assert (os_error_line(caught.value) or "").startswith(f"{tmp_path}/.a.json.writing: No space")
    assert [file.name for file in tmp_path.iterdir()] == ["a.json"]
    assert (tmp_path / "a.json").read_text() == "old"
    with pytest.raises(OSError, match="No space") as caught, naming(Path("/dev/full")):
        Path("/dev/full").write_text("x")
    assert caught.value.filename == "/dev/full"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_a_full_disk_behind_the_terminal_ends_no_command(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], stream: str
) -> None:
    done = []

    def application() -> None:
        for _ in range(3):
            print("x" * 10_000, file=getattr(sys, stream), flush=True)
        done.append(True)

    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, stream, full)
        if stream == "stdout":  # a result may be lost
            assert ended(application) == 1
            assert "standard output: No space left on device" in capfd.readouterr().err
        else:
            exit_on_error(application)
        assert done == [True] and getattr(sys, stream) is full
        full.close()  # nothing is left in it that could fail


def test_a_reader_that_has_gone_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    with os.fdopen(write_end, "w") as pipe:
        monkeypatch.setattr(sys, "stdout", pipe)
        exit_on_error(lambda: sys.stdout.write("x") and sys.stdout.flush())  # type: ignore[arg-type]


def test_a_command_runs_without_any_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    for stream in ("stdout", "stderr"):
        monkeypatch.setattr(sys, stream, None)  # as with >&-
    exit_on_error(lambda: sys.stdout.write("x") and sys.stderr.flush())  # type: ignore[arg-type]
    assert sys.stdout is None


def test_errors_of_what_a_signal_broke_off_are_not_reported(
    capfd: pytest.CaptureFixture[str],
) -> None:
    def application() -> None:
        import signal

        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:  # as NumPy does while it is imported
            raise ImportError("cannot load module more than once per process") from None

    assert ended(application) == 130
    assert capfd.readouterr().err == "alexnet2012: interrupted\n"


def test_code_that_survives_failures_does_not_survive_a_wish_to_end(tmp_path: Path) -> None:
    """As a reproduction, whose other parts run although one of them fails."""

    def interrupted() -> None:
        raise InterruptError(15)

    reproduction = Reproduce(ReproduceConfig(out=str(tmp_path)))
    with pytest.raises(InterruptError):
        reproduction._part("a part", interrupted)
    assert reproduction.results["warnings"] == []


def test_whoever_stops_reading_results_waits_for_no_thread() -> None:
    never = threading.Event()
    begun: list[int] = []

    def work(number: int) -> int:
        begun.append(number)
        if number:
            never.wait()
        return 10 * number

    results = map_in_background(work, range(100), 2)
    started_s = time.monotonic()
    assert next(results) == 0
    results.close()  # type: ignore[attr-defined]
    assert time.monotonic() - started_s < 5
    never.set()
    time.sleep(0.05)
    assert len(begun) <= 3  # the others were cancelled
    assert list(map_in_background(lambda n: n + 1, range(5), 3)) == [1, 2, 3, 4, 5]
    with pytest.raises(ZeroDivisionError):
        list(map_in_background(lambda n: 1 // n, [1, 0], 1))


def test_a_flight_record_for_which_the_disk_has_no_space_is_kept_in_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setenv(FAILURES_DIR, str(tmp_path))
    os.close(watchdog._record_file(0))
    assert (tmp_path / "0.flight").stat().st_blocks * 512 >= watchdog.SIZE  # not sparse
    monkeypatch.setattr(os, "posix_fallocate", full)
    descriptor = watchdog._record_file(1)
    assert os.fstat(descriptor).st_size == watchdog.SIZE
    os.close(descriptor)
    assert [file.name for file in tmp_path.iterdir()] == ["0.flight"]


def test_a_report_for_which_the_disk_has_no_space_is_printed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(FAILURES_DIR, str(tmp_path / "removed"))
    assert write_failure(RunError("the cause"), 0) == 1
    assert capfd.readouterr().err == "alexnet2012: the cause\n"
