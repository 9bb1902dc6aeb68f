"""Signals in training: the first requests an exit, a second SIGINT exits at once."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from alexnet2012.training import signals
from alexnet2012.training.signals import SignalWatcher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_recorded_and_the_previous_handlers_are_restored(
    number: signal.Signals,
) -> None:
    before = signal.getsignal(number)
    with SignalWatcher() as watcher:
        assert watcher.number == 0
        signal.raise_signal(number)
        assert watcher.number == number
        signal.raise_signal(number)  # at once: forwarded by a launcher
    assert signal.getsignal(number) == before


def test_only_the_first_signal_is_recorded() -> None:
    with SignalWatcher() as watcher:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert watcher.number == signal.SIGTERM


def test_a_second_sigint_exits_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "DUPLICATE_WITHIN_S", -1.0)
    child = os.fork()
    if child == 0:
        with SignalWatcher():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGINT


def test_threads_other_than_the_main_one_install_no_handlers() -> None:
    numbers = []

    def enter() -> None:
        with SignalWatcher() as watcher:
            numbers.append(watcher.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert numbers == [0]
