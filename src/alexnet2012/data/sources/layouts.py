"""Recognises how the images of a source are laid out: splits, class folders, flat folders."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from alexnet2012.data.sources.base import source_error
from alexnet2012.data.sources.files import FolderSummary, Parts, SourceFiles

UNDERSTOOD = (
    "train/CLASS/*.jpg and val/CLASS/*.jpg; CLASS/*.jpg; ILSVRC's tars or folders; the layouts of "
    "Kaggle, Hugging Face's tars and Tiny ImageNet; images with a list (labels=FILE); and tar or "
    "zip files of these"
)
# Names of the validation folder in order of preference; test images often have no labels.
_VAL_NAMES = ("val", "valid", "validation", "test", "testing")
_SPLIT = re.compile(
    r"(?:(?:ilsvrc\d{4}|imagenet)_)?(?:img_|images_)?"
    rf"(train|training|{'|'.join(_VAL_NAMES)})"
    r"(?:[_-]?(?:images|imgs|set|data))?(?P<shard>_\d+)?",
    re.IGNORECASE,
)
_KAGGLE = ("CLS-LOC", "Data", "ILSVRC")  # the folders above Kaggle's splits, innermost first
_MAX_DEPTH = 5  # of the folder with the splits
_MAX_FOLDERS = 32  # of one level that may hold them; more are classes
_MAX_LOOKS = 20  # folders that are searched for a first image
# Files of other formats, by suffix: what they are.
_FORMATS = {
    ".parquet": "Parquet files (take the tar files of the same repository)",
    ".arrow": "Arrow files",
    ".tfrecord": "TFRecord files",
    ".mdb": "an LMDB database",
    ".h5": "HDF5 files",
    ".hdf5": "HDF5 files",
    ".npz": "NumPy files",
    ".npy": "NumPy files",
    ".mat": "MATLAB files",
    ".rec": "MXNet's RecordIO files",
    ".beton": "FFCV files",
    ".cls": "WebDataset shards",
    ".7z": "7-Zip archives",
    ".rar": "RAR archives",
    ".heic": "HEIC images, which Pillow cannot read",
}


@dataclass(frozen=True)
class Images:
    """Where images of one split are: class folders in a folder, or a flat folder."""

    folder: Parts
    flat: bool
    top: Parts  # the split's own folder, of which ``folder`` may be the only one


@dataclass(frozen=True)
class Layout:
    """The images of both splits, of ``val`` alone, or of a source that is yet to be split."""

    splits: dict[str, list[Images]]
    is_split: bool = True  # otherwise all images are under "train"


def split_of(name: str) -> str | None:
    """``train`` or ``val`` if a folder or archive is named like that split."""
    match = _SPLIT.fullmatch(name)
    if match is None:
        return None
    return "val" if match[1].lower() in _VAL_NAMES else "train"


def is_validation(name: str) -> bool:
    """Whether a source of this name holds validation images alone; ``test`` can mean anything."""
    return split_of(name) == "val" and "test" not in name.lower()


def folders_above(path: Path) -> list[Path]:
    """The folders above a source that may hold its labels: it is a split, or part of Kaggle's."""
    above = []
    while split_of(path.name) or path.name in _KAGGLE:
        path = path.parent
        above.append(path)
    return above


def find_layout(files: SourceFiles) -> Layout:
    """The layout of a source, from the names of its folders.

    Raises:
        ConfigError: the splits are incomplete, empty or ambiguous, or there are no images.
    """
    base = _folder_of_splits(files)
    if base is None:
        return Layout({"train": [_images(files, ())]}, is_split=False)
    names = [name for name in files.folder(base).folders if split_of(name)]
    splits = {split: _choose(files, base, names, split) for split in ("train", "val")}
    found = {
        split: [_images(files, (*base, name), name) for name in chosen]
        for split, chosen in splits.items()
        if chosen
    }
    if "val" not in found:
        train = splits["train"][0]
        remedy = f"has {train}/ but no folder val/; add it, or set source to {train}/ itself, of"
        raise source_error(files.root, f"{remedy} which val_percent % are held out")
    others = [name for name in files.folder(base).folders if not split_of(name)]
    if "train" not in found and (beside := _with_images(files, base, others)):
        remedy = f"has {splits['val'][0]}/ and other images in {beside}/, but no folder train/"
        raise source_error(files.root, f"{remedy}; rename {beside}/, or set source to one of them")
    return Layout(found)


def _with_images(files: SourceFiles, base: Parts, names: list[str]) -> str | None:
    """The first of these folders that has images."""
    return next((name for name in names if _has_images(files, (*base, name))), None)


