"""The files of a source: a folder, a tar or a zip, and archives in a folder.

An archive counts as a folder of its name, without the suffix. Summaries of folders keep no file
names, so a million images need no more memory than a thousand.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from stat import S_ISREG
from typing import NamedTuple, Protocol

from alexnet2012.data.sources.archives import ARCHIVE_SUFFIXES, Member, iter_archive
from alexnet2012.data.sources.base import Entry, has_image_suffix, is_hidden
from alexnet2012.data.store import SPLITS

Parts = tuple[str, ...]  # a path below the source
_MAX_TEXT_BYTES = 64 * 2**20
# Files that give labels or class names, in order of preference.
LABEL_FILES = (
    "LOC_{split}_solution.csv",  # Kaggle's ILSVRC
    "{split}_annotations.txt",  # Tiny ImageNet
    *("{split}.txt", "{split}.csv", "{split}_labels.txt", "{split}_labels.csv"),
    *("labels.txt", "labels.csv"),
    "imagenet_2012_validation_synset_labels.txt",  # TensorFlow's
)
CLASS_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "synsets.txt", "wnids.txt")
WORD_FILES = ("LOC_synset_mapping.txt", "synset_words.txt", "words.txt")
TEXT_FILES = {  # all of these; those of an archive are read when it is listed
    *(name.format(split=split) for name in LABEL_FILES for split in SPLITS),
    *(*CLASS_FILES, *WORD_FILES),
}


class SourceFile(NamedTuple):
    """A visible file of a source, or a hidden one with an image suffix."""

    parts: Parts
    name: str  # path as shown, with the suffixes of archives
    size: int = 0  # bytes
    time_ns: int = 0  # of the last change
    entry: Callable[[int], Entry] | None = None  # from a label; None: cannot be an image
    archive: bool = False  # an archive whose images were not listed


@dataclass
class FolderSummary:
    """What is directly in a folder."""

    folders: list[str] = field(default_factory=list)  # sorted, hidden ones left out
    images: int = 0
    others: int = 0
    first_image: str = ""
    first_other: str = ""

    def add(self, name: str) -> None:
        if has_image_suffix(name):
            self.images += 1
            self.first_image = self.first_image or name
        else:
            self.others += 1
            self.first_other = self.first_other or name


class SourceFiles(Protocol):
    """Access to the files of a source by their paths."""

    root: Path

    def folder(self, parts: Parts) -> FolderSummary:
        """What is in a folder; an empty summary if there is no such folder."""

    def files(self, parts: Parts, in_archives: bool = True) -> Iterator[SourceFile]:
        """All files at any depth of a folder, always in the same order.

        Without ``in_archives``, an archive in a folder is one file.
        """

    def read(self, parts: Parts) -> bytes | None:
        """The content of a text file; None if there is none."""


class FolderFiles:
    """The files of a folder, in the order of their names."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self._summaries: dict[Parts, FolderSummary] = {}
        self._archives: dict[Parts, ArchiveFiles] = {}

    def folder(self, parts: Parts) -> FolderSummary:
        if parts not in self._summaries:
            archive = self._archive_of(parts)
            if archive is not None:
                return archive[0].folder(archive[1])
            path = self.root.joinpath(*parts)
            self._summarise(parts, _listed(path) if path.is_dir() else [])
        return self._summaries[parts]

    def files(self, parts: Parts, in_archives: bool = True) -> Iterator[SourceFile]:
        if (archive := self._archive_of(parts)) is not None:
            yield from self._archived(*archive, in_archives)
        elif (self.root.joinpath(*parts)).is_dir():
            yield from self._walk(parts, in_archives, frozenset())

    def read(self, parts: Parts) -> bytes | None:
        return read_text(self.root.joinpath(*parts))

    def is_flat_archive(self, parts: Parts) -> bool:
        """Whether ``parts`` is an archive whose images are in no folder."""
        return parts in self._archives and self._archives[parts].is_flat

    def _summarise(self, parts: Parts, entries: list[os.DirEntry[str]]) -> None:
        """Summarise a folder, and find the archives in it."""
        summary = self._summaries[parts] = FolderSummary()
        archives: dict[str, Path] = {}
        for entry in entries:
            if is_hidden(entry.name):
                continue
            if _is_dir(entry):
                summary.folders.append(entry.name)
                continue
            summary.add(entry.name)
            if (stem := archive_stem(entry.name)) is not None:
                archives.setdefault(stem, Path(entry.path))
        if summary.images == 0:  # an archive beside images is none of them
            for stem, archive in archives.items():
                if stem not in summary.folders:  # as after it was unpacked
                    self._archives[*parts, stem] = ArchiveFiles(archive, archive.name)
                    summary.folders.append(stem)
                    summary.others -= 1
            summary.folders.sort()

    def _archive_of(self, parts: Parts) -> tuple[ArchiveFiles, Parts, Parts] | None:
        """The archive that contains ``parts``, the path within it, and that of the archive."""
        for length in range(len(parts) + 1):
            if length:
                self.folder(parts[: length - 1])  # finds the archives in it
            if (archive := self._archives.get(parts[:length])) is not None:
                return archive, parts[length:], parts[:length]
        return None

    def _archived(
        self, archive: ArchiveFiles, inside: Parts, parts: Parts, in_archives: bool
    ) -> Iterator[SourceFile]:
        name = "/".join((*parts[:-1], archive.root.name))
        if not in_archives:
            stat = archive.root.stat()
            yield SourceFile(parts, name, stat.st_size, stat.st_mtime_ns, archive=True)
            return
        for file in archive.files(inside):
            yield file._replace(parts=parts + file.parts, name=f"{name}/{file.name}")

    def _walk(
        self, parts: Parts, in_archives: bool, above: frozenset[tuple[int, int]]
    ) -> Iterator[SourceFile]:
        folder = self.root.joinpath(*parts)
        stat = folder.stat()
        above |= {(stat.st_dev, stat.st_ino)}
        entries = _listed(folder)
        if parts not in self._summaries:
            self._summarise(parts, entries)
        for entry in entries:
            path, hidden = (*parts, entry.name), is_hidden(entry.name)
            name = "/".join(path)
            if _is_dir(entry):
                stat = entry.stat()
                is_link_up = (stat.st_dev, stat.st_ino) in above
                if not hidden and not is_link_up:
                    yield from self._walk(path, in_archives, above)
            elif has_image_suffix(entry.name):
                yield SourceFile(path, name) if hidden else _image_file(path, name, entry)
            elif not hidden:
                stem = (*parts, archive_stem(entry.name) or "")
                archive = self._archives.get(stem)
                if archive is None or archive.root.name != entry.name:
                    yield SourceFile(path, name)
                else:
                    yield from self._archived(archive, (), stem, in_archives)


