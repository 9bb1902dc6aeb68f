"""The package's logger, which the ranks of a run share."""

from __future__ import annotations

import logging
import sys

from alexnet2012.utils.text import printable_lines

log = logging.getLogger("alexnet2012")


def announce(text: str) -> None:
    """Say on standard error what a command is about to do, which may take long in silence."""
    print(printable_lines(text), file=sys.stderr, flush=True)


class _StderrHandler(logging.StreamHandler):  # type: ignore[type-arg]
    """Logs to the current ``sys.stderr``, which a progress bar may have replaced meanwhile."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)

    def format(self, record: logging.LogRecord) -> str:
        return printable_lines(super().format(record))  # messages may hold names of files


def setup_logging(rank: int) -> None:
    """Log rank 0's messages to standard error; of the other ranks only warnings."""
    logging.basicConfig(format="%(message)s", handlers=[_StderrHandler()])
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)
