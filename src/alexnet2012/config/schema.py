"""The typed configuration: what may be set, within which range, and what to do when it is not.

Hydra composes the files in ``conf/`` against these classes, so an unknown key or a wrong type is
an error before any work starts; :mod:`alexnet2012.config.validation` looks at the values.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from alexnet2012.config.enums import (
    Activation,
    Budget,
    Decoder,
    Device,
    Feed,
    LayerOp,
    LightingScale,
    OnReject,
    Precision,
    ScheduleKind,
    WandbMode,
)


class ConfigError(ValueError):
    """A setting that cannot work: its key, its value and what to use instead, in one line."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key}={value}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, str(self.value), self.remedy)  # between processes


class RunError(RuntimeError):
    """A run that cannot go on, through no fault in its settings; the message says it all."""


@dataclass(frozen=True)
class Range:
    """Which numbers a setting may hold; every bound is optional."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.low is None or value >= self.low)
            and (self.high is None or value <= self.high)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        words = (
            ("at least", self.low),
            ("above", self.above),
            ("at most", self.high),
            ("below", self.below),
        )
        return " and ".join(f"{word} {bound:g}" for word, bound in words if bound is not None)


def ranged(
    default: Any = MISSING,
    *,
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Any:
    """A field of a configuration whose numbers are checked."""
    return field(default=default, metadata={"range": Range(low, high, above, below)})


@dataclass
class ConvConfig:
    """One convolution with what follows it. Kernel counts are of the whole net, both towers."""

    present: bool = True  # off: the net does without it
    kernels: int = MISSING
    kernel_size: int = ranged(low=1)
    stride: int = ranged(1, low=1)
    padding: int = ranged(0, low=0)  # zeros on each side
    overhang: bool = False  # the last window may hang over the right and bottom edge
    reads_both_towers: bool = False
    after: list[LayerOp] = field(default_factory=lambda: [LayerOp.activation])  # in this order
    init_std: float = MISSING
    init_bias: float = MISSING


@dataclass
class LinearConfig:
    """A hidden fully connected layer: units of the whole net and initial values."""

    present: bool = True
    units: int = MISSING
    reads_both_towers: bool = True
    init_std: float = MISSING
    init_bias: float = MISSING


@dataclass
class HeadConfig:
    """The last layer; its units are the classes of the data set."""

    init_std: float = MISSING
    init_bias: float = MISSING


@dataclass
class NormConfig:
    """b = a / (k + s·Σ a²)^beta over ``size`` maps or pixels; s is alpha, or alpha / window."""

    size: int = MISSING
    alpha: float = MISSING
    beta: float = MISSING
    k: float = ranged(above=0)
    divide_by_window: bool = MISSING


@dataclass
class PoolConfig:
    """Pooling, by the largest value or the mean."""

    size: int = ranged(low=1)
    stride: int = ranged(low=1)


@dataclass
class AugmentConfig:
    """What training draws for a picture, and what is subtracted from it."""

    crop: bool = True  # off: the centre
    flip: bool = True
    include_last_position: bool = MISSING  # 33 positions a side instead of 32, at 256 and 224
    images_per_draw: int = ranged(low=1)  # pictures that share a crop and a flip
    mean_follows_crop: bool = MISSING  # off: the centre of the mean image, whatever the crop
    lighting: bool = True
    lighting_std: float = ranged(low=0)
    lighting_scale: LightingScale = MISSING
    train_divisor: float = ranged(above=0)  # of training pictures, while lighting is on


@dataclass
class OptimizerConfig:
    """v ← momentum·v − weight_decay·ε·w − ε·g;  w ← w + v."""

    momentum: float = ranged(low=0, below=1)
    weight_decay: float = ranged(low=0)
    decay_biases: bool = MISSING
    layer_decay: dict[str, float] = field(default_factory=dict)  # instead of weight_decay


@dataclass
class RecipeConfig:
    """Everything that a source prescribes: the net, its initial values, its training."""

    name: str = MISSING
    input_size: int = ranged(224, low=1)  # pixels a side that the initial values are meant for
    towers: int = ranged(low=1)
    conv1: ConvConfig = field(default_factory=ConvConfig)
    conv2: ConvConfig = field(default_factory=ConvConfig)
    conv3: ConvConfig = field(default_factory=ConvConfig)
    conv4: ConvConfig = field(default_factory=ConvConfig)
    conv5: ConvConfig = field(default_factory=ConvConfig)
    conv6: ConvConfig = field(default_factory=ConvConfig)
    fc6: LinearConfig = field(default_factory=LinearConfig)
    fc7: LinearConfig = field(default_factory=LinearConfig)
    fc8: HeadConfig = field(default_factory=HeadConfig)
    lrn: NormConfig = field(default_factory=NormConfig)
    lrn_across_towers: bool = False  # windows go over the border of the towers, as on one GPU
    spatial_norm: NormConfig = field(default_factory=NormConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    dropout_rate: float = ranged(low=0, below=1)
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def convs(self) -> dict[str, ConvConfig]:
        """Those that are present, by name and in order."""
        every = {f"conv{i}": getattr(self, f"conv{i}") for i in range(1, 7)}
        return {name: conv for name, conv in every.items() if conv.present}

    @property
    def hidden(self) -> dict[str, LinearConfig]:
        """Those that are present, by name and in order."""
        every = {"fc6": self.fc6, "fc7": self.fc7}
        return {name: linear for name, linear in every.items() if linear.present}


@dataclass
class ModelConfig:
    """Departures from a recipe's net: another activation, or a size for a small machine."""

    activation: Activation = Activation.relu
    width: float = ranged(1.0, above=0)  # multiplies every kernel and unit count but the classes
    input_size: int = ranged(224, low=1)  # pixels a side


