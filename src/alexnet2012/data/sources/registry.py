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
from alexnet2012.config.schema import ConfigError, PrepareConfig
from alexnet2012.config.validation import home, user_path
from alexnet2012.data.sources import photos
from alexnet2012.data.sources.archives import ARCHIVE_SUFFIXES
from alexnet2012.data.sources.base import ImageSource, source_error
from alexnet2012.data.sources.cifar10 import CIFAR10_FILES, open_cifar10
from alexnet2012.data.sources.download import REMOTE_FILES, fetch
from alexnet2012.data.sources.files import ArchiveFiles, FolderFiles, archive_stem
from alexnet2012.data.sources.ilsvrc import RELEASES, open_ilsvrc
from alexnet2012.data.sources.image_tree import ImageTree
from alexnet2012.data.sources.layouts import folders_above


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

    One of ``photos``, ``cifar10``, ``imagenette``, ``tinyimagenet`` (downloaded and verified), a
    folder, tar or zip in a layout of :mod:`.layouts`, or a folder with ILSVRC's tars or CIFAR-10's
    batches.

    Raises:
        ConfigError: the source does not exist, or is none of these.
    """
    name = config.source
    if name == "photos":
        return SourceHandle({"source": name, "seed": config.seed}, partial(_open_photos, config))
    if name in REMOTE_FILES:
        file = REMOTE_FILES[name]
        identity: dict[str, Any] = {"source": name, file.algorithm: file.digest}
        return SourceHandle(identity, partial(_open_download, config))
    path = user_path("data.source", name)
    usage = "set it to a folder, tar or zip with train/CLASS/*.jpg and val/CLASS/*.jpg, or one of "
    usage += ", ".join(NAMED_SOURCES)
    if not path.exists():
        raise source_error(path, f"does not exist; {usage}")
    if not (path.is_file() or path.is_dir()):
        raise source_error(path, f"is neither a file nor a folder; {usage}")
    basename: dict[str, Any] = {"source": path.resolve().name}
    if path.is_file():
        if (stem := archive_stem(path.name)) is None:
            kinds = ", ".join(ARCHIVE_SUFFIXES)
            raise source_error(path, f"is a file, but not one of {kinds}; {usage}")
        identity = {**basename, "bytes": path.stat().st_size}
        open_file: Callable[[], ImageSource] = partial(open_archive, path, config)
        if path.name == REMOTE_FILES["cifar10"].name:
            open_file = partial(open_cifar10, path)
        elif (above := folders_above(path.with_name(stem))) or _has_rules(config):
            # The archive's size does not tell how it is split, nor what labels are outside.
            tree = ImageTree(ArchiveFiles(path), stem, config, above)
            open_file, identity = tree.source, identity | tree.rules
        return SourceHandle(identity, partial(_open, open_file), _dates([path]))
    release = next((r for r in RELEASES if (path / r.train).is_file()), None)
    if release is not None or (path / CIFAR10_FILES[0]).is_file():
        names = CIFAR10_FILES if release is None else release.files
        files = [path / name for name in names if (path / name).is_file()]
        open_files = partial(open_cifar10, path)
        if release is not None:
            open_files = partial(open_ilsvrc, path, release)
        if config.labels is not None:
            raise ConfigError("labels", config.labels, "is not used by this source; remove it")
        identity = {**basename, **{file.name: file.stat().st_size for file in files}}
        return SourceHandle(identity, partial(_open, open_files), _dates(files))
    whole = path.resolve()
    tree = ImageTree(FolderFiles(path), whole.name, config, folders_above(whole))
    return SourceHandle(
        {**basename, **tree.identity}, partial(_open, tree.source), tree.dates, tree.folders
    )


def open_archive(path: Path, config: PrepareConfig) -> ImageSource:
    """The images of a tar or zip."""
    return ImageTree(ArchiveFiles(path), archive_stem(path.name) or path.name, config).source()


def _has_rules(config: PrepareConfig) -> bool:
    usual = PrepareConfig()
    keys = ("labels", "val_percent", "seed")
    return any(getattr(config, key) != getattr(usual, key) for key in keys)


def source_is_missing(config: PrepareConfig) -> bool:
    name = config.source
    return name not in NAMED_SOURCES and not user_path("data.source", name).exists()


@contextmanager
def _open(
    open_source: Callable[[], ImageSource], scratch: Path, progress: bool
) -> Iterator[ImageSource]:
    yield open_source()


@contextmanager
def _open_download(config: PrepareConfig, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    name = config.source
    archive = fetch(REMOTE_FILES[name], home() / "downloads", progress)
    if name == "cifar10":
        yield open_cifar10(archive)
    else:
        yield replace(open_archive(archive, config), description=_DESCRIPTIONS[name])


@contextmanager
def _open_photos(config: PrepareConfig, scratch: Path, progress: bool) -> Iterator[ImageSource]:
    shutil.rmtree(scratch, ignore_errors=True)  # left by a process that was killed
    try:
        photos.make_photos(scratch, seed=config.seed)
        tree = ImageTree(FolderFiles(scratch), "photos", config)
        yield replace(tree.source(), description=photos.DESCRIPTION)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _dates(files: list[Path]) -> str:
    times = [file.stat().st_mtime_ns for file in files]
    return hashlib.sha256(repr(times).encode()).hexdigest()


_DESCRIPTIONS = {
    "imagenette": "Imagenette, ten of ImageNet's 1,000 classes: no evidence about the rest.",
    "imagenette160": "Imagenette at 160 pixels, ten classes: no evidence about ImageNet.",
    "imagenettefull": "Imagenette, ten of ImageNet's 1,000 classes: no evidence about the rest.",
    "tinyimagenet": "Tiny ImageNet, 200 classes at 64 pixels: no evidence about ImageNet.",
}
