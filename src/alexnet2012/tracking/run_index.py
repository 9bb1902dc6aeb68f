"""Index of the runs below a folder: state, errors and speed, read from their directories.

A directory that cannot be read is listed with the reason.
"""

from __future__ import annotations

import fcntl
import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexnet2012.checkpoint.manifest import first_line, to_plain
from alexnet2012.checkpoint.run_dir import LOCK, SETTINGS, SUMMARY, with_defaults
from alexnet2012.config.compose import compose_config
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import TrainConfig
from alexnet2012.utils.metrics import TOP_K
from alexnet2012.utils.untrusted import (
    open_regular,
    parse_json,
    read_json,
    read_text,
    read_yaml,
)

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
DEPARTED = "left_band"  # kind of the record of leaving a reference band
MAX_LINE_BYTES = 1 << 16  # of the record of a start
# Settings that say where and how a run executes, not what it trains; not listed as changes.
_NOT_LISTED = (Role.input, Role.placement, Role.world_size, Role.checkpointing, Role.logging)


class RunState(Enum):
    """State of a run, in the order of sorting."""

    running = "running"
    interrupted = "interrupted"
    finished = "finished"
    damaged = "damaged"


class ValidationErrors(NamedTuple):
    """Errors of a validation in %, and its number of images if known.

    There is no top-5 error of fewer than six classes, which would be 0 for any network.
    """

    top1_pct: float
    top5_pct: float | None
    pictures: int | None


@dataclass(frozen=True)
class RunInfo:
    """Contents of a run directory; None for what it does not have."""

    path: Path
    state: RunState
    step: int = 0
    total_steps: int | None = None
    started: datetime | None = None  # the first time
    recipe: str = ""
    changed: tuple[str, ...] = ()  # differences from the defaults of the recipe, as overrides
    errors: ValidationErrors | None = None  # of the last validation
    images_per_s: float | None = None
    problem: str | None = None  # why the run counts as damaged
    band: dict[str, Any] | None = None  # its reference band, as in a summary; None if it has none

    @property
    def left_band(self) -> dict[str, Any] | None:
        """Where the run left its band, or that it is at chance."""
        left = None if self.band is None else self.band.get("left")
        return left if isinstance(left, dict) and "progress_pct" in left else None

    def as_json(self) -> dict[str, Any]:
        top1_pct, top5_pct, pictures = self.errors or (None, None, None)
        return {
            "run": str(self.path),
            "state": self.state.value,
            "step": self.step,
            "total_steps": self.total_steps,
            "begun": None if self.started is None else self.started.isoformat(),
            "recipe": self.recipe,
            "changed": list(self.changed),
            "top1_error_pct": top1_pct,
            "top5_error_pct": top5_pct,
            "pictures": pictures,
            "images_per_s": self.images_per_s,
            "band": self.band,
            "problem": self.problem,
        }


class DamagedRunError(Exception):
    """A run directory that cannot be read; the message says why."""


