"""The store: what training reads. Every picture square, of one size, checked, listed, measured.

``prepare`` makes it once, ``Store.open`` reads it. On disk: ``train/CLASS/*.jpg``,
``val/CLASS/*.jpg``, their lists ``train.tsv`` and ``val.tsv`` (path, label, SHA-256),
``mean_image.npy``, ``manifest.json``, and ``rejects.jsonl`` with what was not used and why.

Legend: P pixels a side of a stored picture.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import uuid
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import simplejpeg
from rich.console import Console
from rich.progress import Progress

from alexnet2012.checks import check_values
from alexnet2012.config import ConfigError, PrepareConfig
from alexnet2012.data import photos
from alexnet2012.data.sources import Labelled, Source, open_source, read_picture, square_jpeg

SPLITS = ("train", "val")
_FORMAT = 1  # of the layout on disk
_PICTURES_PER_JOB = 32


@dataclass(frozen=True)
class Split:
    """The pictures of ``train`` or ``val``, sorted by class."""

    paths: tuple[str, ...]  # absolute
    labels: npt.NDArray[np.int64]  # [n]


@dataclass(frozen=True)
class Store:
    """A prepared data set."""

    root: Path
    size: int  # P
    classes: tuple[str, ...]
    mean_image: npt.NDArray[np.float32]  # [P, P, 3] grey levels, over the training pictures
    rgb_covariance: npt.NDArray[np.float64]  # [3, 3] grey levels², over all their pixels
    fingerprint: str  # SHA-256 of the lists, and so of every stored file
    description: str  # one sentence: what these pictures are, and what not to conclude

    @classmethod
    def open(cls, root: Path) -> Store:
        """The store at ``root``, its lists checked against the fingerprint.

        Raises:
            ConfigError: there is no store, or not all of it.
        """
        root = root.expanduser().absolute()  # its paths outlive a change of folder
        make = "make it with python -m alexnet2012.prepare source=… store=…"
        if not (root / "manifest.json").is_file():
            raise ConfigError("data.store", root, f"there is no store; {make}")
        try:
            manifest = json.loads((root / "manifest.json").read_text(encoding="utf-8"))
            store = cls(
                root=root,
                size=manifest["settings"]["size"],
                classes=tuple(manifest["classes"]),
                mean_image=np.load(root / "mean_image.npy"),
                rgb_covariance=np.array(manifest["rgb_covariance"], dtype=np.float64),
                fingerprint=manifest["fingerprint"],
                description=manifest["description"],
            )
            listed = _fingerprint(root)
        except (OSError, EOFError, ValueError, KeyError, TypeError) as error:
            remedy = f"is damaged ({error}); remove it and {make}"
            raise ConfigError("data.store", root, remedy) from error
        side = store.size
        if listed != store.fingerprint or store.mean_image.shape != (side, side, 3):
            remedy = f"is damaged (its parts do not belong together); remove it and {make}"
            raise ConfigError("data.store", root, remedy)
        return store

    def split(self, name: str, limit: int | None = None) -> Split:
        """``train`` or ``val``; ``limit`` keeps the first pictures of each class only.

        Raises:
            ConfigError: a limit below 1.
        """
        assert name in SPLITS, name
        if limit is not None and limit < 1:
            raise ConfigError("data.limit", limit, "must be 1 or more, or null for all pictures")
        paths, labels = [], []
        taken: Counter[str] = Counter()
        for line in (self.root / f"{name}.tsv").read_text(encoding="utf-8").splitlines():
            path, label, _ = line.split("\t")
            taken[label] += 1
            if limit is None or taken[label] <= limit:
                paths.append(f"{self.root}/{path}")
                labels.append(int(label))
        return Split(tuple(paths), np.array(labels, dtype=np.int64))


def prepare(config: PrepareConfig, progress: bool = True) -> Store:
    """Make the store, or open it where it was made with the same settings.

    Each picture is read strictly, its centre square scaled to P × P, and written as JPEG. The
    store appears complete or not at all. The result, to the bit, depends on the pictures and the
    settings, not on the number of workers.

    Raises:
        ConfigError: a setting out of range, a source that cannot be used, a class without any
            usable picture, or another store at the same place.
    """
    check_values(config)
    root = Path(config.store).expanduser()
    settings = _settings(config)
    if root.exists() and not (root.is_dir() and not any(root.iterdir())):
        return _existing(root, settings)
    root.parent.mkdir(parents=True, exist_ok=True)
    partial = root.parent / f".{root.name}.partial-{uuid.uuid4().hex[:8]}"
    try:
        with _opened(config, partial.with_name(f"{partial.name}-photos")) as source:
            summary = _fill(partial, source, config, settings, progress)
        try:
            os.replace(partial, root)
        except OSError:
            if not root.exists():
                raise
            return _existing(root, settings)  # somebody else has made it meanwhile
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    print(f"store {root}: {summary}")
    return Store.open(root)


class _Picture(NamedTuple):
    """A picture to prepare, and the path it gets in the store."""

    source: Path
    target: str
    label: int


class _Job(NamedTuple):
    """Some pictures of one split, for a worker."""

    root: Path
    split: str
    pictures: list[_Picture]
    size: int
    quality: int


class _Done(NamedTuple):
    """A job's outcome: for each picture its SHA-256 or a reason, and sums over training pixels."""

    outcomes: list[tuple[str, str]]
    sums: npt.NDArray[np.int64]  # [P, P, 3]
    products: npt.NDArray[np.int64]  # [3, 3]


