"""Runs below a folder, as their directories tell of them: state, errors, speed.

Everything is read from files, whatever wrote them; a directory that cannot be read is named.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.checkpoint.run_dir import LOCK, SETTINGS, SUMMARY, flatten, with_defaults
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import TrainConfig

METRICS, TIMINGS = "metrics.jsonl", "timings.jsonl"
# Where a run lies and how it is watched makes no other run of it.
_PLACES = re.compile(
    r"(hydra|tracking|checkpoint|mesh)(\.|$)|data\.(source|store|decode\w*)$|resume$"
)


class RunState(Enum):
    """How a run stands; the order is that of sorting."""

    running = "running"
    interrupted = "interrupted"
    finished = "finished"
    damaged = "damaged"


@dataclass(frozen=True)
class ValidationErrors:
    """Of a validation, per cent, and the number of pictures if it is known."""

    top1_pct: float
    top5_pct: float
    pictures: int | None


@dataclass(frozen=True)
class RunInfo:
    """What a run directory tells; None where it does not."""

    path: Path
    state: RunState
    step: int = 0
    total_steps: int | None = None
    begun: datetime | None = None
    recipe: str = ""
    changed: tuple[str, ...] = ()  # what differs from the defaults of the recipe, as overrides
    errors: ValidationErrors | None = None  # of the last validation
    images_per_s: float | None = None
    problem: str | None = None  # of a damaged one

    def as_json(self) -> dict[str, Any]:
        return {
            "run": str(self.path),
            "state": self.state.value,
            "step": self.step,
            "total_steps": self.total_steps,
            "begun": None if self.begun is None else self.begun.isoformat(),
            "recipe": self.recipe,
            "changed": list(self.changed),
            "top1_error_pct": None if self.errors is None else self.errors.top1_pct,
            "top5_error_pct": None if self.errors is None else self.errors.top5_pct,
            "pictures": None if self.errors is None else self.errors.pictures,
            "images_per_s": self.images_per_s,
            "problem": self.problem,
        }


class DamagedRunError(Exception):
    """What of a run directory cannot be read."""


def find(root: Path) -> tuple[list[Path], list[tuple[Path, str]]]:
    """Run directories below a folder, itself among them, and what else was met there and why."""
    runs: list[Path] = []
    others: list[tuple[Path, str]] = []

    def unreadable(error: OSError) -> None:
        others.append((Path(error.filename), error.strerror or "cannot be read"))

    for name, folders, files in os.walk(root, onerror=unreadable):
        folder = Path(name)
        folders.sort()
        if _is_run(files):
            runs.append(folder)
            folders.clear()
        elif "manifest.json" in files:
            others.append((folder, "is a store of pictures"))
            folders.clear()
        else:
            folders[:] = [inner for inner in folders if not inner.startswith(".")]
            if not folders:
                others.append((folder, "holds no run"))
    return runs, others


def read(folder: Path) -> RunInfo:
    """One run directory."""
    state = RunState.running if _is_taken(folder) else RunState.interrupted
    try:
        settings = load_settings(folder)
        summary = load_summary(folder)
        last = _last_records(folder)
    except DamagedRunError as damage:
        return RunInfo(folder, RunState.damaged, begun=_begun(folder), problem=str(damage))
    if summary and state is RunState.interrupted:
        state = RunState.finished
    steps = [record["step"] for record in last.values()]
    total = last.get("begun", {}).get("total_steps", summary.get("steps"))
    return RunInfo(
        path=folder,
        state=state,
        step=summary.get("steps", max(steps, default=0)),
        total_steps=total,
        begun=_begun(folder),
        recipe=str(settings["recipe"]["name"]),
        changed=_changed(folder, settings),
        errors=_errors(summary or last.get("validation", {})),
        images_per_s=summary.get("images_per_s", last.get("pace", {}).get("images_per_s")),
    )


def load_settings(folder: Path) -> dict[str, Any]:
    """Raises DamagedRunError where they are none of ours."""
    settings = _loaded(folder / SETTINGS)
    if not isinstance(settings, dict) or not isinstance(settings.get("recipe"), dict):
        raise DamagedRunError(f"{SETTINGS} is none of a training")
    if "name" not in settings["recipe"]:
        raise DamagedRunError(f"{SETTINGS} names no recipe")
    return settings


def load_summary(folder: Path) -> dict[str, Any]:
    """Empty where a run has not come to its end."""
    if not (folder / SUMMARY).exists():
        return {}
    summary = _loaded(folder / SUMMARY)
    if not isinstance(summary, dict):
        raise DamagedRunError(f"{SUMMARY} is none of a training")
    return summary


def last_of(file: Path, kinds: Iterable[str]) -> dict[str, dict[str, Any]]:
    """The last record of each kind; a line that is being written is passed over."""
    found: dict[str, dict[str, Any]] = {}
    wanted = set(kinds)
    if not file.exists():
        return found
    try:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines() if text.endswith("\n") else text.splitlines()[:-1]
        for line in reversed(lines):
            record = json.loads(line)
            if (kind := record["kind"]) in wanted:
                found[kind] = record
                wanted.remove(kind)
            if not wanted:
                break
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DamagedRunError(f"{file.name} cannot be read ({type(error).__name__})") from error
    return found


def _last_records(folder: Path) -> dict[str, dict[str, Any]]:
    metrics = last_of(folder / METRICS, ("train", "validation"))
    return metrics | last_of(folder / TIMINGS, ("begun", "pace"))


def _loaded(file: Path) -> Any:
    try:
        text = file.read_text(encoding="utf-8")
        if file.suffix == ".json":
            return json.loads(text)
        if yaml.__with_libyaml__:  # five times as fast, which a long list feels
            return yaml.load(text, Loader=yaml.CSafeLoader)
        return yaml.safe_load(text)
    except FileNotFoundError:
        raise DamagedRunError(f"has no {file.name}") from None
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise DamagedRunError(f"{file.name} cannot be read ({type(error).__name__})") from error


def _is_run(files: Sequence[str]) -> bool:
    return any(name in files for name in (LOCK, METRICS, SUMMARY, SETTINGS))


def _is_taken(folder: Path) -> bool:
    """Whether a process trains there now."""
    try:
        with open(folder / LOCK, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:  # no such file, or a file system without locks
        return False
    return False


def _begun(folder: Path) -> datetime | None:
    """The first start, or where no record tells, when the oldest file was last written."""
    try:
        with open(folder / TIMINGS, encoding="utf-8") as file:
            first = json.loads(file.readline())
        seconds = float(first["unix_s"])
    except (OSError, ValueError, KeyError, TypeError):
        times = [f.stat().st_mtime for f in (folder / LOCK, folder / SETTINGS) if f.exists()]
        if not times:
            return None
        seconds = min(times)
    return datetime.fromtimestamp(seconds).astimezone()


def _errors(record: dict[str, Any]) -> ValidationErrors | None:
    try:
        top1, top5 = float(record["top1_error_pct"]), float(record["top5_error_pct"])
    except (KeyError, TypeError, ValueError):
        return None
    return ValidationErrors(top1, top5, record.get("pictures"))


def _changed(folder: Path, settings: dict[str, Any]) -> tuple[str, ...]:
    """The overrides of the command, where they are of these settings; else value by value."""
    try:
        composed = _loaded(folder / ".hydra" / "config.yaml")
        words = _loaded(folder / ".hydra" / "overrides.yaml")
        same = _of_training(flatten(composed)) == _of_training(flatten(settings))
        if same and isinstance(words, list):
            return tuple(word for word in map(str, words) if _changes(word))
    except DamagedRunError:
        pass  # none there: under torchrun Hydra writes nothing
    here, usual = _of_training(with_defaults(settings)), _defaults(str(settings["recipe"]["name"]))
    return tuple(f"{key}={_told(here[key])}" for key in here if here[key] != usual.get(key))


def _of_training(settings: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in settings.items() if not _PLACES.match(key)}


def _changes(word: str) -> bool:
    key = word.partition("=")[0]
    return key != "recipe" and not _PLACES.match(key)


@lru_cache
def _defaults(recipe: str) -> dict[str, Any]:
    """What a recipe is trained with where nothing else is asked for."""
    try:
        config, _ = compose_config("train", TrainConfig, [f"recipe={recipe}"])
    except Exception:  # of later code, or somebody's own: all of its settings are told
        config = TrainConfig()
    return _of_training(flatten(to_plain(config)))


def _told(value: Any) -> str:
    return "null" if value is None else str(value)
