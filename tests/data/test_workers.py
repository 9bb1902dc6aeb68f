"""Worker processes: ordered results, exceptions, and no hang after a worker dies."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest

from alexnet2012.config.schema import RunError
from alexnet2012.data.preparation.workers import ordered_map

MANY = 4 << 20  # bytes, more than a pipe holds


def slow_square(number: int) -> int:
    time.sleep(0.01 * (number % 3))
    return number**2


def fails_at_five(number: int) -> int:
    if number == 5:
        raise OSError(28, "no space", f"file-{number}")
    return number


def dies_at_five(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def large(number: int) -> np.ndarray:
    return np.full(MANY, number, np.uint8)


def pid(_: int) -> int:
    return os.getpid()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("count", [0, 1, 20])
def test_results_come_in_order_with_their_jobs(workers: int, count: int) -> None:
    results = list(ordered_map(slow_square, iter(range(count)), workers))
    assert results == [(number, number**2) for number in range(count)]
    assert multiprocessing.active_children() == []


def test_every_worker_is_used_and_none_is_this_process() -> None:
    used = {process for _, process in ordered_map(pid, range(10), 3)}
    assert len(used) == 3
    assert os.getpid() not in used


@pytest.mark.parametrize("workers", [1, 2])
def test_an_exception_of_a_job_is_raised_after_the_preceding_results(workers: int) -> None:
    results = ordered_map(fails_at_five, range(20), workers)
    assert [next(results)[1] for _ in range(5)] == [0, 1, 2, 3, 4]
    with pytest.raises(OSError, match="no space") as error:
        next(results)
    assert error.value.filename == "file-5"
    assert multiprocessing.active_children() == []


def test_a_killed_worker_is_an_error_with_a_remedy() -> None:
    results = ordered_map(dies_at_five, range(50), 2)
    with pytest.raises(RunError, match=r"a worker was killed, .*; use fewer workers"):
        list(results)
    assert multiprocessing.active_children() == []


def test_a_worker_killed_while_sending_is_an_error() -> None:
    results = ordered_map(large, range(8), 2)
    assert next(results)[1][-1] == 0
    time.sleep(0.3)  # by now the second worker is blocked on sending
    victim = max(multiprocessing.active_children(), key=lambda process: process.pid or 0)
    assert victim.pid is not None
    os.kill(victim.pid, signal.SIGKILL)
    with pytest.raises(RunError, match="a worker was killed"):
        list(results)


def test_closing_the_generator_ends_the_workers() -> None:
    results = ordered_map(large, range(100), 2)
    next(results)
    results.close()
    assert multiprocessing.active_children() == []