def _work(job: _Job) -> _Done:
    outcomes = []
    sums = np.zeros((job.size, job.size, 3), dtype=np.int64)
    products = np.zeros((3, 3), dtype=np.int64)
    for picture in job.pictures:
        try:
            pixels = read_picture(picture.source.read_bytes())
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            outcomes.append(("", reason or type(error).__name__))
            continue
        jpeg = square_jpeg(pixels, job.size, job.quality)
        (job.root / picture.target).write_bytes(jpeg)
        outcomes.append((hashlib.sha256(jpeg).hexdigest(), ""))
        if job.split == "train":
            stored = simplejpeg.decode_jpeg(jpeg, "RGB")  # as training will see it
            sums += stored
            flat = stored.reshape(-1, 3).astype(np.float64)
            products += (flat.T @ flat).astype(np.int64)  # whole numbers below 2⁵³: exact
    return _Done(outcomes, sums, products)


class _Tally:
    """What has come of all jobs so far."""

    def __init__(self, source: Source, size: int) -> None:
        self.source = source
        self.lines: dict[str, list[str]] = {split: [] for split in SPLITS}
        self.counts = {split: dict.fromkeys(source.classes, 0) for split in SPLITS}
        self.rejects: list[dict[str, str]] = []
        self.sums = np.zeros((size, size, 3), dtype=np.int64)
        self.products = np.zeros((3, 3), dtype=np.int64)

    def add(self, job: _Job, done: _Done) -> None:
        self.sums += done.sums
        self.products += done.products
        for picture, (sha256, reason) in zip(job.pictures, done.outcomes, strict=True):
            name = self.source.classes[picture.label]
            if reason:
                self.reject(picture.source, f"{job.split}/{name}", reason)
                continue
            self.counts[job.split][name] += 1
            self.lines[job.split].append(f"{picture.target}\t{picture.label}\t{sha256}\n")

    def reject(self, path: Path, name: str, reason: str) -> None:
        file = path.relative_to(self.source.root).as_posix()
        self.rejects.append({"file": file, "class": name, "reason": reason})

    def check(self) -> None:
        """Refuse a class of which nothing is left."""
        for split in SPLITS:
            for name, count in self.counts[split].items():
                if count == 0:
                    first = next(r for r in self.rejects if r["class"] == f"{split}/{name}")
                    remedy = f"no picture of {split}/{name} can be used, {first['file']} for one: "
                    raise ConfigError("data.source", self.source.root, remedy + first["reason"])


