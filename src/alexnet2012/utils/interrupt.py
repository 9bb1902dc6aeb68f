"""How SIGTERM and SIGINT end a command: at once while it imports, later after its cleanup."""

from __future__ import annotations

import signal
import threading
from signal import Signals
from types import FrameType
from typing import NoReturn


class InterruptError(BaseException):
    """A signal asks this process to end; state that can be saved has been saved.

    Like KeyboardInterrupt it is no Exception: code that survives failures must not survive it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(f"received {Signals(number).name}")
        self.number = Signals(number)


received: list[Signals] = []  # by this process, since :func:`raise_signals`


def end_at_once_on_sigint() -> None:
    """Until :func:`raise_signals`, Ctrl-C ends the process without a traceback.

    A KeyboardInterrupt within an import may surface as any other error.
    """
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not in background jobs
        signal.signal(signal.SIGINT, signal.SIG_DFL)


def raise_signals() -> None:
    """SIGTERM raises InterruptError from here on, and SIGINT KeyboardInterrupt."""
    received.clear()
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, _raise)


def _raise(number: int, frame: FrameType | None) -> NoReturn:
    received.append(Signals(number))
    raise KeyboardInterrupt if number == signal.SIGINT else InterruptError(number)
