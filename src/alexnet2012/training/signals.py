"""SIGTERM and SIGINT in training: a wish to leave; SIGINT again leaves at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType, TracebackType
from typing import Any

# A terminal tells every process of its group, and torch's launcher then passes on what it was told.
SAME_S = 1.0


class SignalWatcher:
    """While it is entered, ``number`` is the signal that asked to leave, 0 before there was one."""

    number = 0

    def __init__(self) -> None:
        self._former: dict[signal.Signals, Any] = {}
        self._first_s = 0.0

    def __enter__(self) -> SignalWatcher:
        if threading.current_thread() is threading.main_thread():  # no other may
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in a shell's background
                    self._former[number] = signal.signal(number, self._note)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number, former in self._former.items():
            signal.signal(number, former)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.number == signal.SIGINT and now - self._first_s > SAME_S:
            os._exit(128 + number)
        if not self.number:
            self.number, self._first_s = number, now
