"""Records of a run: metrics.jsonl is the truth, wandb a view of it."""

from __future__ import annotations

import json
import os
from pathlib import Path
from types import TracebackType
from typing import Any

from alexnet2012.choices import WandbMode
from alexnet2012.config import TrackingConfig

Record = dict[str, Any]


class Tracker:
    """Writes each record to ``metrics.jsonl`` (or ``timings.jsonl``) and to one wandb run.

    ``metrics.jsonl`` holds only what two runs with the same seed have in common; seconds and
    images/s stand in ``timings.jsonl``. Made on rank 0 alone.
    """

    def __init__(
        self, config: TrackingConfig, run_dir: Path, settings: Record, *, resumed_step: int = 0
    ) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        for name in ("metrics", "timings"):
            _keep_until(run_dir / f"{name}.jsonl", resumed_step)
        self._wandb = None
        if config.wandb is not WandbMode.disabled:
            os.environ.setdefault("WANDB_SILENT", "true")
            import wandb  # takes a second: only where it is wanted

            self._wandb = wandb.init(
                project=config.project,
                mode=config.wandb.value,
                dir=run_dir,
                name=run_dir.name,
                config=settings,
                settings=wandb.Settings(console="off", silent=True, disable_git=True),
            )

    def metrics(self, kind: str, step: int, **values: float) -> None:
        self._write("metrics", kind, step, values)

    def timings(self, kind: str, step: int, **values: float) -> None:
        self._write("timings", kind, step, values)

    def _write(self, file: str, kind: str, step: int, values: dict[str, float]) -> None:
        with open(self.run_dir / f"{file}.jsonl", "a", encoding="utf-8") as out:
            out.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
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


def _keep_until(path: Path, step: int) -> None:
    """Forget what a run wrote after the checkpoint that it goes on from."""
    kept = [r for r in read_records(path) if r["step"] <= step] if step else []
    path.write_text("".join(json.dumps(record) + "\n" for record in kept), encoding="utf-8")
