"""The labelled images of a folder, tar or zip, in any layout of :mod:`.layouts`."""

from __future__ import annotations

import hashlib
import os
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from alexnet2012.config.schema import ConfigError, PrepareConfig
from alexnet2012.config.validation import user_path
from alexnet2012.data.sources.base import (
    IMAGE_SUFFIXES,
    Entry,
    ImageSource,
    check_classes,
    source_error,
)
from alexnet2012.data.sources.files import (
    TEXT_FILES,
    ArchiveFiles,
    FolderFiles,
    Parts,
    SourceFile,
    SourceFiles,
)
from alexnet2012.data.sources.labels import (
    Labels,
    Place,
    class_in_name,
    find_labels,
    find_titles,
    given_labels,
    place_on_disk,
)
from alexnet2012.data.sources.layouts import Images, find_layout, is_validation
from alexnet2012.data.store import SPLITS

_WORDNET_ID = re.compile(r"n\d{8}")
_NUMBERS = re.compile(r"(\d+)")
_ANNOTATIONS = ("_boxes.txt", *TEXT_FILES)  # beside images, and no strays
_LISTS = "LOC_val_solution.csv, val.txt"
_ILSVRC_VAL = re.compile(r"ILSVRC\d{4}_val_\d+")


class ImageTree:
    """Lists the images of a source and their classes, without reading the images.

    If the source has no splits, ``val_percent`` of each class (at least one image) form the
    validation split: those whose names hash lowest with the seed, so an image stays in its split
    when others are added or removed. A source of validation images alone has only that split.

    Strays are recorded: files among the images that are not images by name or location, and hidden
    files with an image suffix (``.1.jpg``). Other hidden files are ignored.

    Args:
        files: the files of the source.
        name: of the source, without the suffix of an archive.
        above: folders outside the source in which labels are looked for, too.
    """

    def __init__(
        self, files: SourceFiles, name: str, config: PrepareConfig, above: Iterable[Path] = ()
    ) -> None:
        self._files, self._seed, self._val_percent = files, config.seed, config.val_percent
        self._above = [place_on_disk(path) for path in above]
        layout = find_layout(files)
        self._is_split, self._images = layout.is_split, layout.splits
        self._labels = self._find_labels(config)
        rule: dict[str, object] = {}
        if not self._is_split and self._is_validation(name):
            self._val_percent = 100
            rule = {"splits": ["val"]}
        elif not self._is_split:
            rule = {"val_percent": self._val_percent, "seed": config.seed}
        # Large archives in a folder are listed when the source is opened.
        self._is_listed = self._survey(in_archives=isinstance(files, ArchiveFiles))
        # What distinguishes this source from others: the rules that split and label it, and all
        # file names and sizes.
        self.rules = rule
        if self._labels:
            texts = b"\0".join(labels.text for labels in self._labels.values())
            self.rules |= {"label_file": hashlib.sha256(texts).hexdigest()}
        self.identity = {"names_and_sizes": self._digest.hexdigest(), **self.rules}
        # Digest of all modification times; changes when a file is written to.
        self.dates = self._dates.hexdigest()
        if self._is_listed:
            self._check()

    def source(self) -> ImageSource:
        """The listed source; opens archives in the folder.

        Raises:
            ConfigError: the classes of the splits differ, or images have no label.
        """
        if not self._is_listed:
            self._survey(in_archives=True)
            self._check()
        splits = tuple(self._images)
        if not self._is_split:
            splits = SPLITS if self._val_percent < 100 else ("val",)
        kind = "archive" if isinstance(self._files, ArchiveFiles) else "folder"
        titles: tuple[str, ...] = ()
        if all(_WORDNET_ID.fullmatch(name) for name in self.classes):
            titles = find_titles(self._places(next(iter(self._images))), self.classes)
        return ImageSource(
            where=str(self._files.root),
            classes=self.classes,
            entries=self._entries,
            total_bytes=self._bytes,
            description=f"Images of the {kind} {self._files.root.resolve().name}.",
            titles=titles,
            strays=tuple(self._strays),
            splits=splits,
            notes=tuple(self._notes()),
        )

    @property
    def folders(self) -> tuple[Path, ...]:
        """Folders in which every file belongs to the source."""
        tops = {images.top for parts in self._images.values() for images in parts}
        return tuple(self._files.root.joinpath(*top) for top in sorted(tops))

    def _find_labels(self, config: PrepareConfig) -> dict[str, Labels]:
        """The list of labels of each split that has images in no class folder."""
        flat = [split for split, parts in self._images.items() if any(p.flat for p in parts)]
        if config.labels is not None and not flat:
            remedy = "is not used: all images are in class folders; remove this setting"
            raise ConfigError("labels", config.labels, remedy)
        labels = {}
        for split in flat:
            known = [] if split == "train" else self._class_folders()
            searched = split if self._is_split else "val"
            if config.labels is not None:
                path = user_path("labels", config.labels)
                found: Labels | None = given_labels(path, self._places(split), known)
            else:
                found = find_labels(self._places(split), searched, known)
            if found is not None:
                labels[split] = found
        return labels

    def _class_folders(self) -> list[str]:
        parts = self._images.get("train", [])
        return [name for p in parts if not p.flat for name in self._files.folder(p.folder).folders]

    def _places(self, split: str) -> list[Place]:
        """Where labels of a split are looked for: beside its images, and in each folder above."""
        places = []
        folder = self._images[split][0].folder
        for length in range(len(folder), -1, -1):
            parts = folder[:length]
            path = self._files.root.joinpath(*parts)
            on_disk = path if isinstance(self._files, FolderFiles) and path.is_dir() else None
            places.append(Place("/".join(parts), self._reader(parts), on_disk))
        return [*places, *self._above]

    def _reader(self, parts: Parts) -> Callable[[str], bytes | None]:
        return lambda name: self._files.read((*parts, name))

    def _is_validation(self, name: str) -> bool:
        """Whether a source without splits holds ILSVRC's or other validation images alone."""
        labels = self._labels.get("train")
        first = self._files.folder(self._images["train"][0].folder).first_image
        of_val = labels is not None and "val" in Path(labels.where).name
        return is_validation(name) or of_val or _ILSVRC_VAL.match(first) is not None

    def _survey(self, in_archives: bool) -> bool:
        """Record classes, sizes and strays; False if archives are yet to be listed."""
        self._counts = {split: Counter[str]() for split in self._images}  # images by class
        self._unlabelled: dict[str, list[str]] = {split: [] for split in self._images}
        self._strays: list[str] = []
        self._digest, self._dates = hashlib.sha256(), hashlib.sha256()
        self._bytes, is_complete = 0, True
        ranks: dict[str, list[bytes]] = defaultdict(list)
        for split, images, file in self._all_files(in_archives):
            if file.entry is None and not file.archive:
                if not file.name.endswith(_ANNOTATIONS):
                    self._strays.append(file.name)
                continue
            self._digest.update(os.fsencode(f"{file.name}\0{file.size}\n"))
            self._dates.update(b"%d\n" % file.time_ns)
            self._bytes += file.size
            if file.archive and not self._is_class_archive(images, file):
                is_complete = False
                continue
            name = self._class_of(split, images, file)
            if name is not None:
                self._counts[split][name] += 1
                if not self._is_split:
                    ranks[name].append(self._rank(images, file, name))
            else:
                (self._unlabelled[split] if images.flat else self._strays).append(file.name)
        self._thresholds = {name: self._threshold(of_class) for name, of_class in ranks.items()}
        return is_complete

    def _all_files(self, in_archives: bool) -> Iterator[tuple[str, Images, SourceFile]]:
        for split, parts in self._images.items():
            for images in parts:
                for file in self._files.files(images.folder, in_archives):
                    yield split, images, file

    def _is_class_archive(self, images: Images, file: SourceFile) -> bool:
        """Whether all images of an archive are of one class: its name."""
        if images.flat or not self._is_split or len(file.parts) != len(images.folder) + 1:
            return False
        return isinstance(self._files, FolderFiles) and self._files.is_flat_archive(file.parts)

    def _class_of(self, split: str, images: Images, file: SourceFile) -> str | None:
        """The class of an image; None if its name has no label, or it is beside class folders."""
        if images.flat:
            labels, name = self._labels.get(split), file.parts[-1]
            return (labels.of(name) if labels else None) or class_in_name(name)
        below = file.parts[len(images.folder) :]
        return below[0] if len(below) > 1 or file.archive else None

    def _rank(self, images: Images, file: SourceFile, name: str) -> bytes:
        below = file.parts[len(images.folder) + (not images.flat) :]
        return hashlib.sha256(os.fsencode(f"{self._seed}/{name}/{'/'.join(below)}")).digest()

    def _threshold(self, ranks: list[bytes]) -> bytes:
        """The highest rank of a class's validation images."""
        count = round(len(ranks) * self._val_percent / 100)
        if self._val_percent < 100:
            count = min(max(count, 1), max(len(ranks) - 1, 1))
        return sorted(ranks)[count - 1]

    def _entries(self, split: str) -> Iterator[Entry]:
        labels = {name: label for label, name in enumerate(self.classes)}
        for of_split, images, file in self._all_files(in_archives=True):
            if file.entry is None or (self._is_split and of_split != split):
                continue
            name = self._class_of(of_split, images, file)
            if name is None:
                continue
            if not self._is_split:
                in_val = self._rank(images, file, name) <= self._thresholds[name]
                if in_val != (split == "val"):
                    continue
            yield file.entry(labels[name])

    def _check(self) -> None:
        """Check the classes of both splits, and that every image has one."""
        for split, names in self._unlabelled.items():
            if names:
                self._check_labels(split, names)
        for split, parts in self._images.items():
            for images in parts:
                self._check_class_folders(split, images)
        train, val = (set(self._counts.get(split, ())) for split in SPLITS)
        root, ordered = self._files.root, sorted(train)
        if len(self._counts) == 2:
            check_classes(root, train, val, "class folders in train/")
        else:  # not split yet, or validation images alone
            seen, (split,) = train | val, self._counts
            ordered = sorted(seen)
            labels = self._labels.get(split)
            if labels is not None and seen.issubset(labels.classes) and self._is_val_only:
                ordered = list(labels.classes)
            check_classes(root, set(ordered), set(ordered), "classes")
        self.classes = tuple(ordered)
        if not self._is_split and self._val_percent < 100:
            for name, count in self._counts["train"].items():
                if count == 1:
                    problem = f"class {name!r} contains one image; each split needs at least one"
                    remedy = "add images, remove the class, or set val_percent=100 to only evaluate"
                    raise source_error(root, f"{problem}; {remedy}")

    @property
    def _is_val_only(self) -> bool:
        return "train" not in self._images or self._val_percent == 100

    def _check_labels(self, split: str, names: list[str]) -> None:
        """Raise, unless all of the unlabelled images are in the only class folder."""
        root, images, labels = self._files.root, self._images[split][0], self._labels.get(split)
        if labels is not None or self._counts[split]:
            listed = "their names" if labels is None else labels.where
            problem = f"{len(names):,} images, such as {names[0]}, have no label in {listed}"
            raise source_error(root, f"{problem}; add it, or remove them")
        is_alone = split == "train" or images.folder[-1] in self._counts.get("train", ())
        if images.folder != images.top and is_alone:
            self._counts[split][images.folder[-1]] = len(names)
            return
        where = f"{'/'.join(images.folder)}/ has" if images.folder else "has"
        remedy = f"{where} {len(names):,} images without labels and in no class folders, such as "
        remedy += f"{names[0]}; add {_LISTS} or the development kit, or set labels=FILE (lines of "
        raise source_error(root, f"{remedy}image name and class)")

    def _check_class_folders(self, split: str, images: Images) -> None:
        if images.flat:
            return
        for name in self._files.folder(images.folder).folders:
            if name in self._counts[split]:
                continue
            where = self._files.root.joinpath(*images.folder)
            summary = self._files.folder((*images.folder, name))
            problem = f"contains no images ({' '.join(sorted(IMAGE_SUFFIXES))})"
            if summary.others:
                problem += f", but {summary.others:,} other files, such as {summary.first_other}"
            remedy = f"class folder {name!r} {problem}; add images or remove the folder"
            raise source_error(where, remedy)

    def _notes(self) -> Iterator[str]:
        if self._is_val_only:
            yield (
                "validation images only: a store for evaluate, predict and features, which use the "
                "mean image of the network; it cannot be trained on"
            )
        for split, labels in self._labels.items():
            count = self._counts[split].total()
            if count < len(labels):
                yield f"only {count:,} of the {len(labels):,} images in {labels.where} are present"
        order = sorted(self.classes, key=_natural)
        for label, (name, other) in enumerate(zip(self.classes, order, strict=True)):
            if name != other:
                yield (
                    f"class names are sorted as text, not as numbers: label {label} is class "
                    f"{name!r}, not {other!r}; pad the numbers with zeros to change that"
                )
                return


def _natural(name: str) -> list[tuple[int, str]]:
    """A key that sorts the numbers in names by value."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in _NUMBERS.split(name)]