def find_runs(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Run directories at or below a folder, and other folders with why they are no runs."""
    runs: list[Path] = []
    others: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        others.append((Path(error.filename), error.strerror or "cannot be read"))

    for name, folders, files in os.walk(root, onerror=unreadable):
        folder = Path(name)
        folders.sort()
        if any(name in files for name in (LOCK, METRICS, SUMMARY, SETTINGS)):
            runs.append(folder)
            folders.clear()
        elif "manifest.json" in files:
            others.append((folder, "is a store of images"))
            folders.clear()
        else:
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            if not folders:
                others.append((folder, "contains no run"))
    return runs, others


def read_run(folder: Path) -> RunInfo:
    """Read a run directory; if it cannot be read, its state is damaged."""
    state = RunState.running if _is_locked(folder) else RunState.interrupted
    try:
        settings = load_settings(folder)
        summary = load_summary(folder)
        last = last_records(folder / METRICS, ("train", "validation"))
        last |= last_records(folder / TIMINGS, ("begun", "pace", DEPARTED))
    except DamagedRunError as error:
        return RunInfo(folder, RunState.damaged, started=_started(folder), problem=str(error))
    if summary and state is RunState.interrupted:
        state = RunState.finished
    step = max((record["step"] for record in last.values()), default=0)
    return RunInfo(
        path=folder,
        state=state,
        step=summary.get("steps", step),
        total_steps=last.get("begun", {}).get("total_steps", summary.get("steps")),
        started=_started(folder),
        recipe=str(settings["recipe"]["name"]),
        changed=_changed(folder, settings),
        errors=_errors(summary or last.get("validation", {})),
        band=_band(summary, last.get(DEPARTED)),
        images_per_s=summary.get("images_per_s", last.get("pace", {}).get("images_per_s")),
    )


def load_settings(folder: Path) -> dict[str, Any]:
    """Settings of a run, nested; DamagedRunError if they are not of a training run."""
    settings = _loaded(folder / SETTINGS)
    if not isinstance(settings, dict) or not isinstance(settings.get("recipe"), dict):
        raise DamagedRunError(f"{SETTINGS} does not belong to a training run")
    if "name" not in settings["recipe"]:
        raise DamagedRunError(f"{SETTINGS} does not name a recipe")
    return settings


def load_summary(folder: Path) -> dict[str, Any]:
    """Summary of a run; empty if it has not finished."""
    if not (folder / SUMMARY).exists():
        return {}
    summary = _loaded(folder / SUMMARY)
    if not isinstance(summary, dict):
        raise DamagedRunError(f"{SUMMARY} does not belong to a training run")
    return summary


def last_records(file: Path, kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The last record of each kind; an incomplete last line is ignored."""
    records: dict[str, dict[str, Any]] = {}
    missing = set(kinds)
    if not file.exists():
        return records
    try:
        lines = read_text(file).rpartition("\n")[0].splitlines()
        while lines and missing:
            record = parse_json(lines.pop())
            if (kind := record["kind"]) in missing:
                records[kind] = record
                missing.remove(kind)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRunError(f"{file.name} cannot be read ({first_line(error)})") from error
    return records


def _loaded(file: Path) -> Any:
    try:
        return read_json(file) if file.suffix == ".json" else read_yaml(file)
    except FileNotFoundError:
        raise DamagedRunError(f"has no {file.name}") from None
    except (OSError, ValueError) as error:
        raise DamagedRunError(f"{file.name} cannot be read ({first_line(error)})") from error


def _is_locked(folder: Path) -> bool:
    """Whether a process is training in the directory."""
    try:
        with open_regular(folder / LOCK) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (OSError, ValueError):  # no such file, or the file system does not support locks
        return False
    return False


def _started(folder: Path) -> datetime | None:
    """Time of the first start; without its record, the oldest modification time of a file."""
    try:
        with open_regular(folder / TIMINGS) as file:
            first = parse_json(file.readline(MAX_LINE_BYTES).decode())
        started = datetime.fromtimestamp(float(first["unix_s"])).astimezone()
    except (OSError, ValueError, KeyError, TypeError, OverflowError):
        times = [f.stat().st_mtime for f in (folder / LOCK, folder / SETTINGS) if f.exists()]
        if not times:
            return None
        started = datetime.fromtimestamp(min(times)).astimezone()
    return started


def _band(summary: dict[str, Any], left: dict[str, Any] | None) -> dict[str, Any] | None:
    if isinstance(of_summary := summary.get("band"), dict):
        return of_summary
    return None if left is None else {"left": left}


def _errors(record: dict[str, Any]) -> ValidationErrors | None:
    try:
        top1 = float(record["top1_error_pct"])
        has_top5 = "top5_error_pct" in record and record.get("classes", math.inf) > TOP_K
        top5 = float(record["top5_error_pct"]) if has_top5 else None
    except (KeyError, TypeError, ValueError):
        return None
    return ValidationErrors(top1, top5, record.get("pictures"))


def _changed(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """The overrides of the command if they gave these settings, else each changed value."""
    try:
        composed = OmegaConf.create(_loaded(folder / ".hydra" / "config.yaml"))
        resolved = OmegaConf.to_container(composed, resolve=True)
        overrides = _loaded(folder / ".hydra" / "overrides.yaml")
        same = _listed(with_defaults(resolved)) == _listed(with_defaults(settings))
        if same and isinstance(overrides, list):
            keys = ((text, text.partition("=")[0]) for text in map(str, overrides))
            return tuple(text for text, key in keys if key != "recipe" and _is_listed(key))
    except (DamagedRunError, OmegaConfBaseException, ValueError, TypeError):
        pass  # no such files: under torchrun Hydra does not write them
    values, defaults = _listed(with_defaults(settings)), _defaults(str(settings["recipe"]["name"]))
    changed = {key: value for key, value in values.items() if value != defaults.get(key)}
    return tuple(f"{k}={'null' if v is None else v}" for k, v in changed.items())


def _listed(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if _is_listed(key)}


def _is_listed(key: str) -> bool:
    """Whether a setting, or a group such as ``tracking``, is listed as a change."""
    return key.split(".")[0] != "hydra" and role_of(TrainConfig, key) not in _NOT_LISTED


@lru_cache
def _defaults(recipe: str) -> dict[str, Any]:
    try:
        config, _ = compose_config("train", TrainConfig, [f"recipe={recipe}"])
    except Exception:  # an unknown recipe: all of its settings are listed
        config = TrainConfig()
    return _listed(with_defaults(to_plain(config)))
