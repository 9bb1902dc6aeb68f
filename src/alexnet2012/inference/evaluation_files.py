"""Results of an evaluation by image and by class, and the files that hold them.

Shapes: N images, C classes, k predictions.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.loaders import Batch
from alexnet2012.data.sources.devkit import read_devkit
from alexnet2012.training.image_errors import UNITS, ImageErrors
from alexnet2012.utils.files import replace_text
from alexnet2012.utils.metrics import TOP_K


@dataclass
class ImageResults:
    """The most probable classes of each evaluated image, filled batch by batch."""

    names: Sequence[str]  # [N] of the images, in their source
    classes: tuple[str, ...]  # [C]
    errors: ImageErrors
    predicted: npt.NDArray[np.int64]  # [N, k], best first
    probabilities: npt.NDArray[np.float32]  # [N, k]

    @classmethod
    def empty(
        cls, names: Sequence[str], classes: tuple[str, ...], errors: ImageErrors
    ) -> ImageResults:
        shape = len(names), min(TOP_K, len(classes))
        return cls(names, classes, errors, np.zeros(shape, np.int64), np.zeros(shape, np.float32))

    def add(self, batch: Batch, probabilities: Tensor) -> None:
        """Add the images of a batch; ``probabilities`` [n, C]."""
        self.errors.add(batch, probabilities)
        places = np.searchsorted(self.errors.indices, batch.indices)
        best = probabilities.topk(self.predicted.shape[1], dim=1)
        self.predicted[places] = best.indices.cpu().numpy()
        self.probabilities[places] = best.values.float().cpu().numpy()

    @property
    def errors_pct(self) -> dict[str, npt.NDArray[np.float64]]:
        """Errors of each image [N] in %, 0 or 100, or between them where classes tie, by name."""
        top5 = {"top5": self.errors.top5} if len(self.classes) > TOP_K else {}
        return {
            k: v.astype(float) * (100 / UNITS)
            for k, v in {"top1": self.errors.top1, **top5}.items()
        }

    @property
    def labels(self) -> npt.NDArray[np.int64]:
        """The label that each image counts for [N]: the first, if several are right."""
        labels = self.errors.labels
        return labels if labels.ndim == 1 else labels[:, 0]

    def by_class(self) -> dict[str, npt.NDArray[np.float64]]:
        """The number of images of each class [C], and its errors in %; NaN without images."""
        images = np.bincount(self.labels, minlength=len(self.classes)).astype(float)
        with np.errstate(invalid="ignore"):
            errors = {
                name: np.bincount(self.labels, pct, len(self.classes)) / images
                for name, pct in self.errors_pct.items()
            }
        return {"images": images, **errors}

    def mean_class_errors_pct(self) -> dict[str, float]:
        """Errors in %, averaged over the classes that have images, by name."""
        found = self.by_class()
        return {name: float(np.nanmean(found[name])) for name in self.errors_pct}

    def confusion(self) -> npt.NDArray[np.int64]:
        """Images by class and predicted class [C, C]; of several labels a predicted one counts."""
        predicted, counts = self.predicted[:, 0], np.zeros((len(self.classes),) * 2, np.int64)
        labels = self.errors.labels.reshape(len(predicted), -1)
        right = (labels == predicted[:, None]).any(1)
        np.add.at(counts, (np.where(right, predicted, labels[:, 0]), predicted), 1)
        return counts

    def rows(self) -> Iterator[dict[str, Any]]:
        """One row per image: its name, right labels, errors (0 or 1) and predictions."""
        errors = {f"{name}_error": pct / 100 for name, pct in self.errors_pct.items()}
        for i, name in enumerate(self.names):
            labels = dict.fromkeys(np.atleast_1d(self.errors.labels[i]).tolist())
            yield {
                "image": name,
                "labels": [self.classes[label] for label in labels],
                **{key: float(values[i]) for key, values in errors.items()},
                "predictions": [
                    {"class": self.classes[number], "probability": round(float(probability), 6)}
                    for number, probability in zip(
                        self.predicted[i], self.probabilities[i], strict=True
                    )
                ],
            }


def submitted_numbers(config: EvaluateConfig, classes: Sequence[str]) -> list[int]:
    """The number of each class in a submission [C]; empty if none is to be written.

    Raises:
        ConfigError: the development kit cannot be read, or lacks a class.
    """
    if config.submission is None:
        return []
    kit, _ = read_devkit(Path(str(config.devkit)))
    if unknown := [name for name in classes if name not in kit]:
        remedy = f"has no class {unknown[0]!r}; a submission needs a model with ILSVRC's names"
        raise ConfigError("devkit", config.devkit, remedy)
    return [kit[name].number for name in classes]


def write_files(config: EvaluateConfig, results: ImageResults, numbers: Sequence[int]) -> None:
    """Write the files that are set, each atomically."""
    for given, text in (
        (config.predictions, _predictions),
        (config.per_class, _per_class),
        (config.confusion, _confusion),
        (config.submission, _submission),
    ):
        if given is not None:
            path = Path(given)
            replace_text(path, text(path, results, numbers))


def _predictions(path: Path, results: ImageResults, numbers: Sequence[int]) -> str:
    if path.suffix == ".jsonl":
        rows = (json.dumps(row, ensure_ascii=False) for row in results.rows())
        return "".join(f"{row}\n" for row in rows)
    names = [f"{name}_error" for name in results.errors_pct]
    ranks = range(1, results.predicted.shape[1] + 1)
    pairs = [f"{kind}_{rank}" for rank in ranks for kind in ("prediction", "probability")]
    lines = [["image", "label", *names, *pairs]]
    for row in results.rows():
        predictions = [value for prediction in row["predictions"] for value in prediction.values()]
        errors = (row[name] for name in names)
        lines.append([row["image"], "|".join(row["labels"]), *errors, *predictions])
    return _csv(lines)


def _per_class(path: Path, results: ImageResults, numbers: Sequence[int]) -> str:
    found = results.by_class()
    counts = found.pop("images")
    lines = [["class", "images", *(f"{name}_error_pct" for name in found)]]
    for i, name in enumerate(results.classes):
        errors = (f"{pct[i]:.4f}" if counts[i] else "" for pct in found.values())
        lines.append([name, f"{counts[i]:.0f}", *errors])
    return _csv(lines)


def _confusion(path: Path, results: ImageResults, numbers: Sequence[int]) -> str:
    rows = zip(results.classes, results.confusion().tolist(), strict=True)
    return _csv([["class", *results.classes], *([name, *row] for name, row in rows)])


def _submission(path: Path, results: ImageResults, numbers: Sequence[int]) -> str:
    """A line per image, in the order of the file names: the numbers of the predicted classes."""
    order = sorted(range(len(results.names)), key=lambda i: Path(results.names[i]).name)
    lines = (" ".join(str(numbers[n]) for n in results.predicted[i]) for i in order)
    return "".join(f"{line}\n" for line in lines)


def _csv(rows: Iterable[Sequence[object]]) -> str:
    file = io.StringIO()
    csv.writer(file, lineterminator="\n").writerows(rows)
    return file.getvalue()