def _fill(
    root: Path, source: Source, config: PrepareConfig, settings: dict[str, Any], progress: bool
) -> str:
    """Write a whole store to ``root``; returns what came of it, in one line."""
    jobs = []
    for split, pictures in (("train", source.train), ("val", source.val)):
        for name in source.classes:
            (root / split / name).mkdir(parents=True)
        targets = list(_targets(split, source.classes, pictures))
        for start in range(0, len(targets), _PICTURES_PER_JOB):
            part = targets[start : start + _PICTURES_PER_JOB]
            jobs.append(_Job(root, split, part, config.size, config.quality))

    tally = _Tally(source, config.size)
    console = Console(stderr=True)
    hidden = not (progress and console.is_terminal)
    with Progress(console=console, transient=True, disable=hidden) as bar:
        task = bar.add_task("preparing", total=len(source.train) + len(source.val))
        for job, done in zip(jobs, _mapped(jobs, config.workers), strict=True):
            tally.add(job, done)
            bar.advance(task, len(job.pictures))
    tally.check()
    unusable = len(tally.rejects)
    for path in source.strays:
        tally.reject(path, "", "no picture by its name or place")

    for split in SPLITS:
        (root / f"{split}.tsv").write_text("".join(tally.lines[split]), encoding="utf-8")
    rejected = "".join(json.dumps(reject) + "\n" for reject in tally.rejects)
    (root / "rejects.jsonl").write_text(rejected, encoding="utf-8")
    count, val_count = len(tally.lines["train"]), len(tally.lines["val"])
    np.save(root / "mean_image.npy", (tally.sums / count).astype(np.float32))
    manifest = {
        "settings": settings,
        "description": source.description,
        "classes": source.classes,
        "pictures": tally.counts,
        "rejected": {"unusable": unusable, "strays": len(source.strays)},
        "rgb_covariance": _covariance(tally.sums, tally.products, count).tolist(),
        "fingerprint": _fingerprint(root),
        "versions": {name: version(name) for name in ("numpy", "pillow", "simplejpeg")},
    }
    text = json.dumps(manifest, indent=1, ensure_ascii=False) + "\n"
    (root / "manifest.json").write_text(text, encoding="utf-8")
    summary = f"{count} training and {val_count} validation pictures"
    summary += f" of {len(source.classes)} classes"
    rejects = len(tally.rejects)
    return summary + (f"; {rejects} files rejected, see rejects.jsonl" if rejects else "")


def _targets(
    split: str, classes: tuple[str, ...], pictures: tuple[Labelled, ...]
) -> Iterator[_Picture]:
    """Names in the store: those of the source, made plain and unique within their class."""
    taken: set[tuple[int, str]] = set()
    for path, label in pictures:
        plain = re.sub(r"[^\w.\- ]", "_", path.stem, flags=re.ASCII)
        name, copy = plain, 1
        while (label, name.lower()) in taken:  # a.jpg beside a.png, or A.jpg
            copy += 1
            name = f"{plain}_{copy}"
        taken.add((label, name.lower()))
        yield _Picture(path, f"{split}/{classes[label]}/{name}.jpg", label)


def _mapped(jobs: list[_Job], workers: int) -> Iterator[_Done]:
    if workers == 1:
        yield from map(_work, jobs)
        return
    # Not fork: the caller may have threads, of torch or of DALI, which a fork would cut off.
    with ProcessPoolExecutor(workers, mp_context=get_context("forkserver")) as pool:
        try:
            yield from pool.map(_work, jobs)
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _covariance(
    sums: npt.NDArray[np.int64], products: npt.NDArray[np.int64], count: int
) -> npt.NDArray[np.float64]:
    """E[xy] − E[x]·E[y] over all pixels, in whole numbers up to the last division."""
    pixels = count * sums.shape[0] * sums.shape[1]
    total = [int(channel) for channel in sums.sum(axis=(0, 1))]
    rows = [
        [(pixels * int(products[i, j]) - total[i] * total[j]) / pixels**2 for j in range(3)]
        for i in range(3)
    ]
    return np.array(rows, dtype=np.float64)


def _fingerprint(root: Path) -> str:
    digest = hashlib.sha256()
    for split in SPLITS:
        digest.update((root / f"{split}.tsv").read_bytes())
    return digest.hexdigest()


@contextmanager
def _opened(config: PrepareConfig, scratch: Path) -> Iterator[Source]:
    if config.source != "photos":
        yield open_source(config.source)
        return
    try:
        photos.make_photos(scratch, seed=config.seed)
        yield replace(open_source(str(scratch)), description=photos.DESCRIPTION)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _settings(config: PrepareConfig) -> dict[str, Any]:
    """What the content of a store depends on."""
    settings: dict[str, Any] = {"format": _FORMAT, "size": config.size, "quality": config.quality}
    if config.source == "photos":
        return {"source": "photos", "seed": config.seed, **settings}
    return {"source": str(Path(config.source).expanduser().resolve()), **settings}


def _existing(root: Path, settings: dict[str, Any]) -> Store:
    other = "remove it, or give another place"
    if not (root / "manifest.json").is_file():
        raise ConfigError("data.store", root, f"is there already and is no store; {other}")
    store = Store.open(root)
    theirs = json.loads((root / "manifest.json").read_text(encoding="utf-8"))["settings"]
    for key in sorted(theirs.keys() | settings):
        if theirs.get(key) != settings.get(key):
            remedy = f"is of {key}={theirs.get(key)}, asked for was {settings.get(key)}; {other}"
            raise ConfigError("data.store", root, remedy)
    return store
