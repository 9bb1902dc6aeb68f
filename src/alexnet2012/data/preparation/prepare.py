"""Makes a store of any source: in parallel, in constant memory, to the same bytes each time.

Work goes on in a hidden folder beside the store, which gets its name when it is complete. A
preparation that was ended in any way is taken up again where it was.

Legend: P pixels a side of a stored picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import textwrap
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from errno import EACCES, EISDIR, ELOOP, ENOENT, EPERM
from itertools import islice
from multiprocessing import current_process
from pathlib import Path, PurePath
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from alexnet2012.config.enums import OnReject
from alexnet2012.config.schema import ConfigError, PrepareConfig, RunError
from alexnet2012.config.validation import check_values, user_path
from alexnet2012.data.preparation.decode import store_picture, sum_of_products
from alexnet2012.data.preparation.progress import ImageOutcome, Tally, unfinished
from alexnet2012.data.preparation.workers import in_order
from alexnet2012.data.sources.base import Entry, ImageSource
from alexnet2012.data.sources.registry import is_gone, locate
from alexnet2012.data.store import FORMAT, SPLITS, Store
from alexnet2012.utils.locks import locked

_PICTURES_PER_JOB = 64
_PLAIN = ("source", "size", "quality", "seed", "val_percent")  # which a user has set


def prepare(config: PrepareConfig, progress: bool = True) -> Store:
    """Make the store, or open it where it was made of the same pictures and settings.

    Each picture is read strictly, its centre square scaled to P × P, and written as JPEG. The
    store appears complete or not at all. The result, to the bit, depends on the pictures, the
    settings and the libraries' versions, not on the number of workers or on interruptions. A
    second process that wants the same store waits for the first.

    Raises:
        ConfigError: a setting out of range, a source that cannot be used or changes meanwhile, a
            class without any usable picture, a reject with ``on_reject=fail``, or another store,
            finished or not, at the same place.
        RunError: a download failed, or a worker was killed.
    """
    check_values(config)
    if getattr(current_process(), "_inheriting", False):
        # A worker of ours imports the program that started it, and this would wait for itself.
        raise RunError("prepare() must stand under `if __name__ == '__main__':` in a program")
    root = user_path("data.store", config.store).absolute()
    settings = {"format": FORMAT, "size": config.size, "quality": config.quality}
    made = (root / "manifest.json").is_file()
    if made and is_gone(config):
        return _existing(root, settings, config)
    found = locate(config)
    settings |= found.identity
    work = root.parent / f".{root.name}.partial"
    if made or (root.exists() and not (root.is_dir() and not any(root.iterdir()))):
        store = _existing(root, settings, config)
        shutil.rmtree(work, ignore_errors=True)  # of one that was killed when it was all but done
        return store
    if root.is_mount() or root.is_symlink():
        raise ConfigError("data.store", root, "is a mount point or a link; give a folder within it")
    if any(root.resolve().is_relative_to(folder.resolve()) for folder in found.folders):
        remedy = f"lies among the pictures of {config.source}; give a place outside"
        raise ConfigError("data.store", root, remedy)
    with ExitStack() as place:
        try:
            place.enter_context(_folder(root.parent))
            place.enter_context(locked(root.parent / f".{root.name}.lock"))
        except OSError as error:
            remedy = f"cannot be made ({error.strerror}); give another place for the store"
            raise ConfigError("data.store", root, remedy) from error
        if (root / "manifest.json").is_file():
            return _existing(root, settings, config)  # somebody else has made it meanwhile
        _check_unfinished(work, root, settings)
        try:
            with found.open(work / "photos", progress) as source:
                summary = _fill(work, source, config, settings, found.dates, progress)
        except ConfigError:
            if unfinished(work) is None:
                shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            remedy = "what is done is kept, and the same command goes on from there"
            where = error.filename or root
            raise RunError(f"{where}: {error.strerror or error}; {remedy}") from error
        os.sync()  # a store of hours should outlast a power cut
        os.replace(work / "store", root)
        shutil.rmtree(work, ignore_errors=True)
    print(f"store {root}")
    print(textwrap.fill(summary, 78, initial_indent="  ", subsequent_indent="  "))
    return Store.open(root)


class _Job(NamedTuple):
    """Some consecutive pictures of one split, for a worker; the first has number ``first``."""

    root: Path  # of the store in the making
    split: str
    first: int
    entries: list[Entry]
    classes: tuple[str, ...]
    size: int
    quality: int

    def target(self, index: int) -> str:
        """The path in the store of the picture at ``index``: numbers cannot clash, names can."""
        name = self.classes[self.entries[index].label]
        return f"{self.split}/{name}/{self.first + index:07d}.jpg"


class _Done(NamedTuple):
    """A job's outcome, with sums over training pixels."""

    outcomes: list[ImageOutcome]
    bytes_read: int
    sums: npt.NDArray[np.uint32]  # [P, P, 3]
    products: npt.NDArray[np.int64]  # [3, 3]


def _work(job: _Job) -> _Done:
    outcomes = []
    bytes_read = 0
    sums = np.zeros((job.size, job.size, 3), dtype=np.uint32)
    products = np.zeros((3, 3), dtype=np.int64)
    for index, entry in enumerate(job.entries):
        try:
            data = entry.read()
            bytes_read += len(data)
            stored = store_picture(data, job.size, job.quality)
        except OSError as error:
            if not _is_of_the_file(error, entry):
                raise
            outcomes.append(ImageOutcome(reason=str(error.strerror)))
            continue
        except ValueError as error:
            outcomes.append(ImageOutcome(reason=str(error)))
            continue
        (job.root / job.target(index)).write_bytes(stored.jpeg)
        sha256 = hashlib.sha256(stored.jpeg).hexdigest()
        outcomes.append(ImageOutcome(job.target(index), sha256, sorted(stored.traits)))
        if job.split == "train":
            sums += stored.pixels
            products += sum_of_products(stored.pixels)
    return _Done(outcomes, bytes_read, sums, products)


