"""What verdicts are recomputed from: each run's errors, by image where it kept them.

Reads the run directories of a sweep, ``ARM/SEED``, and keeps what a verdict needs of them in two
files beside a ledger: ``evidence.json`` (commit, settings and errors of every run) and
``evidence.npz`` (the error of every image, and samples of tests of another kind).

Shapes: S runs, N images.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from alexnet2012.checkpoint.run_dir import flatten
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.ledger.claims import write_json
from alexnet2012.ledger.measurements.training_runs import read_summary
from alexnet2012.ledger.statistics import Matrix
from alexnet2012.tracking.tracker import read_records
from alexnet2012.training import image_errors
from alexnet2012.training.image_errors import UNITS
from alexnet2012.utils.untrusted import read_json_object, read_yaml

RUNS, IMAGES = "evidence.json", "evidence.npz"
# The sets of image errors that a metric is computed from: validation images, or training images
# that were evaluated like them.
IMAGE_SETS = {
    "top1_error_pct": ("top1",),
    "top5_error_pct": ("top5",),
    "train_eval_error_pct": ("train_top1",),
    "gap_points": ("top1", "train_top1"),  # validation error minus training error
}
_DIGESTED = (Role.variant, Role.identity, Role.length, Role.evaluation)

Errors = npt.NDArray[np.uint8]  # [N] in 240ths
Samples = Mapping[str, Mapping[str, npt.NDArray[np.generic]]]  # by claim and name


@dataclass(frozen=True)
class Result:
    """A finished run."""

    settings: dict[str, Any]
    errors: dict[str, float]  # by metric, per cent or points
    commit: str = ""  # of the code that ran; later code may have continued the sweep
    train_errors: Sequence[float] = ()  # per cent, by epoch, while training
    dirty: bool | None = None  # the code had uncommitted changes; None: not recorded
    settings_digest: str = ""  # of all that changes a result, but the seed
    images: dict[str, Errors] = field(default_factory=dict)
    labels: dict[str, str] = field(default_factory=dict)  # digest by set of images
    steps: int | None = None  # as trained; None: not recorded
    epochs: int | None = None  # finished


Sweep = dict[str, dict[int, Result]]  # by arm and seed


@dataclass(frozen=True)
class Evidence:
    sweeps: dict[str, Sweep]  # by the name that a measuring function reads
    samples: Samples


def read_run(run_dir: Path) -> Result:
    """The result of a finished run, from its directory."""
    settings: Any = read_yaml(run_dir / "config.yaml")
    summary = read_summary(run_dir)
    epochs = [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "epoch"]
    names = ("top1_error_pct", "top5_error_pct", "train_eval_error_pct")
    errors = {name: summary[name] for name in names if name in summary}
    errors["train_error_pct"] = epochs[-1]["train_error_pct"]
    images: dict[str, Errors] = {}
    labels: dict[str, str] = {}
    file = run_dir / image_errors.FILE
    if file.is_file():
        with np.load(file, allow_pickle=False) as arrays:
            for name in ("top1", "top5", "train_top1"):
                if name in arrays:
                    images[name] = arrays[name]
                    prefix = "train_" if name.startswith("train_") else ""
                    labels[name] = str(arrays[f"{prefix}labels"])
    return result_of(
        errors,
        images,
        settings=settings,
        commit=summary.get("commit", "unknown"),
        train_errors=[record["train_error_pct"] for record in epochs],
        dirty=summary.get("dirty"),
        settings_digest=_digest(settings),
        labels=labels,
        steps=summary.get("steps"),
        epochs=summary.get("epochs"),
    )


def result_of(errors: Mapping[str, float], images: Mapping[str, Errors], **more: Any) -> Result:
    """A run whose errors are those of its images, where it kept them, and the gap."""
    of_images = {
        metric: 100 * float(images[sets[0]].sum(dtype=np.int64)) / (UNITS * len(images[sets[0]]))
        for metric, sets in IMAGE_SETS.items()
        if len(sets) == 1 and sets[0] in images
    }
    found = {**errors, **of_images}
    if "train_eval_error_pct" in found:
        found["gap_points"] = found["top1_error_pct"] - found["train_eval_error_pct"]
    return Result(errors=found, images=dict(images), **{"settings": {}, **more})


def image_matrices(runs: Sequence[Result], metric: str, name: str) -> list[Matrix]:
    """Errors by image [S, N], in points, of each set of images of a metric; empty if not kept.

    Raises:
        ConfigError: the runs were evaluated on different images.
    """
    sets = IMAGE_SETS.get(metric, ())
    if not all(set_ in run.images for run in runs for set_ in sets):
        return []
    for set_ in sets:
        if len({(run.labels.get(set_), len(run.images[set_])) for run in runs}) > 1:
            raise ConfigError("runs", name, "were evaluated on different images; retrain them")
    points = 100 / UNITS
    return [np.stack([run.images[set_] for run in runs]).astype(float) * points for set_ in sets]


def save_evidence(evidence: Evidence, directory: Path) -> None:
    """Write both files; none, and remove former ones, if there is nothing to recompute."""
    if not evidence.sweeps and not evidence.samples:
        for name in (RUNS, IMAGES):
            (directory / name).unlink(missing_ok=True)
        return
    by_set: dict[str, list[Errors]] = {}  # a row per run that kept them, in the order of seeds
    runs: dict[str, Any] = {}
    for sweep, arms in evidence.sweeps.items():
        for arm, by_seed in arms.items():
            for seed, run in sorted(by_seed.items()):
                runs.setdefault(sweep, {}).setdefault(arm, {})[str(seed)] = {
                    "commit": run.commit,
                    "dirty": run.dirty,
                    "settings_digest": run.settings_digest,
                    "errors": run.errors,
                    "train_errors": list(run.train_errors),
                    "labels": run.labels,
                }
                for name, errors in run.images.items():
                    by_set.setdefault(f"{sweep}/{arm}/{name}", []).append(errors)
    arrays: dict[str, npt.NDArray[np.generic]] = {k: np.stack(v) for k, v in by_set.items()}
    for claim, sample in evidence.samples.items():
        arrays |= {f"claims/{claim}/{name}": array for name, array in sample.items()}
    write_json({"sweeps": runs, "claims": sorted(evidence.samples)}, directory / RUNS)
    image_errors.save(directory / IMAGES, arrays)


def load_evidence(directory: Path) -> Evidence:
    """Read the files of :func:`save_evidence`; errors follow from those of the images.

    Raises:
        ConfigError: there are none.
    """
    for name in (RUNS, IMAGES):
        if not (directory / name).is_file():
            remedy = f"contains no {name}: its verdicts cannot be recomputed; reproduce them with "
            raise ConfigError("DIR", directory, remedy + "`alexnet2012 reproduce`, which keeps it")
    content = read_json_object(directory / RUNS)
    with np.load(directory / IMAGES, allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    sweeps: dict[str, Sweep] = {}
    rows = {key: iter(array) for key, array in arrays.items() if array.ndim}
    for sweep, arms in content["sweeps"].items():
        for arm, by_seed in arms.items():
            for seed, fields in sorted(by_seed.items(), key=lambda item: int(item[0])):
                errors = fields.pop("errors")
                images = {name: next(rows[f"{sweep}/{arm}/{name}"]) for name in fields["labels"]}
                run = result_of(errors, images, **fields)
                sweeps.setdefault(sweep, {}).setdefault(arm, {})[int(seed)] = run
    samples: dict[str, dict[str, npt.NDArray[np.generic]]] = {c: {} for c in content["claims"]}
    for key, array in arrays.items():
        kind, claim, name = key.split("/", 2)
        if kind == "claims":
            samples[claim][name] = array
    return Evidence(sweeps, samples)


def _digest(settings: dict[str, Any]) -> str:
    kept = {
        key: value
        for key, value in sorted(flatten(settings).items())
        if key not in ("seed", "init_from") and role_of(TrainConfig, key) in _DIGESTED
    }
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()[:12]
