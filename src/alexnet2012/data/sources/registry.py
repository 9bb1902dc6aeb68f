"""Where pictures come from: a name or a path, and what it turns out to be."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from alexnet2012.config.enums import NAMED_SOURCES
from alexnet2012.config.schema import PrepareConfig
from alexnet2012.config.validation import home, user_path
from alexnet2012.data.sources import photos
from alexnet2012.data.sources.archives import (
    ARCHIVE_SUFFIXES,
    CIFAR10_FILES,
    is_cifar10,
    open_archive,
    open_cifar10,
)
from alexnet2012.data.sources.base import ImageSource, source_error
from alexnet2012.data.sources.download import PUBLISHED, fetch
from alexnet2012.data.sources.folders import LAYOUT, Listing
from alexnet2012.data.sources.ilsvrc import edition_in, open_ilsvrc


@dataclass(frozen=True)
class Located:
    """A source that is there and was not opened yet, which can take long."""

    # What tells it from others: names and lengths of files, not where they lie, nor their dates.
    identity: dict[str, Any]
    # For a scratch folder, and whether to show progress; raises ConfigError and RunError.
    open: Callable[[Path, bool], AbstractContextManager[ImageSource]]
    dates: str = ""  # of its files: whether somebody writes to it at this time
    folders: tuple[Path, ...] = ()  # whose content is looked at, whatever it is


def locate(config: PrepareConfig) -> Located:
    """The source that a configuration names.

    ``photos``, ``cifar10``, ``imagenette`` (downloaded, checked), a folder of class folders, a
    folder with ILSVRC's tars or with CIFAR-10's batches, or a tar of class folders. Nothing is
    decoded yet.

    Raises:
        ConfigError: it is not there, or is none of these; says why.
    """
    name = config.source
    if name == "photos":
        return Located({"source": name, "seed": config.seed}, partial(_photos, config))
    if name in PUBLISHED:
        published = PUBLISHED[name]
        return Located(
            {"source": name, published.algorithm: published.digest}, partial(_published, name)
        )
    path = user_path("data.source", name)
    if not path.exists():
        remedy = (
            f"does not exist; give a folder with {LAYOUT}, or one of {', '.join(NAMED_SOURCES)}"
        )
        raise source_error(path, remedy)
    called = {"source": path.resolve().name}
    if path.is_file():
        if not path.name.endswith(ARCHIVE_SUFFIXES):
            remedy = f"is a file, and no {', '.join(ARCHIVE_SUFFIXES)}; give a folder with {LAYOUT}"
            raise source_error(path, f"{remedy}, or one of {', '.join(NAMED_SOURCES)}")
        of_archive = open_cifar10 if path.name == PUBLISHED["cifar10"].name else open_archive
        identity = {**called, "bytes": path.stat().st_size}
        return Located(identity, partial(_now, partial(of_archive, path)), _dates([path]))
    edition = edition_in(path)
    if edition is not None or is_cifar10(path):
        names = CIFAR10_FILES if edition is None else edition.files
        files = [path / name for name in names if (path / name).is_file()]
        opened = partial(open_cifar10, path)
        if edition is not None:
            opened = partial(open_ilsvrc, path, edition)
        identity = {**called, **{file.name: file.stat().st_size for file in files}}
        return Located(identity, partial(_now, opened), _dates(files))
    listing = Listing(path, config.val_percent, config.seed)
    return Located(
        {**called, **listing.identity()},
        partial(_now, listing.source),
        listing.dates,
        tuple(listing.folders.values()) or (path,),
    )


def is_gone(config: PrepareConfig) -> bool:
    """Whether the source was a path, and is no longer there."""
    named = config.source in NAMED_SOURCES
    return not named and not user_path("data.source", config.source).exists()


@contextmanager
def _now(opened: Callable[[], ImageSource], scratch: Path, progress: bool) -> Iterator[ImageSource]:
    yield opened()


@contextmanager
def _published(name: str, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    archive = fetch(PUBLISHED[name], home() / "downloads", progress)
    source = open_cifar10(archive) if name == "cifar10" else open_archive(archive)
    yield replace(source, description=_DESCRIPTIONS[name])


@contextmanager
def _photos(config: PrepareConfig, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
    try:
        photos.make_photos(scratch, seed=config.seed)
        listing = Listing(scratch, config.val_percent, config.seed)
        yield replace(listing.source(), description=photos.DESCRIPTION)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dates(files: list[Path]) -> str:
    times = [file.stat().st_mtime_ns for file in files]
    return hashlib.sha256(repr(times).encode()).hexdigest()


_DESCRIPTIONS = {
    "cifar10": "CIFAR-10: pictures of 32 × 32 pixels in ten classes.",
    "imagenette": "Imagenette, ten classes of ImageNet: no evidence about all thousand.",
    "imagenette160": "Imagenette at 160 pixels, ten classes: no evidence about ImageNet.",
    "imagenettefull": "Imagenette, ten classes of ImageNet: no evidence about all thousand.",
}
