"""The results of a reproduction: what its parts fill in and the report shows.

Every key of :class:`Reproduction` may be missing. Its files are ``reproduction.json``,
``kernels.npy``, ``pictures.npy`` and ``ledger.json``.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, NotRequired, TypedDict, cast

import torch

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, write_json
from alexnet2012.ledger.verdicts import ledger
from alexnet2012.utils.files import array_bytes, replace_bytes
from alexnet2012.utils.untrusted import read_array, read_json_object


class Provenance(TypedDict, total=False):
    commit: str
    dirty: bool  # the code of a run, or of all where runs do not say it, was uncommitted
    python: str
    torch: str
    dali: str
    cpu: str
    cores: int
    gpu: str | None
    date: str
    command: str  # reproduces the results
    seeds: list[int]
    data_description: str  # "16 photographs, 640 training and 160 validation images"
    data_caveat: str | None  # "no evidence about ImageNet"; None: the data of the paper
    classes: list[str]
    store_fingerprint: str
    processes: int
    extra: dict[str, str]  # further rows of the provenance table


class AuditLayer(TypedDict):  # both towers
    name: str  # conv1 … fc8
    kernels: int  # kernels or units
    weights: int
    biases: int
    neurons: int
    multiply_adds: int  # per image


class Audit(TypedDict, total=False):
    recipe: str
    layers: list[AuditLayer]


class Exactness(TypedDict):
    """Two processes (a) compared with one (b): max |a - b| / max |b| over all elements."""

    quantity: str  # "logits", "gradients", "weights after 3 steps"
    recipe: str
    dtype: str  # "float64"
    worst_relative_difference: float
    bound: float  # largest difference that passes


class ExchangeTraffic(TypedDict):
    """Bytes exchanged between the towers at one layer per image, both ways added up."""

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


class LossBand(TypedDict):
    """Limits of the training loss of healthy runs, at some steps."""

    runs: int
    steps: list[float]
    low: list[float]
    high: list[float]


class TrainingRun(TypedDict, total=False):
    label: str  # in the legend: "paper" or "code #145"
    config: str  # one line: network, input, batch size, learning rate, seed
    steps: list[int]
    loss: list[float]  # of the training batch, at these steps
    val: list[Validation]
    images_per_s: float
    chance_loss: float  # ln(classes)
    chance_top1_error_pct: float
    note: str  # a comment on the curve
    command: str
    band: LossBand  # of healthy runs, if there is one


class Evaluation(TypedDict, total=False):
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
    train_error_pct: list[float]  # mean over seeds, or the first seed
    top1_error_pct: float  # final validation error
    epochs_to_threshold: float | None  # None: not reached


class Ablation(TypedDict, total=False):
    """Variants that differ in one setting, drawn as training error by epoch."""

    name: str  # claim id: relu, lrn, …
    title: str
    arms: list[Arm]
    threshold_pct: float | None  # a horizontal line: 25 for relu
    n_seeds: int
    note: str
    command: str


class EpochRatio(TypedDict):
    """Epochs to a training error with tanh over those with ReLU, paired by seed."""

    threshold_pct: float
    relu_epochs: float  # mean over seeds
    tanh_epochs: float
    ratios: list[float]  # by seed
    mean: float
    interval: tuple[float, float] | None  # 95%; None: a single seed
    is_bound: bool  # some tanh network did not reach the error: its ratio is larger


class CommittedRow(TypedDict):
    """A measured claim in a ledger that is part of the repository."""

    claim: NotRequired[str]  # its id; not in older files
    title: str
    value: str
    verdict: str
    n_seeds: int


class CommittedLedger(TypedDict):
    """A ledger in ``results/``."""

    name: str  # of its directory
    data: str
    commit: str
    date: str
    rows: list[CommittedRow]


class Effect(TypedDict):
    """Error of an ablation minus that of the baseline, over all seeds of both."""

    arm: str  # the ablation
    metric: str  # of ablations.METRICS; errors on validation images are of 10 views
    seeds: list[int]
    control_seeds: NotRequired[list[int]]  # of the baseline; without it, the same (older files)
    mean_points: float
    interval_points: tuple[float, float] | None  # 95%; None: a single seed
    base_mean_pct: float  # of the baseline


class PredictedImage(TypedDict):
    label: str
    guesses: list[str]  # classes, most likely first
    probabilities: list[float]


class Lookalikes(TypedDict):
    """Figure 4; ``pictures`` has the predicted images first, then each query and its nearest."""

    guesses: list[PredictedImage]
    queries: list[str]  # classes
    nearest: list[list[str]]  # classes of the training images nearest to each query


class TrainingRuns(TypedDict, total=False):
    full_paper: TrainingRun  # full size, recipe `paper`
    full_code145: TrainingRun  # full size, recipe `code145`
    reduced: TrainingRun  # reduced size, trained until it has learnt something


class Reproduction(TypedDict, total=False):
    """Everything that the report shows.

    ``kernels`` is [96, 3, 11, 11], tower 0's rows first; ``pictures`` is uint8 [n, P, P, 3].
    """

    provenance: Provenance
    audit: Audit
    exactness: list[Exactness]
    exchanges: list[ExchangeTraffic]
    runs: TrainingRuns
    evaluation: list[Evaluation]
    kernels: torch.Tensor | None
    kernels_caption: str  # which run they come from
    lookalikes: Lookalikes
    pictures: torch.Tensor | None
    ablations: list[Ablation]
    effects: list[Effect]
    effects_caption: str  # the network and its training
    gap: str  # the baseline's validation and training error, evaluated alike
    cifar10_effects: list[Effect]  # of the four-layer network
    learning_curves: dict[str, list[float]]  # training error by epoch, per cent, by ablation
    relu_ratios: list[EpochRatio]
    committed: list[CommittedLedger]  # evidence of the repository, shown beside quick results
    measurements: list[dict[str, Any]]  # Measurement.to_json()
    warnings: list[str]  # failed or missing parts


_ARRAYS: tuple[Literal["kernels", "pictures"], ...] = ("kernels", "pictures")


def ledger_of(reproduction: Reproduction) -> dict[str, Any]:
    """The ledger of a reproduction's measurements."""
    measurements = [Measurement.from_json(m) for m in reproduction.get("measurements", [])]
    return ledger(measurements, reproduction.get("provenance", {}))


