"""Output that outlives its terminal: a full disk or a closed pipe behind it ends no run."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class PersistentStream:
    """A text stream on which writing never fails; ``error`` is the first failure."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.error: OSError | None = None

    def write(self, text: str) -> int:
        try:
            self._stream.write(text)
        except OSError as error:
            self.error = self.error or error
        return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self.error = self.error or error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def persistent_output() -> tuple[PersistentStream, PersistentStream]:
    """Make ``sys.stdout`` and ``sys.stderr`` streams on which writing never fails."""
    streams = []
    for stream in (sys.stdout, sys.stderr):  # None if the descriptor is closed
        streams.append(PersistentStream(stream or open(os.devnull, "w")))  # noqa: SIM115
    sys.stdout, sys.stderr = streams
    return streams[0], streams[1]


@contextmanager
def outliving_terminal() -> Iterator[PersistentStream]:
    """Within, output never fails; yields standard output, whose ``error`` says whether it did."""
    before = sys.stdout, sys.stderr
    streams = persistent_output()
    try:
        yield streams[0]
    finally:
        for stream in streams:
            stream.flush()
            if stream.error is not None:  # the interpreter flushes at exit: what is left would fail
                with open(os.devnull, "w") as null:
                    os.dup2(null.fileno(), stream.fileno())
        sys.stdout, sys.stderr = before
