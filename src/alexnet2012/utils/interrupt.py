"""The exception by which SIGTERM and SIGINT end a command after its cleanup."""

from __future__ import annotations

from signal import Signals


class InterruptError(Exception):
    """A signal asks this process to end; state that can be saved has been saved."""

    def __init__(self, number: int) -> None:
        super().__init__(f"received {Signals(number).name}")
        self.number = Signals(number)