def save_reproduction(reproduction: Reproduction, directory: Path) -> None:
    """Write the files that the report is rendered from, and the ledger."""
    directory.mkdir(parents=True, exist_ok=True)
    content = dict(reproduction)
    for name in _ARRAYS:
        array = content.pop(name, None)
        if isinstance(array, torch.Tensor):
            replace_bytes(directory / f"{name}.npy", array_bytes(array.detach().cpu().numpy()))
    write_json(content, directory / "reproduction.json")
    write_json(ledger_of(reproduction), directory / "ledger.json")


def load_reproduction(directory: Path) -> Reproduction:
    """Read the files of :func:`save_reproduction`."""
    content = read_json_object(directory / "reproduction.json")
    for name in _ARRAYS:
        if (directory / f"{name}.npy").exists():
            content[name] = torch.from_numpy(read_array(directory / f"{name}.npy"))
    return cast(Reproduction, content)


@contextmanager
def damaged_directory(key: str, directory: Path) -> Iterator[None]:
    """What reading a directory's files, or showing what they say, raises: one line that names it.

    Its files are JSON of many keys: whoever changed them may have put anything anywhere.
    """
    try:
        yield
    except ConfigError:
        raise
    except (ArithmeticError, AttributeError, LookupError, OSError, TypeError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        problem = " ".join(str(reason).split()) or type(error).__name__
        remedy = f"is damaged ({type(error).__name__}: {problem}); reproduce it again"
        raise ConfigError(key, directory, remedy) from error
