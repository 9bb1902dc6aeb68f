"""Members of tar and zip archives, which are never unpacked to disk.

Workers read the images of an uncompressed archive by offset; compressed ones are read sequentially
by the main process. Member names never become paths.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, ParamSpec, TypeVar

from alexnet2012.data.sources.base import (
    MAX_FILE_BYTES,
    Entry,
    has_image_suffix,
    is_hidden,
    source_error,
)

P = ParamSpec("P")
T = TypeVar("T")
ARCHIVE_SUFFIXES = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz", ".zip")
DOWNLOAD_AGAIN = "download it again"
MAX_HEADER_BYTES = 1 << 20  # of a long name or other extended headers of a member
MAX_SHOWN = 100  # characters of a member's name in a message
_EXTENDED = (
    *(tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK),
    *(tarfile.XHDTYPE, tarfile.XGLTYPE, tarfile.SOLARIS_XHDTYPE),
)
_ZIP_MAGIC = b"PK"
_LOCAL_HEADER = 30  # bytes of a zip member's own header before its name and extra field


class Member(NamedTuple):
    """A file of an archive; ``entry`` and ``read`` must be called before the next member."""

    name: str
    size: int  # bytes
    entry: Callable[[str, int], Entry]  # from the entry's name and label
    read: Callable[[], bytes]


@contextmanager
def archive_errors(path: Path | str) -> Iterator[None]:
    """Turn the exceptions of a damaged archive into a ConfigError that names it."""
    try:
        yield
    except (
        *(tarfile.TarError, zipfile.BadZipFile, EOFError, zlib.error, lzma.LZMAError, OSError),
        NotImplementedError,  # a zip's compression method
    ) as error:
        reason = " ".join(str(error).split())
        remedy = f"the archive is damaged ({reason}); {DOWNLOAD_AGAIN}"
        raise source_error(path, remedy) from error


class _StrictInfo(tarfile.TarInfo):
    """Raises on a damaged header, which tarfile would take for the end of the archive."""

    @classmethod
    def frombuf(cls, buf: bytes | bytearray, encoding: str, errors: str) -> _StrictInfo:
        info = super().frombuf(buf, encoding, errors)
        if info.type in _EXTENDED and info.size > MAX_HEADER_BYTES:  # it would be read at once
            size = f"{info.size:,} bytes for the name of one member"
            raise tarfile.ReadError(f"{size}; the limit is {MAX_HEADER_BYTES:,}")
        return info

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> _StrictInfo:
        try:
            return super().fromtarfile(tar)
        except RecursionError:
            raise tarfile.ReadError("extended headers without a member") from None
        except (
            tarfile.InvalidHeaderError,  # type: ignore[attr-defined]
            tarfile.TruncatedHeaderError,  # type: ignore[attr-defined]
            tarfile.EmptyHeaderError,  # type: ignore[attr-defined]
        ) as error:
            raise tarfile.ReadError(f"damaged header at byte {tar.offset}: {error}") from error


def open_tar(path: Path | str, file: Any = None) -> tarfile.TarFile:
    """Open a tar, compressed or not; ``file`` is an uncompressed tar within a tar."""
    return tarfile.open(path, "r:" if file else "r", fileobj=file, tarinfo=_StrictInfo)


def iter_members(
    tar: tarfile.TarFile, path: Path | str, hidden_images: bool = False
) -> Iterator[tarfile.TarInfo]:
    """Iterate over the files of a tar in constant memory; checks that it is complete.

    Hidden files are skipped, except those with an image suffix if ``hidden_images`` is set.

    Raises:
        ConfigError: a member is not a regular file, or its path leaves the archive; or data follows
            the end of the archive, so a header was overwritten.
    """
    for member in tar:
        tar.members = []  # type: ignore[attr-defined]  # tarfile would keep every header it reads
        problem = ""
        if not member.isdir() and (not member.isreg() or member.issparse() or member.size < 0):
            problem = "is not a regular file"
        _check_member(path, member.name, problem)
        if not member.isdir() and not _is_skipped(member.name, hidden_images):
            yield member
    assert tar.fileobj is not None
    # To the end: compressed archives have their checksum there.
    while rest := tar.fileobj.read(1 << 20):
        if rest.strip(b"\0"):
            raise source_error(path, f"has data after its end marker; {DOWNLOAD_AGAIN}")


def is_compressed(tar: tarfile.TarFile) -> bool:
    """Whether the tar is compressed, whatever its suffix, so members cannot be read by offset."""
    return isinstance(tar.fileobj, gzip.GzipFile | bz2.BZ2File | lzma.LZMAFile)


def iter_archive(path: Path) -> Iterator[Member]:
    """Iterate over the files of a tar or zip, which is detected from its content.

    Hidden files without an image suffix are skipped.

    Raises:
        ConfigError: the archive is damaged, or a member is not a regular file, is encrypted, or has
            a path that leaves the archive.
    """
    with archive_errors(path):
        with path.open("rb") as file:
            is_zip = path.suffix == ".zip" or file.read(2) == _ZIP_MAGIC
        for member in _zip_members(path) if is_zip else _tar_members(path):
            # The caller's reads are not inside this generator.
            entry, read = _guarded(path, member.entry), _guarded(path, member.read)
            yield member._replace(entry=entry, read=read)


def _guarded(path: Path, function: Callable[P, T]) -> Callable[P, T]:
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        with archive_errors(path):
            return function(*args, **kwargs)

    return guarded


def _tar_members(path: Path) -> Iterator[Member]:
    with open_tar(path) as tar:
        for info in iter_members(tar, path, hidden_images=True):

            def entry(name: str, label: int, info: tarfile.TarInfo = info) -> Entry:
                return make_entry(tar, path, info, label, name)

            yield Member(info.name, info.size, entry, partial(read_member, tar, info))


def _zip_members(path: Path) -> Iterator[Member]:
    with zipfile.ZipFile(path) as archive:
        for info in archive.infolist():
            name = info.filename.replace("\\", "/")  # some writers use Windows' separator
            kind = stat.S_IFMT(info.external_attr >> 16)
            problem = ""
            if info.flag_bits & 1:
                problem = "is encrypted"
            elif kind not in (0, stat.S_IFREG, stat.S_IFDIR):
                problem = "is not a regular file"
            _check_member(path, name, problem)
            if info.is_dir() or _is_skipped(name):
                continue
            yield Member(
                name,
                info.file_size,
                partial(_zip_entry, archive, path, info),
                partial(archive.read, info),
            )


def _zip_entry(
    archive: zipfile.ZipFile, path: Path, info: zipfile.ZipInfo, name: str, label: int
) -> Entry:
    if info.file_size > MAX_FILE_BYTES:  # Entry.read rejects it
        return Entry(name, label, str(path), 0, info.file_size)
    if info.compress_type != zipfile.ZIP_STORED:
        return Entry(name, label, data=archive.read(info))
    assert archive.fp is not None
    archive.fp.seek(info.header_offset)
    header = archive.fp.read(_LOCAL_HEADER)
    lengths = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
    offset = info.header_offset + _LOCAL_HEADER + lengths
    return Entry(name, label, str(path), offset, info.file_size)


def _check_member(path: Path | str, name: str, problem: str) -> None:
    """Refuse the whole archive if a member has a ``problem`` or an unsafe path."""
    if not problem and (name.startswith("/") or ".." in PurePosixPath(name).parts):
        problem = "has an unsafe path"
    if problem:
        shown = f"{name[:MAX_SHOWN]}…" if name[MAX_SHOWN:] else name
        raise source_error(path, f"member {shown!r} {problem}; do not use this archive")


def _is_skipped(name: str, hidden_images: bool = True) -> bool:
    """Whether a member is hidden or in a hidden folder; hidden images can be kept, as strays."""
    *folders, file = PurePosixPath(name).parts or ("",)
    if any(map(is_hidden, folders)):
        return True
    return is_hidden(file) and not (hidden_images and has_image_suffix(file))


def make_entry(
    tar: tarfile.TarFile, path: Path, member: tarfile.TarInfo, label: int, name: str = ""
) -> Entry:
    """An image of a tar: its offset in an uncompressed archive, else its bytes."""
    name = name or member.name
    if not is_compressed(tar) or member.size > MAX_FILE_BYTES:  # Entry.read rejects it
        return Entry(name, label, str(path), member.offset_data, member.size)
    return Entry(name, label, data=read_member(tar, member))


def read_member(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None, member
    return file.read()