@dataclass
class DropConfig:
    """From the start of ``epoch`` on: whatever is given replaces the value in force."""

    epoch: int = ranged(low=0)
    rate: float | None = ranged(None, low=0)
    bias_rate: float | None = ranged(None, low=0)
    layer_rates: dict[str, float] = field(default_factory=dict)
    lighting: bool | None = None


@dataclass
class ScheduleConfig:
    """Learning rates by epoch."""

    kind: ScheduleKind = MISSING
    epochs: int = ranged(low=1)
    rate: float = ranged(above=0)
    bias_rate: float = ranged(low=0)
    factor: float = ranged(10.0, above=1)  # plateau: a drop divides the rates by this
    max_drops: int = ranged(3, low=0)
    patience_epochs: int = ranged(
        3, low=1
    )  # plateau: epochs without a better validation error before a drop
    drops: list[DropConfig] = field(default_factory=list)  # fixed: in order of epochs
    # The batch that the rates are meant for: they grow in proportion to the actual one; null: no.
    reference_batch: int | None = ranged(None, low=1)


@dataclass
class DataConfig:
    """The prepared pictures, and what they are prepared from where the store is not there yet."""

    source: str | None = MISSING  # as for `prepare`; null: a store as it is
    store: str | None = None  # null: beside the source, or the user's cache for named ones
    store_size: int = ranged(256, low=1)
    batch_size: int = ranged(128, low=1)  # pictures a step, over all data replicas
    eval_batch_size: int = ranged(64, low=1)
    feed: Feed = Feed.split
    decoder: Decoder = Decoder.auto
    # Of each process; null: 2, and where training is on a GPU as many as the process has cores.
    decode_threads: int | None = ranged(None, low=1)
    limit: int | None = ranged(None, low=1)  # first pictures of each class only
    first_classes: int | None = ranged(None, low=1)  # of the store only; null: all
    check_every_steps: int = ranged(
        50, low=1
    )  # steps between checks that all towers see the same batch


@dataclass
class MeshConfig:
    """The processes: data × tower."""

    processes: int = 2  # started by `train` itself; under torchrun its world size counts
    towers: int = ranged(
        2, low=1
    )  # processes that share one net; a single process always holds all towers
    device: Device = Device.auto
    timeout_s: int = ranged(300, low=1)  # for a rank that lives to come to an exchange
    stall_s: int = ranged(20, low=1)  # without a sign of life a rank is taken for lost
    gather_logits: bool = True  # before the loss; else it is made of each tower's own classes


@dataclass
class CheckpointConfig:
    """When a run is saved, besides at its end and when a signal ends it; all three null: never."""

    every_epochs: int | None = ranged(1, low=1)
    every_steps: int | None = ranged(None, low=1)
    every_minutes: float | None = ranged(10.0, above=0)  # by rank 0's clock
    keep_last: int | None = ranged(3, low=1)  # null: all
    keep_best: bool = True  # besides: the one of the lowest top-1 validation error

    @property
    def wanted(self) -> bool:
        return (self.every_epochs, self.every_steps, self.every_minutes) != (None, None, None)