class ArchiveFiles:
    """The files of a tar or zip, in its order; listed when a folder of it is first asked for."""

    def __init__(self, root: Path, shown: str = "") -> None:
        self.root, self._shown = root, shown
        self._summaries: dict[Parts, FolderSummary] = {}
        self._texts: dict[Parts, bytes] = {}
        self._is_flat: bool | None = None

    @property
    def is_flat(self) -> bool:
        """Whether the first image is in no folder: then the whole archive need not be listed."""
        if self._is_flat is None:
            paths = (_parts(member.name) for member in iter_archive(self.root))
            images = (p for p in paths if has_image_suffix(p[-1]) and not is_hidden(p[-1]))
            self._is_flat = len(next(images, ())) == 1
        return self._is_flat

    def folder(self, parts: Parts) -> FolderSummary:
        if self._shown and self.is_flat:  # an archive in a folder
            return FolderSummary(images=0 if parts else 1)
        self._list()
        return self._summaries.get(parts, FolderSummary())

    def files(self, parts: Parts, in_archives: bool = True) -> Iterator[SourceFile]:
        for member in iter_archive(self.root):
            path = _parts(member.name)
            if path[: len(parts)] != parts:
                continue
            if not has_image_suffix(path[-1]) or is_hidden(path[-1]):
                yield SourceFile(path, member.name)
                continue

            def entry(label: int, member: Member = member) -> Entry:
                name = f"{self._shown}/{member.name}" if self._shown else member.name
                return member.entry(name, label)

            yield SourceFile(path, member.name, member.size, 0, entry)

    def read(self, parts: Parts) -> bytes | None:
        self._list()
        return self._texts.get(parts)

    def _list(self) -> None:
        if self._summaries:
            return
        self._summaries[()] = FolderSummary()
        for member in iter_archive(self.root):
            path = _parts(member.name)
            for depth in range(len(path) - 1):
                if path[: depth + 1] not in self._summaries:
                    self._summaries[path[: depth + 1]] = FolderSummary()
                    self._summaries[path[:depth]].folders.append(path[depth])
            if not is_hidden(path[-1]):
                self._summaries[path[:-1]].add(path[-1])
            if path[-1] in TEXT_FILES and member.size <= _MAX_TEXT_BYTES:
                self._texts[path] = member.read()
        for summary in self._summaries.values():
            summary.folders.sort()


def read_text(path: Path) -> bytes | None:
    """The content of a file of text; None if there is none, or if it is too large to be one."""
    if not path.is_file() or path.stat().st_size > _MAX_TEXT_BYTES:
        return None
    return path.read_bytes()


def archive_stem(name: str) -> str | None:
    """The name of an archive without its suffix; None if it is not named like one."""
    suffix = max((s for s in ARCHIVE_SUFFIXES if name.lower().endswith(s)), key=len, default="")
    return name.removesuffix(name[-len(suffix) :]) if suffix else None


def _parts(name: str) -> Parts:
    return PurePosixPath(name).parts


def _listed(folder: Path) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def _is_dir(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def _image_file(parts: Parts, name: str, entry: os.DirEntry[str]) -> SourceFile:
    """An image, or a file that is named like one but is no regular file: reading a pipe hangs."""
    path = entry.path
    try:
        stat = entry.stat()
    except OSError:  # a dangling link, for example: reported when it is read
        return SourceFile(parts, name, entry=lambda label: Entry(name, label, path))
    if not S_ISREG(stat.st_mode):
        return SourceFile(parts, name)
    size, time_ns = stat.st_size, stat.st_mtime_ns
    return SourceFile(parts, name, size, time_ns, lambda label: Entry(name, label, path))
