"""SIGTERM and SIGINT during training: save and exit; a second SIGINT exits at once."""

from __future__ import annotations

import os
import signal
import threading
import time
from types import FrameType
from typing import Any

# A terminal signals every process of its group, and torch's launcher forwards the signal once more.
DUPLICATE_WITHIN_S = 1.0


class SignalWatcher:
    """Context manager that catches signals: ``number`` is the first one received, 0 if none."""

    number = 0

    def __init__(self) -> None:
        self._previous: dict[signal.Signals, Any] = {}
        self._first_s = 0.0

    def __enter__(self) -> SignalWatcher:
        # Python allows only the main thread to install handlers.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:  # as in background jobs
                    self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if number == self.number == signal.SIGINT and now - self._first_s > DUPLICATE_WITHIN_S:
            os._exit(128 + number)
        if not self.number:
            self.number, self._first_s = number, now
