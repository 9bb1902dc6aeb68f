"""Records of a run: metrics.jsonl is the truth, wandb a view of it."""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from alexnet2012.choices import WandbMode
from alexnet2012.config import TrackingConfig
from alexnet2012.files import replace_text
from alexnet2012.mesh import log

Record = dict[str, Any]
FILES = ("metrics.jsonl", "timings.jsonl")
WANDB_ID = "wandb_id.txt"


class Tracker:
    """Writes each record to ``metrics.jsonl`` (or ``timings.jsonl``) and to one wandb run.

    ``metrics.jsonl`` holds only what two runs with the same seed have in common; seconds and
    images/s stand in ``timings.jsonl``. Made on rank 0 alone.
    """

    def __init__(
        self,
        config: TrackingConfig,
        run_dir: Path,
        settings: Record,
        *,
        resumed: Mapping[str, int] | None = None,
    ) -> None:
        """``resumed`` has the lines of each file that the checkpoint to go on from knows of."""
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self.lines = {f: _keep(run_dir / f, (resumed or {}).get(f, 0)) for f in FILES}
        self._wandb = None
        if config.wandb is not WandbMode.disabled:
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb  # takes a second: only where it is wanted

            online = config.wandb is WandbMode.online
            self._wandb = wandb.init(
                project=config.project,
                mode=config.wandb.value,
                dir=run_dir,
                id=_wandb_id(run_dir / WANDB_ID, new=not resumed),
                resume="allow" if online else None,  # offline, the id alone tells whose part it is
                name=run_dir.name,
                config=settings,
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )

    def metrics(self, kind: str, step: int, **values: float) -> None:
        self._write("metrics.jsonl", kind, step, values)

    def timings(self, kind: str, step: int, **values: float) -> None:
        self._write("timings.jsonl", kind, step, values)

    def sync(self) -> dict[str, int]:
        """All records are on the disk; returns the lines of each file, which a checkpoint keeps."""
        for name in FILES:
            with open(self.run_dir / name, "rb") as file:
                os.fsync(file.fileno())
        return dict(self.lines)

    def _write(self, name: str, kind: str, step: int, values: dict[str, float]) -> None:
        with open(self.run_dir / name, "a", encoding="utf-8") as out:
            out.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.lines[name] += 1
        if self._wandb is not None:
            self._wandb.log({f"{kind}/{key}": value for key, value in values.items()}, step=step)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._wandb is not None:
            self._wandb.finish(exit_code=0 if error is None else 1)


def read_records(path: Path) -> list[Record]:
    """The records of a .jsonl file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _keep(path: Path, count: int) -> int:
    """Forget what a run wrote after the checkpoint that it goes on from; returns what is left."""
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:count] if line.endswith("\n")]
    if len(kept) < count:
        log.warning("%s: %d of %d records are lost", path, count - len(kept), count)
    replace_text(path, "".join(kept))
    return len(kept)


def _wandb_id(file: Path, *, new: bool) -> str:
    """The name under which a run directory's run is known to wandb, whenever it goes on."""
    if new or not file.exists():
        replace_text(file, secrets.token_hex(4))
    return file.read_text(encoding="utf-8")
