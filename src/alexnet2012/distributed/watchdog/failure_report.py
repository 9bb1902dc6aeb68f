"""Why a process of a run ended: told to the launcher that started it, or on standard error."""

from __future__ import annotations

import json
import os
import sys
import traceback
from dataclasses import asdict, dataclass
from pathlib import Path

from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.process_env import current_process

FAILURES_DIR = "ALEXNET2012_CAUSES"  # the folder where our own launcher looks for them
RECORD = ".flight"  # suffix of a rank's flight record there
AFTER_S = 1.0  # torch's launcher says how a rank ended of the first only: not who lost a peer
EXIT_FAILURE = 1
EXIT_MISTAKE = 2


class LostPeerError(RunError):
    """Another rank is gone or does something else; ``ranks`` are at fault. Has been told."""

    def __init__(self, text: str, ranks: list[int]) -> None:
        super().__init__(text)
        self.ranks = ranks


@dataclass(frozen=True)
class Failure:
    """What a rank left behind when it could not go on."""

    rank: int
    text: str
    mistake: list[str] | None = None  # key, value and remedy of a ConfigError
    lost: list[int] | None = None  # the ranks that it lost, where it did not fail by itself


def write_failure(error: BaseException, rank: int | None = None) -> int:
    """Tell whoever started this process, and return the code to end with."""
    text = str(error) if isinstance(error, RunError) else "".join(traceback.format_exception(error))
    cause = Failure(
        rank=current_process().rank if rank is None else rank,
        text=text.strip(),
        mistake=[error.key, str(error.value), error.remedy]
        if isinstance(error, ConfigError)
        else None,
        lost=error.ranks if isinstance(error, LostPeerError) else None,
    )
    if folder := os.environ.get(FAILURES_DIR):
        path = Path(folder, f"{cause.rank}.json")
        path.with_suffix(".writing").write_text(json.dumps(asdict(cause)), encoding="utf-8")
        path.with_suffix(".writing").replace(path)
    else:
        sys.stderr.write(f"alexnet2012: {cause.text}\n")
        sys.stderr.flush()
    return EXIT_MISTAKE if cause.mistake else EXIT_FAILURE


def read_failures(folder: Path) -> list[Failure]:
    """What the ranks left, lowest first."""
    files = sorted(folder.glob("[0-9]*.json"), key=lambda file: int(file.stem))
    return [Failure(**json.loads(file.read_text(encoding="utf-8"))) for file in files]
