"""What a reproduction found: the form that experiments fill in and the report shows.

Every part of :class:`Reproduction` may be missing. ``reproduction.json``, ``kernels.npy``,
``pictures.npy`` and ``ledger.json`` are its files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal, TypedDict

import numpy as np
import torch

from alexnet2012.ledger.claims import Measurement, ledger, write_json


class Provenance(TypedDict, total=False):
    """Where the numbers come from."""

    commit: str
    dirty: bool  # the working tree held changes
    python: str
    torch: str
    dali: str
    cpu: str
    cores: int
    gpu: str | None
    date: str
    command: str  # what was typed
    seeds: list[int]
    data_description: str  # "16 photographs, 640 training and 160 validation pictures"
    data_caveat: str | None  # "no evidence about ImageNet"; None: the paper's own data
    classes: list[str]
    store_fingerprint: str
    processes: int
    extra: dict[str, str]  # further lines of the provenance table


class AuditLayer(TypedDict):
    """Counts of one layer of the whole net, both towers."""

    name: str  # conv1 … fc8
    kernels: int  # kernels or units
    weights: int
    biases: int
    neurons: int
    multiply_adds: int  # an image


class Audit(TypedDict, total=False):
    recipe: str
    layers: list[AuditLayer]  # totals are summed by the report


class Exactness(TypedDict):
    """Two processes (a) against one (b): max |a - b| / max |b| over all elements of a quantity."""

    quantity: str  # "logits", "gradients", "weights after 3 steps"
    recipe: str
    dtype: str  # "float64"
    worst_relative_difference: float
    bound: float  # at most this is right


class ExchangeTraffic(TypedDict):
    """Bytes that cross between the towers at one layer, both ways added up, an image."""

    layer: str  # the reading layer: conv3, fc6, fc7, fc8; and logits
    direction: str  # forward or backward
    bytes_per_image: float  # counted
    expected_bytes_per_image: float  # from the layer's shape


class Validation(TypedDict, total=False):
    epoch: float
    step: int
    top1_error_pct: float
    top5_error_pct: float
    loss: float


class TrainingRun(TypedDict, total=False):
    """One training run; ``steps`` and ``loss`` go together."""

    label: str  # legend, "paper" or "code #145"
    config: str  # one line: net, input, batch, rate, seed
    steps: list[int]
    loss: list[float]  # of the training batch
    val: list[Validation]
    images_per_s: float
    chance_loss: float  # ln(classes)
    chance_top1_error_pct: float
    note: str  # what to see in the curve
    command: str


class Evaluation(TypedDict, total=False):
    """Errors of the reduced run's checkpoint."""

    views: int  # 1 or 10
    pictures: int
    top1_error_pct: float
    top5_error_pct: float
    top1_interval_pct: tuple[float, float]  # 95%
    top5_interval_pct: tuple[float, float]
    chance_top1_error_pct: float
    chance_top5_error_pct: float


class Arm(TypedDict, total=False):
    label: str  # "ReLU"
    epochs: list[float]
    train_error_pct: list[float]  # of the first seed, or the mean
    top1_error_pct: float  # validation, at the end
    epochs_to_threshold: float | None  # None: not reached


class Ablation(TypedDict, total=False):
    """Arms that differ in one switch; drawn as training error by epoch."""

    name: str  # claim id: relu, lrn, …
    title: str
    arms: list[Arm]
    threshold_pct: float | None  # a line across: relu's 25
    n_seeds: int
    note: str
    command: str


class Effect(TypedDict):
    """What leaving something out did to an error: without it, minus with it, over paired seeds."""

    arm: str  # the ablation
    metric: str  # top1_error_pct, top5_error_pct (10 views) or train_error_pct
    seeds: list[int]
    mean_points: float
    interval_points: tuple[float, float] | None  # 95%; None: a single seed
    base_mean_pct: float  # with it


class PredictedImage(TypedDict):
    """A validation picture and what the net takes it for, likeliest first."""

    label: str
    guesses: list[str]
    probabilities: list[float]


class Lookalikes(TypedDict):
    """Figure 4; ``pictures`` holds first those guessed, then each query and its nearest."""

    guesses: list[PredictedImage]
    queries: list[str]  # their classes
    nearest: list[list[str]]  # the classes of the training pictures nearest to each, nearest first


class TrainingRuns(TypedDict, total=False):
    full_paper: TrainingRun  # the net at its own size, recipe `paper`
    full_code145: TrainingRun  # the same, recipe `code145`
    reduced: TrainingRun  # the net that learns within the time


class Reproduction(TypedDict, total=False):
    """All that the page shows. ``kernels`` is [96, 3, 11, 11], tower 0's rows first;
    ``pictures`` is uint8 [n, P, P, 3].
    """

    provenance: Provenance
    audit: Audit
    exactness: list[Exactness]
    exchanges: list[ExchangeTraffic]
    runs: TrainingRuns
    evaluation: list[Evaluation]
    kernels: torch.Tensor | None
    kernels_caption: str  # which run they are from
    lookalikes: Lookalikes
    pictures: torch.Tensor | None
    ablations: list[Ablation]
    effects: list[Effect]
    effects_caption: str  # the net and its training
    cifar10_effects: list[Effect]  # of the four-layer net, which has ablations of its own
    learning_curves: dict[str, list[float]]  # training error by epoch, per cent, by ablation
    measurements: list[dict[str, Any]]  # Measurement.to_json()
    warnings: list[str]  # what failed or was left out, in plain words


_ARRAYS: tuple[Literal["kernels", "pictures"], ...] = ("kernels", "pictures")


def ledger_of(reproduction: Reproduction) -> dict[str, Any]:
    """The ledger that a reproduction's measurements make."""
    measurements = [Measurement.from_json(m) for m in reproduction.get("measurements", [])]
    return ledger(measurements, reproduction.get("provenance", {}))


def save_reproduction(reproduction: Reproduction, directory: Path) -> None:
    """Write what the page is a view of, and the ledger."""
    directory.mkdir(parents=True, exist_ok=True)
    content = dict(reproduction)
    for name in _ARRAYS:
        array = content.pop(name, None)
        if isinstance(array, torch.Tensor):
            np.save(directory / f"{name}.npy", array.detach().cpu().numpy())
    write_json(content, directory / "reproduction.json")
    write_json(ledger_of(reproduction), directory / "ledger.json")


def load_reproduction(directory: Path) -> Reproduction:
    """What :func:`save_reproduction` wrote.

    Raises:
        FileNotFoundError: no reproduction.json there.
    """
    text = (directory / "reproduction.json").read_text(encoding="utf-8")
    reproduction: Reproduction = json.loads(text)
    for name in _ARRAYS:
        if (directory / f"{name}.npy").exists():
            array = np.load(directory / f"{name}.npy", allow_pickle=False)
            reproduction[name] = torch.from_numpy(array)
    return reproduction
