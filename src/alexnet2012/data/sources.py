"""Where pictures come from: a name or a path, and what it turns out to be."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from alexnet2012.checks import home
from alexnet2012.choices import NAMED_SOURCES
from alexnet2012.config import PrepareConfig
from alexnet2012.data import photos
from alexnet2012.data.archives import ARCHIVE_SUFFIXES, is_cifar10, open_archive, open_cifar10
from alexnet2012.data.download import PUBLISHED, fetch
from alexnet2012.data.folders import LAYOUT, Listing
from alexnet2012.data.ilsvrc import edition_in, open_ilsvrc
from alexnet2012.data.source import Source, source_error


@contextmanager
def opened_source(config: PrepareConfig, scratch: Path, progress: bool) -> Iterator[Source]:
    """The pictures that a configuration names.

    ``photos``, ``cifar10``, ``imagenette`` (downloaded, checked), a folder of class folders, a
    folder with ILSVRC's tars or with CIFAR-10's batches, or a tar of class folders. Nothing is
    decoded yet. ``scratch`` is for a folder of the time in between.

    Raises:
        ConfigError: it cannot be used; says why.
        RunError: it cannot be downloaded.
    """
    name = config.source
    if name == "photos":
        shutil.rmtree(scratch, ignore_errors=True)  # of one that was killed
        try:
            photos.make_photos(scratch, seed=config.seed)
            listing = Listing(scratch, config.val_percent, config.seed)
            yield replace(listing.source(), description=photos.DESCRIPTION)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    if name in PUBLISHED:
        archive = fetch(PUBLISHED[name], home() / "downloads", progress)
        source = open_cifar10(archive) if name == "cifar10" else open_archive(archive)
        yield replace(source, description=_DESCRIPTIONS[name])
        return
    yield _open_path(config, _path(name))


def source_identity(config: PrepareConfig) -> dict[str, Any]:
    """What tells this source from others, without opening it where that would take long.

    Archives are told apart by name and length, folders by the names and lengths of their files:
    where a source lies does not count.
    """
    name = config.source
    if name == "photos":
        return {"source": name, "seed": config.seed}
    if name in PUBLISHED:
        return {"source": name, PUBLISHED[name].algorithm: PUBLISHED[name].digest}
    path = _path(name)
    called = {"source": path.resolve().name}
    if path.is_file():
        return {**called, "bytes": path.stat().st_size}
    edition = edition_in(path)
    if edition is not None:
        files = (edition.train, edition.val, edition.devkit)
        there = [path / file for file in files if (path / file).is_file()]
        return {**called, **{file.name: file.stat().st_size for file in there}}
    if is_cifar10(path):
        files_here = sorted(path.glob("*.bin"))
        return {**called, **{file.name: file.stat().st_size for file in files_here}}
    return {**called, **Listing(path, config.val_percent, config.seed).identity()}


def _path(name: str) -> Path:
    path = Path(name).expanduser()
    if not path.exists():
        remedy = (
            f"does not exist; give a folder with {LAYOUT}, or one of {', '.join(NAMED_SOURCES)}"
        )
        raise source_error(path, remedy)
    return path


def _open_path(config: PrepareConfig, path: Path) -> Source:
    if path.is_file():
        if not path.name.endswith(ARCHIVE_SUFFIXES):
            remedy = f"is a file, and no {', '.join(ARCHIVE_SUFFIXES)}; give a folder with {LAYOUT}"
            raise source_error(path, f"{remedy}, or one of {', '.join(NAMED_SOURCES)}")
        if path.name == PUBLISHED["cifar10"].name:
            return open_cifar10(path)
        return open_archive(path)
    edition = edition_in(path)
    if edition is not None:
        return open_ilsvrc(path, edition)
    if is_cifar10(path):
        return open_cifar10(path)
    return Listing(path, config.val_percent, config.seed).source()


_DESCRIPTIONS = {
    "cifar10": "CIFAR-10: pictures of 32 × 32 pixels in ten classes.",
    "imagenette": "Imagenette, ten classes of ImageNet: no evidence about all thousand.",
    "imagenette160": "Imagenette at 160 pixels, ten classes: no evidence about ImageNet.",
    "imagenettefull": "Imagenette, ten classes of ImageNet: no evidence about all thousand.",
}