@dataclass
class TrackingConfig:
    """Views of a run's records, and how much is recorded."""

    wandb: WandbMode = WandbMode.offline  # the environment variable WANDB_MODE counts before it
    tensorboard: bool = False
    project: str = "alexnet2012"  # of wandb
    log_every_steps: int = ranged(10, low=1)
    watch: bool = True  # kernels, wrong guesses and update ratios, where there is a view of them


@dataclass
class TrainConfig:
    """One training run."""

    seed: int = ranged(0, low=0)
    precision: Precision = Precision.fp32
    max_steps: int | None = ranged(None, low=1)
    stop_at_train_error_pct: float | None = ranged(None, low=0, high=100)  # of an epoch; the last
    eval_views: int = 1  # or 10
    eval_every_epochs: int = ranged(1, low=1)
    # `auto` goes on from the newest good checkpoint of the run directory, if there is one; or a
    # checkpoint; null: the run directory must be a new one.
    resume: str | None = "auto"
    init_from: str | None = None  # a checkpoint or run whose layers a new run starts from
    init_layers: list[str] = field(default_factory=list)  # which of them; none: all but fc8
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class PrepareConfig:
    """A store from pictures."""

    source: str = "photos"  # or another name, a folder, or an archive
    store: str = MISSING
    size: int = ranged(256, low=16, high=4096)
    quality: int = ranged(95, low=1, high=100)
    workers: int | None = ranged(None, low=1, high=1024)  # null: one a core
    on_reject: OnReject = OnReject.skip
    val_percent: float = ranged(10.0, above=0, below=100)  # of folders without a split of their own
    seed: int = ranged(0, low=0)  # of that split, and of the photos


@dataclass
class EvaluateConfig:
    """Errors of one checkpoint, or of several as an ensemble."""

    checkpoint: Any = MISSING  # a path or a list of paths
    store: str | None = None  # null: the store it was trained on
    views: int = 10  # or 1
    out: str | None = None  # a JSON file for the result
    json: bool = False  # print the result as JSON
    batch_size: int = ranged(64, low=1)
    device: Device = Device.auto
    decode_threads: int | None = ranged(None, low=1)  # null: as in training


@dataclass
class PlanConfig:
    """A training step on machines that one may not have: what it would cost."""

    nodes: int = ranged(1, low=1)  # machines
    gpus: int = ranged(2, low=1)  # processes on each
    batch: int = ranged(128, low=1)  # pictures a step, over all data replicas
    classes: int = ranged(1000, low=1)
    precision: Precision = Precision.fp32
    card: str | None = None  # a GPU whose data sheet stands for what is not given
    tflops: float | None = ranged(None, above=0)  # of one process; null: measured here
    memory_gb_per_s: float | None = ranged(
        None, above=0
    )  # of one process; null: the card's, or no limit
    link_gbps: float | None = ranged(
        None, above=0
    )  # Gbit/s each way of a machine to the others; with one machine, of a process
    node_link_gbps: float | None = ranged(None, above=0)  # Gbit/s of a process within its machine
    link_latency_us: float | None = ranged(None, low=0)  # of a message
    json: bool = False
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    data: DataConfig = field(default_factory=DataConfig)  # its batch size counts, where none is set
    mesh: MeshConfig = field(default_factory=MeshConfig)  # towers, and the device that is measured


@dataclass
class ReproduceConfig:
    """The whole reproduction, from pictures to the report."""

    source: str = "photos"  # or another, as for `prepare`
    out: str = "reproduction"
    budget: Budget = Budget.quick  # of all sweeps: minutes, hours, days
    parts: list[str] = field(default_factory=list)  # none: all; their names: docs/ledger.md
    seeds: int | None = ranged(None, low=1)  # paired ones; null: 2 at `quick`, else 5
    caveat: str = ""  # what to say of your pictures wherever a number of theirs is shown
    seed: int = ranged(0, low=0)
    full_size_steps: int = ranged(100, low=1)
    reduced_epochs: int = ranged(14, low=1)
    relu_epochs: int = ranged(32, low=1)
    pictures_per_class: int | None = ranged(None, low=1)  # of the reduced run; null: all
