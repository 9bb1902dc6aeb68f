"""Records of a run: the files of its directory are the truth, all else is a view of them."""

from __future__ import annotations

import json
import os
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from PIL import Image

from alexnet2012.config.schema import TrackingConfig
from alexnet2012.distributed.mesh import log
from alexnet2012.tracking.backends import Backend, open_backends
from alexnet2012.utils.files import replace_text

Record = dict[str, Any]
FILES = ("metrics.jsonl", "timings.jsonl", "watched.jsonl")
PICTURES = "pictures"
_PICTURE = re.compile(r"(.+)-(\d{7,})\.png")
_BEGUN = "begun"  # kind of the record of a start


class Tracker:
    """Writes each record to one of ``FILES`` and shows it in the views that are wanted.

    ``metrics.jsonl`` holds only what two runs with the same seed have in common, whatever is
    watched; seconds and images/s stand in ``timings.jsonl``, what a view asks for besides in
    ``watched.jsonl`` and ``pictures/``. A view that fails is given up, and the run goes on. Made on
    rank 0 alone.
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
        pictures = self._kept_pictures()
        self._views = open_backends(config, run_dir, settings, resumed=bool(resumed))
        if self._views:
            self._replay(pictures)

    def metrics(self, kind: str, step: int, **values: float) -> None:
        self._write("metrics.jsonl", kind, step, values)

    def timings(self, kind: str, step: int, **values: float) -> None:
        self._write("timings.jsonl", kind, step, values)

    def watched(self, kind: str, step: int, **values: float) -> None:
        self._write("watched.jsonl", kind, step, values)

    def begun(self, step: int, **values: float) -> None:
        """A start, the first or a later one; no view shows it."""
        self._write("timings.jsonl", _BEGUN, step, values)

    def picture(self, name: str, step: int, picture: Image.Image, *, last_only: bool) -> None:
        """Into ``pictures/``, under its step; ``last_only`` removes the earlier of its name."""
        folder = self.run_dir / PICTURES
        file = folder / f"{name}-{step:07d}.png"
        try:
            folder.mkdir(exist_ok=True)
            if last_only:
                for earlier in _pictures(folder):
                    if earlier[1] == name:
                        earlier[2].unlink()
            picture.save(file)
        except OSError as error:  # the records are what counts
            log.warning("%s: cannot be written (%s)", file, error.strerror)
            return
        self._show(lambda view: view.picture(step, name, file))

    def sync(self) -> dict[str, int]:
        """All records are on the disk; returns the lines of each file, which a checkpoint keeps."""
        for name in FILES:
            if (self.run_dir / name).exists():
                with open(self.run_dir / name, "rb") as file:
                    os.fsync(file.fileno())
        return dict(self.lines)

    def _write(self, name: str, kind: str, step: int, values: Mapping[str, float]) -> None:
        with open(self.run_dir / name, "a", encoding="utf-8") as out:
            out.write(json.dumps({"kind": kind, "step": step, **values}) + "\n")
        self.lines[name] += 1
        if kind != _BEGUN:
            shown = {f"{kind}/{key}": value for key, value in values.items()}
            self._show(lambda view: view.values(step, shown))

    def _show(self, show: Callable[[Backend], None]) -> None:
        for view in [*self._views]:
            try:
                show(view)
            except Exception as error:
                self._views.remove(view)
                told = "%s shows no more of this run (%s: %s); its files go on"
                log.warning(told, view.name, type(error).__name__, error)

    def _kept_pictures(self) -> list[tuple[int, str, Path]]:
        """Those of validations that are kept; the others go, and are made again."""
        records = read_records(self.run_dir / "metrics.jsonl")
        steps = {record["step"] for record in records if record["kind"] == "validation"}
        found = _pictures(self.run_dir / PICTURES)
        for step, _, file in found:
            if step not in steps:
                file.unlink()
        return [picture for picture in found if picture[0] in steps]

    def _replay(self, pictures: list[tuple[int, str, Path]]) -> None:
        """Show a view what was recorded before, so that it has no gap and no record twice."""
        values: dict[int, dict[str, float]] = defaultdict(dict)
        for name in FILES:
            for record in read_records(self.run_dir / name):
                kind, step = record.pop("kind"), record.pop("step")
                if kind != _BEGUN:
                    values[step].update({f"{kind}/{key}": v for key, v in record.items()})
        shown: dict[int, list[tuple[str, Path]]] = defaultdict(list)
        for step, picture, file in pictures:
            shown[step].append((picture, file))

        def replay(view: Backend) -> None:
            for step in sorted(values):
                view.values(step, values[step])
                for picture, file in shown[step]:
                    view.picture(step, picture, file)

        self._show(replay)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._show(lambda view: view.close(failed=error is not None))


def read_records(path: Path) -> list[Record]:
    """The records of a .jsonl file, oldest first; none where there is no file."""
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def _pictures(folder: Path) -> list[tuple[int, str, Path]]:
    """Step, name and file of each, in order."""
    matches = ((_PICTURE.fullmatch(file.name), file) for file in folder.glob("*.png"))
    return sorted((int(m[2]), m[1], file) for m, file in matches if m)


def _keep(path: Path, count: int) -> int:
    """Forget what a run wrote after the checkpoint that it goes on from; returns what is left."""
    if not path.exists() and not count and path.name == "watched.jsonl":  # only where it is wanted
        return 0
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []
    kept = [line for line in lines[:count] if line.endswith("\n")]
    if len(kept) < count:
        log.warning("%s: %d of %d records are lost", path, count - len(kept), count)
    replace_text(path, "".join(kept))
    return len(kept)
