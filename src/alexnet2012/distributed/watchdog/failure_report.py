"""Reports why a process failed: to the launcher that started it, or on standard error."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.process_env import current_process
from alexnet2012.utils.files import os_error_line
from alexnet2012.utils.text import printable_lines

FAILURES_DIR = "ALEXNET2012_FAILURES_DIR"  # the folder where our launcher reads the reports
RECORD = ".flight"  # suffix of a rank's flight record in that folder
# torch's launcher reports the exit code of the first process only, so a rank that lost a peer exits
# after it.
PEER_EXIT_DELAY_S = 1.0
EXIT_FAILURE = 1
EXIT_USER_ERROR = 2


class LostPeerError(RunError):
    """Another rank exited or runs another collective; ``ranks`` are at fault. Already reported."""

    def __init__(self, text: str, ranks: list[int]) -> None:
        super().__init__(text)
        self.ranks = ranks


@dataclass
class Failure:
    """The failure report of one rank."""

    rank: int
    text: str
    config_error: list[str] | None = None  # key, value and remedy of a ConfigError
    lost: list[int] | None = None  # ranks at fault, if this rank did not fail by itself


def failure_text(error: BaseException) -> str:
    """A line for users where there is one, else the traceback."""
    if isinstance(error, RunError):
        return str(error)
    return os_error_line(error) or "".join(traceback.format_exception(error))


def write_failure(error: BaseException, rank: int | None = None) -> int:
    """Write this process's failure report; returns its exit code."""
    rank = current_process().rank if rank is None else rank
    failure = Failure(rank, failure_text(error).strip())
    if isinstance(error, ConfigError):
        failure.config_error = [error.key, str(error.value), error.remedy]
    elif isinstance(error, LostPeerError):
        failure.lost = error.ranks
    if not _handed_over(failure):
        sys.stderr.write(printable_lines(f"alexnet2012: {failure.text}\n"))
        sys.stderr.flush()
    return EXIT_USER_ERROR if failure.config_error else EXIT_FAILURE


def _handed_over(failure: Failure) -> bool:
    """Write the report for our launcher; False if there is none, or its folder's disk is full."""
    if not (folder := os.environ.get(FAILURES_DIR)):
        return False
    path = Path(folder, f"{failure.rank}.json")
    try:
        path.with_suffix(".writing").write_text(json.dumps(asdict(failure)), encoding="utf-8")
        path.with_suffix(".writing").replace(path)
    except OSError:
        return False
    return True


def read_failures(folder: Path) -> list[Failure]:
    """Failure reports of all ranks that wrote one, lowest rank first."""
    files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    return [Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
