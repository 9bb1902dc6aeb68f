"""Creates a store from an image source: in parallel, in constant memory, reproducibly.

The store is written to a hidden folder next to its destination and renamed when complete. An
interrupted preparation resumes from its last saved state.

Shapes: P is the side of a stored image in pixels.
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
from alexnet2012.data.preparation.decode import convert_to_stored, sum_of_products
from alexnet2012.data.preparation.progress import ImageOutcome, StoreBuilder, unfinished_settings
from alexnet2012.data.preparation.workers import ordered_map
from alexnet2012.data.sources.base import Entry, ImageSource
from alexnet2012.data.sources.registry import locate, source_is_missing
from alexnet2012.data.store import FORMAT, Store
from alexnet2012.utils.files import naming
from alexnet2012.utils.locks import locked
from alexnet2012.utils.text import say

_IMAGES_PER_JOB = 64
_USER_SETTINGS = ("source", "size", "quality", "seed", "val_percent")  # the rest follows from files


def prepare(config: PrepareConfig, progress: bool = True) -> Store:
    """Create the store, or open it if it was already made from the same images and settings.

    Each image is decoded strictly, its centre square is resized to P × P pixels, and the result is
    written as JPEG. The store appears complete or not at all. Its bytes depend on the images, the
    settings and the library versions, not on the number of workers or on interruptions. A second
    process that prepares the same store waits for the first.

    Raises:
        ConfigError: a setting is out of range; the source is unusable or changes during the
            preparation; a class has no usable image; an image is rejected with
            ``on_reject=fail``; or there is a different store, finished or not, at the destination.
        RunError: a download failed, or a worker was killed.
    """
    check_values(config)
    if getattr(current_process(), "_inheriting", False):
        # A worker is importing the program's main module; calling prepare() again would deadlock.
        raise RunError("call prepare() under `if __name__ == '__main__':` in a program")
    root = user_path("data.store", config.store).absolute()
    settings = {"format": FORMAT, "size": config.size, "quality": config.quality}
    finished = (root / "manifest.json").is_file()
    if finished and source_is_missing(config):
        return _open_existing(root, settings, config)
    handle = locate(config)
    settings |= handle.identity
    work = root.parent / f".{root.name}.partial"
    if finished or (root.exists() and not (root.is_dir() and not any(root.iterdir()))):
        store = _open_existing(root, settings, config)
        shutil.rmtree(work, ignore_errors=True)  # of a process killed after renaming the store
        return store
    if root.is_mount() or root.is_symlink():
        remedy = "is a mount point or a symbolic link; use a folder inside it"
        raise ConfigError("data.store", root, remedy)
    if any(root.resolve().is_relative_to(folder.resolve()) for folder in handle.folders):
        remedy = f"is inside the source folder {config.source}; choose a location outside it"
        raise ConfigError("data.store", root, remedy)
    with ExitStack() as stack:
        try:
            stack.enter_context(_created_folder(root.parent))
            stack.enter_context(locked(root.parent / f".{root.name}.lock"))
        except OSError as error:
            remedy = f"cannot be created ({error.strerror}); choose another location for the store"
            raise ConfigError("data.store", root, remedy) from error
        if (root / "manifest.json").is_file():
            return _open_existing(root, settings, config)  # made while this process waited
        _check_unfinished(work, root, settings)
        try:
            with handle.open(work / "photos", progress) as source:
                for note in source.notes:
                    print(f"{source.where}: {note}")
                summary = _build_store(work, source, config, settings, handle.dates, progress)
        except ConfigError:
            if unfinished_settings(work) is None:
                shutil.rmtree(work, ignore_errors=True)
            raise
        except OSError as error:
            remedy = "completed work is kept; run the same command again to resume"
            file = error.filename or root
            raise RunError(f"{file}: {error.strerror or error}; {remedy}") from error
        os.sync()  # the work of hours should survive a power failure
        os.replace(work / "store", root)
        shutil.rmtree(work, ignore_errors=True)
    say(f"store {root}")
    say(textwrap.fill(summary, 78, initial_indent="  ", subsequent_indent="  "))
    return Store.open(root)


class _Job(NamedTuple):
    """Consecutive images of one split for a worker."""

    root: Path  # of the store being written
    split: str
    first: int  # number of the first image
    entries: list[Entry]
    classes: tuple[str, ...]
    size: int
    quality: int

    def target(self, index: int) -> str:
        """Path in the store of entry ``index``; numbered, as names of the source can clash."""
        name = self.classes[self.entries[index].label]
        return f"{self.split}/{name}/{self.first + index:07d}.jpg"


def _run_job(
    job: _Job,
) -> tuple[list[ImageOutcome], int, npt.NDArray[np.uint32], npt.NDArray[np.int64]]:
    """Outcomes, bytes read, and the sums of the training split: colours [P, P, 3], products."""
    outcomes, bytes_read = [], 0
    sums = np.zeros((job.size, job.size, 3), dtype=np.uint32)
    products = np.zeros((3, 3), dtype=np.int64)
    for index, entry in enumerate(job.entries):
        try:
            data = entry.read()
            bytes_read += len(data)
            stored = convert_to_stored(data, job.size, job.quality)
        except (OSError, ValueError) as error:
            if isinstance(error, OSError) and not _is_file_error(error, entry):
                raise
            reason = error.strerror if isinstance(error, OSError) else error
            outcomes.append(ImageOutcome(reason=str(reason)))
            continue
        target = job.root / job.target(index)
        with naming(target):
            target.write_bytes(stored.jpeg)
        sha256 = hashlib.sha256(stored.jpeg).hexdigest()
        outcomes.append(ImageOutcome(job.target(index), sha256, sorted(stored.traits)))
        if job.split == "train":
            sums += stored.pixels
            products += sum_of_products(stored.pixels)
    return outcomes, bytes_read, sums, products


def _is_file_error(error: OSError, entry: Entry) -> bool:
    """Whether the error concerns this file only; after any other, no image may be rejected."""
    if entry.size >= 0:  # a member of an archive
        return False
    if error.errno == ENOENT:  # a dangling link, not a disk that was unmounted
        return Path(entry.path).is_symlink()
    return error.errno in (EACCES, EPERM, EISDIR, ELOOP)


def _build_store(
    work: Path,
    source: ImageSource,
    config: PrepareConfig,
    settings: dict[str, Any],
    dates: str,
    progress: bool,
) -> str:
    """Write the complete store to ``work/store``; returns a summary of one line."""
    strict = config.on_reject is OnReject.fail
    in_class = (name for name in source.strays if PurePath(name).parent.name in source.classes)
    if strict and (stray := next(in_class, None)):
        raise _reject_error(
            source, f"{stray} is not recognised as an image by its name or file type"
        )
    builder = StoreBuilder.resumed(work, source, settings, dates)
    if builder is None:
        if unfinished_settings(work) is not None:
            say(f"starting over: images or libraries changed since the unfinished work in {work}")
        builder = StoreBuilder.new(work, source, settings, dates)
    for split in source.splits:
        for name in source.classes:
            (builder.root / split / name).mkdir(parents=True, exist_ok=True)
    jobs = islice(_jobs(builder.root, source, config), builder.state.jobs, None)
    workers = config.workers or len(os.sched_getaffinity(0))

    console = Console(stderr=True)
    columns = (TextColumn("preparing"), BarColumn(), TextColumn("{task.fields[images]}"))
    more_columns = (DownloadColumn(), TimeRemainingColumn())
    hidden = not (progress and console.is_terminal)
    with (
        closing(builder),
        Progress(*columns, *more_columns, console=console, transient=True, disable=hidden) as bar,
        closing(ordered_map(_run_job, jobs, workers)) as results,
    ):
        if strict and builder.state.rejected:  # while it ran with on_reject=skip
            raise _reject_error(source, next(iter(builder.state.first_rejects.values())))
        task = bar.add_task("", total=source.total_bytes, images="")
        for job, (outcomes, bytes_read, sums, products) in results:
            builder.add(job.split, job.entries, outcomes, sums, products)
            if strict and builder.state.rejected:
                raise _reject_error(source, next(iter(builder.state.first_rejects.values())))
            builder.save_periodically()
            bar.update(task, advance=bytes_read, images=f"{builder.state.listed:,} images")
        current = locate(config)
        if (settings, dates) != (settings | current.identity, current.dates):
            remedy = "changed during the preparation; run the same command again to start over"
            raise ConfigError("data.source", source.where, remedy)
        return builder.finish()


def _jobs(root: Path, source: ImageSource, config: PrepareConfig) -> Iterator[_Job]:
    for split in source.splits:
        entries, first = source.entries(split), 0
        while chunk := list(islice(entries, _IMAGES_PER_JOB)):
            yield _Job(root, split, first, chunk, source.classes, config.size, config.quality)
            first += len(chunk)


def _reject_error(source: ImageSource, reason: str) -> ConfigError:
    return ConfigError("data.source", source.where, f"on_reject=fail: {reason}")


@contextmanager
def _created_folder(path: Path) -> Iterator[None]:
    """Create a folder with its parents; on exit, remove those that are still empty."""
    created = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    try:
        yield
    finally:
        with suppress(OSError):
            for folder in created:
                folder.rmdir()


def _check_unfinished(work: Path, root: Path, settings: dict[str, Any]) -> None:
    """Refuse to delete unfinished work with other settings, which may have taken hours."""
    other_settings = unfinished_settings(work) or settings
    for key in _USER_SETTINGS:
        have, want = other_settings.get(key), settings.get(key)
        if have != want:
            problem = f"{work} contains unfinished work with {key}={have}, but {want} was requested"
            remedy = f"{problem}; finish or remove it, or choose another location"
            raise ConfigError("data.store", root, remedy)


def _open_existing(root: Path, settings: dict[str, Any], config: PrepareConfig) -> Store:
    """Open the store at ``root``; if its source no longer exists, only the name must match."""
    alternatives = "remove it, or choose another location"
    if not (root / "manifest.json").is_file():
        raise ConfigError("data.store", root, f"exists and is not a store; {alternatives}")
    store = Store.open(root)
    manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
    actual = manifest["settings"]
    if source_is_missing(config):
        named = user_path("data.source", config.source).resolve().name
        requested = vars(config) | {"source": named}
        settings |= {
            key: requested.get(key, value) for key, value in actual.items() if key != "format"
        }
    for key in (*_USER_SETTINGS, *(actual.keys() | settings)):
        have, want = actual.get(key), settings.get(key)
        if have != want:
            remedy = f"was made from images that differ from those now in {settings['source']}"
            if key in _USER_SETTINGS:
                remedy = f"was made with {key}={have}, but {want} was requested"
            raise ConfigError("data.store", root, f"{remedy}; {alternatives}")
    if config.on_reject is OnReject.fail and manifest["rejected"]["unusable"]:
        remedy = f"on_reject=fail, but {root / 'rejects.jsonl'} lists rejected images"
        raise ConfigError("data.store", root, f"{remedy}; {alternatives}")
    return store
