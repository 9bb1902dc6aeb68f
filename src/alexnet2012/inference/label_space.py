"""Which of a model's classes stand for those of a store, and which labels of an image are right.

Models and data sets of ImageNet share images and classes, but not their numbers and names:
ImageNet-A has 200 of the 1,000 classes, ImageNet-V2 numbers them, ReaL has several right labels for
an image.

Shapes: N images of the split, C classes that are compared, R right labels of an image.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.config.schema import ConfigError, EvaluateConfig

SHARED, INDEX = "shared", "index"
Positions = dict[str, int]  # of the model's classes, by name and by number


@dataclass(frozen=True)
class LabelSpace:
    """The classes that an evaluation compares, and the labels of its images among them."""

    names: tuple[str, ...]  # [C]
    columns: npt.NDArray[np.int64]  # [C] positions among the model's classes
    images: npt.NDArray[np.int64]  # positions in the split of the images that have a right label
    labels: npt.NDArray[np.int64]  # [N] or [N, R] among names; meaningful for those images only


def label_space(
    config: EvaluateConfig,
    model_classes: Sequence[str],
    store_classes: Sequence[str],
    split_labels: npt.NDArray[np.int64],
    image_names: Sequence[str],
) -> LabelSpace:
    """Match the classes of a model and a store as ``classes`` and ``labels`` say.

    Args:
        split_labels: [N] among the store's classes.
        image_names: [N] names of the images in their source.

    Raises:
        ConfigError: the classes do not match, or a file is missing, malformed or names no image.
    """
    by_class = _model_classes(config, model_classes, store_classes)
    columns = np.arange(len(model_classes))
    if config.classes is not None:  # the others are no possible answer
        columns = np.array(sorted({number for numbers in by_class for number in numbers}))
    right: Sequence[Sequence[int]] = [by_class[label] for label in split_labels]
    if config.labels is not None:
        right = _labels_of_images(config.labels, model_classes, image_names)
    places = {int(number): place for place, number in enumerate(columns)}
    among = [[places[number] for number in numbers if number in places] for numbers in right]
    images = np.array([i for i, numbers in enumerate(among) if numbers], dtype=np.int64)
    if not images.size:
        key = "labels" if config.labels is not None else "classes"
        value = getattr(config, key)
        raise ConfigError(key, value, "leaves no image with a label that the model knows")
    widest = max(map(len, among))
    padded = [[*numbers, *[(numbers or [0])[0]] * (widest - len(numbers))] for numbers in among]
    labels = np.array(padded, dtype=np.int64)
    names = tuple(model_classes[number] for number in places)
    return LabelSpace(names, columns, images, labels[:, 0] if widest == 1 else labels)


def _model_classes(
    config: EvaluateConfig, model_classes: Sequence[str], store_classes: Sequence[str]
) -> list[list[int]]:
    """The model's classes that stand for each class of the store; none: its images are left out."""
    if config.classes is None:
        if config.labels is None and tuple(model_classes) != tuple(store_classes):
            raise _different_classes(config, model_classes, store_classes)
        return [[number] for number in range(len(store_classes))]
    if config.classes == SHARED:
        by_name = {name: number for number, name in enumerate(model_classes)}
        return [[by_name[name]] if name in by_name else [] for name in store_classes]
    if config.classes == INDEX:
        return _by_index(model_classes, store_classes)
    given = _read_mapping("classes", Path(config.classes).expanduser())
    if not isinstance(given, Mapping):
        remedy = "must have the model's class, or classes, for each class of the store"
        raise ConfigError("classes", config.classes, remedy)
    if unknown := [name for name in given if name not in store_classes]:
        remedy = f"names {unknown[0]!r}, which is no class of the store; remove it"
        raise ConfigError("classes", config.classes, remedy)
    known = _positions(model_classes)
    return [_numbers("classes", config.classes, given.get(n, []), known) for n in store_classes]


