"""Records of a run: .jsonl files in its directory, from which the loggers can be rebuilt."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from PIL import Image

from alexnet2012.checkpoint.manifest import first_line
from alexnet2012.config.schema import RunError, TrackingConfig
from alexnet2012.tracking.backends import Backend, open_backends
from alexnet2012.tracking.run_index import DEPARTED
from alexnet2012.utils.files import naming, replace_text
from alexnet2012.utils.logs import log
from alexnet2012.utils.untrusted import read_json_lines, read_text

Record = dict[str, Any]
Lines = Mapping[str, int] | None  # by file, at the checkpoint from which a run resumes
FILES = ("metrics.jsonl", "timings.jsonl", "watched.jsonl")
IMAGES = "pictures"  # folder in the run directory
_IMAGE = re.compile(r"(.+)-(\d{7,})\.png")
BEGUN = "begun"  # kind of the record of a start
OBSERVED = "observed"  # of the first step
_NOT_LOGGED = (BEGUN, OBSERVED, DEPARTED)


class Tracker(AbstractContextManager["Tracker"]):
    """Writes each record to one of ``FILES`` and to the loggers. For rank 0 only.

    ``metrics.jsonl`` has only values that are equal in two runs with the same seed;
    ``timings.jsonl`` has seconds and images/s; ``watched.jsonl`` and ``pictures/`` have what is
    computed only if a logger is on. A logger that fails is dropped, and the run continues.
    """

    def __init__(
        self, config: TrackingConfig, run_dir: Path, settings: Record, *, resumed: Lines = None
    ) -> None:
        self.run_dir = run_dir
        run_dir.mkdir(parents=True, exist_ok=True)
        self.lines = {f: _truncate(run_dir / f, (resumed or {}).get(f, 0)) for f in FILES}
        images = self._keep_images()
        self._backends = open_backends(config, run_dir, settings, resumed=bool(resumed))
        if self._backends:
            self._replay(images)

    def metrics(self, kind: str, step: int, **values: float) -> None:
        self._write("metrics.jsonl", kind, step, values)

    def timings(self, kind: str, step: int, **values: float) -> None:
        self._write("timings.jsonl", kind, step, values)

    def watched(self, kind: str, step: int, **values: float) -> None:
        self._write("watched.jsonl", kind, step, values)

    def started(self, step: int, **values: Any) -> None:
        self._write("timings.jsonl", BEGUN, step, values)

    def noted(self, kind: str, step: int, **values: Any) -> None:
        """A record that loggers do not get."""
        assert kind in _NOT_LOGGED
        self._write("timings.jsonl", kind, step, values)

    def image(self, name: str, step: int, image: Image.Image, *, last_only: bool) -> None:
        """Save to ``pictures/``; ``last_only`` removes earlier images of this name."""
        folder = self.run_dir / IMAGES
        file = folder / f"{name}-{step:07d}.png"
        try:
            folder.mkdir(exist_ok=True)
            if last_only:
                for _, earlier_name, earlier_file in _saved_images(folder):
                    if earlier_name == name:
                        earlier_file.unlink()
            image.save(file)
        except OSError as error:  # not worth ending the run
            log.warning("%s: cannot be written (%s)", file, error.strerror)
            return
        self._log(lambda backend: backend.image(step, name, file))

    def sync(self) -> dict[str, int]:
        """Flush all records to the disk; returns lines by file, which checkpoints store."""
        for name in FILES:
            if (self.run_dir / name).exists():
                with open(self.run_dir / name, "rb") as file:
                    os.fsync(file.fileno())
        return dict(self.lines)

    def _write(self, name: str, kind: str, step: int, values: Mapping[str, Any]) -> None:
        path = self.run_dir / name
        try:
            with naming(path), open(path, "a", encoding="utf-8") as out:
                out.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        except FileNotFoundError:
            raise RunError(f"{self.run_dir}: was removed during the run") from None
        self.lines[name] += 1
        if kind not in _NOT_LOGGED:
            named = {f"{kind}/{key}": value for key, value in values.items()}
            self._log(lambda backend: backend.values(step, named))

    def _log(self, call: Callable[[Backend], None]) -> None:
        for backend in [*self._backends]:
            try:
                call(backend)
            except Exception as error:
                self._backends.remove(backend)
                message = "%s failed and is off for the rest of this run (%s: %s)"
                log.warning(message, backend.name, type(error).__name__, error)

    def _keep_images(self) -> list[tuple[int, str, Path]]:
        """Remove images of validations without a record; these are repeated. Return the rest."""
        records = read_records(self.run_dir / "metrics.jsonl")
        steps = {record["step"] for record in records if record["kind"] == "validation"}
        images = _saved_images(self.run_dir / IMAGES)
        for step, _, file in images:
            if step not in steps:
                file.unlink()
        return [image for image in images if image[0] in steps]

    def _replay(self, images: list[tuple[int, str, Path]]) -> None:
        """Send all earlier records to the loggers, so that curves have no gap or repeated step."""
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for name in FILES:
            for record in read_records(self.run_dir / name):
                kind, step = record.pop("kind"), record.pop("step")
                if kind not in _NOT_LOGGED:
                    values[step].update({f"{kind}/{key}": v for key, v in record.items()})
        images_of_step: dict[int, list[tuple[str, Path]]] = defaultdict(list)
        for step, name, file in images:
            images_of_step[step].append((name, file))

        def replay(backend: Backend) -> None:
            for step in sorted(values):
                backend.values(step, values[step])
                for name, file in images_of_step[step]:
                    backend.image(step, name, file)

        self._log(replay)

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        self._log(lambda backend: backend.close(failed=error is not None))


def read_records(path: Path) -> list[Record]:
    """The records of a .jsonl file, oldest first; empty if the file does not exist.

    Raises:
        RunError: a line is no record; the message names it.
    """
    if not path.exists():
        return []
    try:
        records = read_json_lines(path)
        if any(type(r.get("kind")) is not str or type(r.get("step")) is not int for r in records):
            raise ValueError("a record has no kind or step")
    except (OSError, ValueError) as error:
        remedy = "resume with tracking off, or use another directory"
        raise RunError(f"{path}: is damaged ({first_line(error)}); {remedy}") from error
    return records


def _saved_images(folder: Path) -> list[tuple[int, str, Path]]:
    """Step, name and file of each image, sorted."""
    matches = ((_IMAGE.fullmatch(file.name), file) for file in folder.glob("*.png"))
    return sorted((int(m[2]), m[1], file) for m, file in matches if m)


def _truncate(path: Path, count: int) -> int:
    """Keep the first ``count`` lines, those up to the checkpoint; returns how many there are."""
    if not path.exists() and not count and path.name == "watched.jsonl":  # made when first written
        return 0
    try:
        lines = read_text(path).splitlines(keepends=True) if path.exists() else []
    except ValueError as error:
        raise RunError(f"{path}: is damaged ({error}); use another directory") from error
    kept = [line for line in lines[:count] if line.endswith("\n")]
    if len(kept) < count:
        log.warning("%s: %d of %d records were lost", path, count - len(kept), count)
    replace_text(path, "".join(kept))
    return len(kept)