def _is_of_the_file(error: OSError, entry: Entry) -> bool:
    """Whether it is this file that is wrong; any other failure must not drop a picture."""
    if entry.size >= 0:  # a part of an archive
        return False
    if error.errno == ENOENT:  # a link to nowhere, not a disk that has gone
        return Path(entry.path).is_symlink()
    return error.errno in (EACCES, EPERM, EISDIR, ELOOP)


def _fill(
    work: Path,
    source: ImageSource,
    config: PrepareConfig,
    settings: dict[str, Any],
    dates: str,
    progress: bool,
) -> str:
    """Write a whole store to ``work/store``; returns what came of it, in one line."""
    strict = config.on_reject is OnReject.fail
    in_class = (name for name in source.strays if PurePath(name).parent.name in source.classes)
    if strict and (stray := next(in_class, None)):
        raise _rejected(source, f"{stray} is no picture by its name or kind")
    tally = Tally.resumed(work, source, settings, dates)
    if tally is None:
        if unfinished(work) is not None:
            print(f"starting over: pictures or libraries have changed since the work in {work}")
        tally = Tally.new(work, source, settings, dates)
    for split in SPLITS:
        for name in source.classes:
            (tally.root / split / name).mkdir(parents=True, exist_ok=True)
    jobs = islice(_jobs(tally.root, source, config), tally.state.jobs, None)
    workers = config.workers or len(os.sched_getaffinity(0))

    console = Console(stderr=True)
    columns = (TextColumn("preparing"), BarColumn(), TextColumn("{task.fields[pictures]}"))
    more = (DownloadColumn(), TimeRemainingColumn())
    hidden = not (progress and console.is_terminal)
    with (
        closing(tally),
        Progress(*columns, *more, console=console, transient=True, disable=hidden) as bar,
        closing(in_order(_work, jobs, workers)) as finished,
    ):
        if strict and tally.state.rejected:  # by one that was begun with on_reject=skip
            raise _rejected(source, next(iter(tally.state.first_rejects.values())))
        task = bar.add_task("", total=source.total_bytes, pictures="")
        for job, done in finished:
            tally.add(job.split, job.entries, done.outcomes, done.sums, done.products)
            if strict and tally.state.rejected:
                raise _rejected(source, next(iter(tally.state.first_rejects.values())))
            tally.save_at_times()
            bar.update(task, advance=done.bytes_read, pictures=f"{tally.state.listed:,} pictures")
        now = locate(config)
        if (settings, dates) != (settings | now.identity, now.dates):
            remedy = "has changed while it was prepared; the same command starts over"
            raise ConfigError("data.source", source.where, remedy)
        return tally.finish()


def _jobs(root: Path, source: ImageSource, config: PrepareConfig) -> Iterator[_Job]:
    for split in SPLITS:
        entries, first = source.entries(split), 0
        while part := list(islice(entries, _PICTURES_PER_JOB)):
            yield _Job(root, split, first, part, source.classes, config.size, config.quality)
            first += len(part)


def _rejected(source: ImageSource, what: str) -> ConfigError:
    return ConfigError("data.source", source.where, f"on_reject=fail: {what}")


@contextmanager
def _folder(path: Path) -> Iterator[None]:
    """The folder, made with those above it where they are missing; what stays empty goes again."""
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in made:
                folder.rmdir()


def _check_unfinished(work: Path, root: Path, settings: dict[str, Any]) -> None:
    """Refuse to clear the work of another source or of other settings; it may be hours of it."""
    theirs = unfinished(work) or settings
    for key in _PLAIN:
        if theirs.get(key) != settings.get(key):
            remedy = f"{work} is unfinished work of {key}={theirs.get(key)}, asked for was"
            remedy = f"{remedy} {settings.get(key)}; finish or remove that, or give another place"
            raise ConfigError("data.store", root, remedy)


def _existing(root: Path, settings: dict[str, Any], config: PrepareConfig) -> Store:
    """The store that is there; of a source that is gone its name is enough.

    Raises:
        ConfigError: it is none, or of another source or other settings.
    """
    other = "remove it, or give another place"
    if not (root / "manifest.json").is_file():
        raise ConfigError("data.store", root, f"is there already and is no store; {other}")
    store = Store.open(root)
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    theirs = manifest["settings"]
    if is_gone(config):
        asked = vars(config) | {"source": user_path("data.source", config.source).resolve().name}
        settings |= {key: asked.get(key, value) for key, value in theirs.items() if key != "format"}
    for key in (*_PLAIN, *sorted((theirs.keys() | settings) - set(_PLAIN))):
        if theirs.get(key) == settings.get(key):
            continue
        if key in _PLAIN:
            remedy = f"is of {key}={theirs.get(key)}, asked for was {settings.get(key)}; {other}"
        else:
            remedy = f"was made of other pictures than {settings['source']} holds now; {other}"
        raise ConfigError("data.store", root, remedy)
    if config.on_reject is OnReject.fail and manifest["rejected"]["unusable"]:
        remedy = f"on_reject=fail, and {root / 'rejects.jsonl'} names some; {other}"
        raise ConfigError("data.store", root, remedy)
    return store