def _by_index(model_classes: Sequence[str], store_classes: Sequence[str]) -> list[list[int]]:
    """Numbered classes of the store are positions in the model's, or the other way round."""
    if _is_numbered(store_classes):
        places = {str(place): place for place in range(len(model_classes))}
        numbers = [name.lstrip("0") or "0" for name in store_classes]
    elif _is_numbered(model_classes):
        places = {name.lstrip("0") or "0": place for place, name in enumerate(model_classes)}
        numbers = [str(place) for place in range(len(store_classes))]
    else:
        remedy = "needs numbers as class names, of the store or of the model; use shared or a file"
        raise ConfigError("classes", INDEX, remedy)
    return [[places[number]] if number in places else [] for number in numbers]


def _is_numbered(names: Sequence[str]) -> bool:
    return all(name.isdecimal() for name in names)


def _labels_of_images(
    file: str, model_classes: Sequence[str], image_names: Sequence[str]
) -> list[list[int]]:
    """The right labels of each image; a list without names is in the order of the file names."""
    given = _read_mapping("labels", Path(file).expanduser())
    file_names = [PurePosixPath(name).name for name in image_names]
    if len({*file_names}) < len(file_names):  # such as a/1.jpg and b/1.jpg
        file_names = list(image_names)
    if not isinstance(given, Mapping):
        if len(given) != len(image_names):
            remedy = f"has labels for {len(given):,} images, but the store has {len(image_names):,}"
            raise ConfigError("labels", file, f"{remedy}; use those of this store")
        given = dict(zip(sorted(file_names), given, strict=True))
    names = zip(image_names, file_names, strict=True)
    found = [given.get(name, given.get(file_name, [])) for name, file_name in names]
    known = _positions(model_classes)
    return [_numbers("labels", file, labels, known) for labels in found]


def _read_mapping(key: str, path: Path) -> Mapping[str, Any] | list[Any]:
    """A list or object in JSON, or lines of a name, a tab, and one or more values."""
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".json":
            content = json.loads(text)
            if not isinstance(content, (dict, list)):
                raise ValueError("neither a list nor an object")
            return content
        lines = [line.split("\t") for line in text.splitlines() if line.strip()]
        if short := next((line for line in lines if len(line) < 2), None):
            raise ValueError(f"no tab in the line {short[0][:60]!r}")
        return {name: values for name, *values in lines}
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(key, path, f"cannot be read ({reason})") from error


def _positions(model_classes: Sequence[str]) -> Positions:
    numbers = {str(number): number for number in range(len(model_classes))}
    return numbers | {name: number for number, name in enumerate(model_classes)}


def _numbers(key: str, file: str, given: Any, known: Positions) -> list[int]:
    """Positions of classes given by name, or as numbers; one or a list of them."""
    values = given if isinstance(given, list) else [given]
    for value in values:
        if isinstance(value, bool) or str(value) not in known:
            remedy = f"names {str(value)[:60]!r}, which is no class of the model"
            raise ConfigError(key, file, f"{remedy}; use its names, or numbers from 0")
    return list(dict.fromkeys(known[str(value)] for value in values))


def _different_classes(
    config: EvaluateConfig, model_classes: Sequence[str], store_classes: Sequence[str]
) -> ConfigError:
    shared = len({*model_classes} & {*store_classes})
    numbered = next(
        (w for w, n in (("model", model_classes), ("store", store_classes)) if _is_numbered(n)), ""
    )
    counts = f"its {len(model_classes):,} classes are not the {len(store_classes):,} of the store"
    if shared:
        remedy = f"{counts}; set classes=shared to compare the {shared:,} of the same name"
    elif numbered:
        remedy = f"{counts}; set classes=index if the numbers of the {numbered} are positions"
    else:
        remedy = f"{counts}; set classes=FILE to say which are the same, or use another store"
    return ConfigError("checkpoint", config.checkpoint, remedy)
