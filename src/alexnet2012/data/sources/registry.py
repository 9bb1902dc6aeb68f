"""Resolves a source setting, a name or a path, to an image source."""

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
    open_archive,
    open_cifar10,
)
from alexnet2012.data.sources.base import ImageSource, source_error
from alexnet2012.data.sources.download import REMOTE_FILES, fetch
from alexnet2012.data.sources.folders import LAYOUT, ImageFolder
from alexnet2012.data.sources.ilsvrc import RELEASES, open_ilsvrc


@dataclass(frozen=True)
class SourceHandle:
    """An existing source that has not been opened yet; opening it can take long."""

    # Distinguishes it from other sources: file names and sizes, but no locations or dates.
    identity: dict[str, Any]
    # Arguments: a scratch folder, whether to show progress. Raises ConfigError and RunError.
    open: Callable[[Path, bool], AbstractContextManager[ImageSource]]
    dates: str = ""  # digest of modification times: changes when a file is written to
    folders: tuple[Path, ...] = ()  # every file in these folders belongs to the source


def locate(config: PrepareConfig) -> SourceHandle:
    """The source named by a configuration, without decoding an image.

    One of ``photos``, ``cifar10``, ``imagenette`` (downloaded and verified), a folder of class
    folders, a folder with ILSVRC's tars or CIFAR-10's batches, or a tar of class folders.

    Raises:
        ConfigError: the source does not exist, or is none of these.
    """
    name = config.source
    if name == "photos":
        return SourceHandle({"source": name, "seed": config.seed}, partial(_open_photos, config))
    if name in REMOTE_FILES:
        file = REMOTE_FILES[name]
        identity: dict[str, Any] = {"source": name, file.algorithm: file.digest}
        return SourceHandle(identity, partial(_open_download, name))
    path = user_path("data.source", name)
    usage = f"set it to a folder with {LAYOUT}, or one of {', '.join(NAMED_SOURCES)}"
    if not path.exists():
        raise source_error(path, f"does not exist; {usage}")
    if not (path.is_file() or path.is_dir()):
        raise source_error(path, f"is neither a file nor a folder; {usage}")
    basename = {"source": path.resolve().name}
    if path.is_file():
        if not path.name.endswith(ARCHIVE_SUFFIXES):
            kinds = ", ".join(ARCHIVE_SUFFIXES)
            raise source_error(path, f"is a file, but not one of {kinds}; {usage}")
        open_file = open_cifar10 if path.name == REMOTE_FILES["cifar10"].name else open_archive
        identity = {**basename, "bytes": path.stat().st_size}
        return SourceHandle(identity, partial(_open, partial(open_file, path)), _dates([path]))
    release = next((r for r in RELEASES if (path / r.train).is_file()), None)
    if release is not None or (path / CIFAR10_FILES[0]).is_file():
        names = CIFAR10_FILES if release is None else release.files
        files = [path / name for name in names if (path / name).is_file()]
        open_files = partial(open_cifar10, path)
        if release is not None:
            open_files = partial(open_ilsvrc, path, release)
        identity = {**basename, **{file.name: file.stat().st_size for file in files}}
        return SourceHandle(identity, partial(_open, open_files), _dates(files))
    folder = ImageFolder(path, config.val_percent, config.seed)
    return SourceHandle(
        {**basename, **folder.identity()},
        partial(_open, folder.source),
        folder.dates,
        tuple(folder.folders.values()) or (path,),
    )


def source_is_missing(config: PrepareConfig) -> bool:
    name = config.source
    return name not in NAMED_SOURCES and not user_path("data.source", name).exists()


@contextmanager
def _open(
    open_source: Callable[[], ImageSource], scratch: Path, progress: bool
) -> Iterator[ImageSource]:
    yield open_source()


@contextmanager
def _open_download(name: str, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    archive = fetch(REMOTE_FILES[name], home() / "downloads", progress)
    if name == "cifar10":
        yield open_cifar10(archive)
    else:
        yield replace(open_archive(archive), description=_DESCRIPTIONS[name])


@contextmanager
def _open_photos(config: PrepareConfig, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    try:
        photos.make_photos(scratch, seed=config.seed)
        folder = ImageFolder(scratch, config.val_percent, config.seed)
        yield replace(folder.source(), description=photos.DESCRIPTION)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dates(files: list[Path]) -> str:
    times = [file.stat().st_mtime_ns for file in files]
    return hashlib.sha256(repr(times).encode()).hexdigest()


_DESCRIPTIONS = {
    "imagenette": "Imagenette, ten of ImageNet's 1,000 classes: no evidence about the rest.",
    "imagenette160": "Imagenette at 160 pixels, ten classes: no evidence about ImageNet.",
    "imagenettefull": "Imagenette, ten of ImageNet's 1,000 classes: no evidence about the rest.",
}