def describe(files: SourceFiles) -> str:
    """What a source holds, level by level, for an error message."""
    levels: list[str] = []
    hints: set[str] = set()
    level: list[Parts] = [()]
    for depth in range(_MAX_DEPTH):
        level = level[:200]
        summaries = [(parts, files.folder(parts)) for parts in level]
        counts = {
            "folders": (sum(len(s.folders) for _, s in summaries), _first(summaries, "folders")),
            "images": (sum(s.images for _, s in summaries), _first(summaries, "first_image")),
            "other files": (sum(s.others for _, s in summaries), _first(summaries, "first_other")),
        }
        told = [f"{n:,} {kind} ({first})" for kind, (n, first) in counts.items() if n]
        if told:
            levels.append(f"level {depth + 1}: {', '.join(told)}")
        for _, summary in summaries:
            hints |= _hints(summary)
        level = [(*parts, name) for parts, summary in summaries for name in summary.folders]
    held = "; ".join(levels) or "nothing"
    extra = f"; {', '.join(sorted(hints))} cannot be read, so unpack them" if hints else ""
    return f"it holds {held}{extra}; supported layouts: {UNDERSTOOD}"


def _hints(summary: FolderSummary) -> set[str]:
    """What the other files of a folder are, if they may hold images."""
    suffix = Path(summary.first_other).suffix.lower()
    if re.search(r"-\d{5}-of-\d{5}$", summary.first_other):
        suffix = ".tfrecord"
    return {_FORMATS[suffix]} if suffix in _FORMATS else set()


def _first(summaries: list[tuple[Parts, FolderSummary]], field: str) -> str:
    for parts, summary in summaries:
        if value := getattr(summary, field):
            return "/".join((*parts, value if isinstance(value, str) else value[0]))
    return ""


def _folder_of_splits(files: SourceFiles) -> Parts | None:
    """The outermost folder with splits that have images, or else one with empty splits."""
    level: list[Parts] = [()]
    empty = None
    for _ in range(_MAX_DEPTH):
        for parts in level:
            names = files.folder(parts).folders
            splits = [name for name in names if split_of(name)]
            with_images = [name for name in splits if _has_images(files, (*parts, name))]
            # A class may be named like a split: then it has no folders, and there are others.
            nested = any(files.folder((*parts, name)).folders for name in with_images)
            others = [name for name in names if name not in splits]
            if with_images and (nested or _with_images(files, parts, others) is None):
                return parts
            if splits and not with_images and empty is None:
                empty = parts
        level = [
            (*parts, name)
            for parts in level
            if not files.folder(parts).images
            for name in files.folder(parts).folders
        ]
        if len(level) > _MAX_FOLDERS:
            break
    return empty


def _choose(files: SourceFiles, base: Parts, names: list[str], split: str) -> list[str]:
    """The folders or archives of a split: one, or several numbered ones."""
    if split == "train":
        ranked = [[name for name in names if split_of(name) == "train"]]
    else:
        kinds = {name: _kind(name) for name in names}
        ranked = [[name for name in names if kinds[name] == kind] for kind in _VAL_NAMES]
    chosen = next(filter(None, ranked), [])
    if len({_without_shard(name) for name in chosen}) > 1:
        both = " and ".join(f"{name}/" for name in chosen)
        where = files.root.joinpath(*base)
        raise source_error(where, f"has both {both}; rename or move one of them")
    return chosen


def _kind(name: str) -> str:
    match = _SPLIT.fullmatch(name)
    return match[1].lower() if match else ""


def _without_shard(name: str) -> str:
    match = _SPLIT.fullmatch(name)
    return name.removesuffix(match["shard"] or "") if match else name


def _images(files: SourceFiles, folder: Parts, shown: str = "") -> Images:
    """The images below ``folder``, which may be alone in further folders."""
    inner = folder
    while not (summary := files.folder(inner)).images and len(summary.folders) == 1:
        inner = (*inner, summary.folders[0])
    if summary.images and not any(_has_images(files, (*inner, name)) for name in summary.folders):
        return Images(inner, True, folder)
    if not summary.folders or not _has_images(files, inner):
        if shown:
            contents = f"has no images, but {summary.others:,} other files, such as "
            contents += " ".join([summary.first_other, *map("({})".format, _hints(summary))])
            problem = contents if summary.others else "is empty"
            raise source_error(files.root, f"{'/'.join(folder)}/ {problem}; add images to it")
        problem = "has no images" if summary.others or summary.folders else "is empty"
        raise source_error(files.root, f"{problem}: {describe(files)}")
    return Images(inner, False, folder)


def _has_images(files: SourceFiles, folder: Parts) -> bool:
    """Whether there is an image at some depth; only the first folders are searched."""
    return any(files.folder(parts).images for parts in _first_folders(files, folder))


def _first_folders(files: SourceFiles, folder: Parts) -> Iterator[Parts]:
    waiting = [folder]
    for _ in range(_MAX_LOOKS):
        if not waiting:
            return
        parts = waiting.pop()
        yield parts
        names = files.folder(parts).folders[:_MAX_LOOKS]
        waiting += [(*parts, name) for name in reversed(names)]
