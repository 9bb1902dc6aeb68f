"""Signals in training: the first is a wish, a second SIGINT an order."""

from __future__ import annotations

import os
import signal
import threading

import pytest

from alexnet2012.training import signals
from alexnet2012.training.signals import SignalWatcher


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_is_noted_and_the_former_handlers_come_back(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with SignalWatcher() as noted:
        assert noted.number == 0
        signal.raise_signal(number)
        assert noted.number == number
        signal.raise_signal(number)  # at once: passed on by a launcher
    assert signal.getsignal(number) == before


def test_the_first_signal_is_the_one_that_counts() -> None:
    with SignalWatcher() as noted:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGINT)
        assert noted.number == signal.SIGTERM


def test_a_second_sigint_leaves_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signals, "SAME_S", -1.0)
    child = os.fork()
    if child == 0:
        with SignalWatcher():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 128 + signal.SIGINT


def test_another_thread_than_the_main_one_leaves_signals_alone() -> None:
    found = []

    def enter() -> None:
        with SignalWatcher() as noted:
            found.append(noted.number)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert found == [0]
