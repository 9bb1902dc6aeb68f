"""Typed configuration of all commands: keys, types, ranges, defaults and roles.

Hydra composes the files in ``conf/`` against these classes, so an unknown key or a wrong type is
an error before any work starts; :mod:`alexnet2012.config.validation` checks the values.

The comment behind a field, or above it, is its help text in ``--help`` and in docs/settings.md.
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
    Keep,
    LayerOp,
    LightingScale,
    OnReject,
    Precision,
    ScheduleKind,
    Shuffle,
    WandbMode,
)
from alexnet2012.config.roles import Role


class ConfigError(ValueError):
    """An invalid setting; the message is one line with its key, its value and a remedy."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key}={value}: {remedy}")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.key, str(self.value), self.remedy)  # picklable


class RunError(RuntimeError):
    """A run cannot continue although its settings are valid; the message is for users."""


@dataclass(frozen=True)
class Range:
    """Valid numbers of a setting; every bound is optional."""

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
        names = {"low": "at least", "above": "above", "high": "at most", "below": "below"}
        bounds = ((name, getattr(self, bound)) for bound, name in names.items())
        return " and ".join(f"{name} {bound:g}" for name, bound in bounds if bound is not None)


def ranged(default: Any = MISSING, *, role: Role | None = None, **bounds: float) -> Any:
    """A field for numbers within the bounds of a :class:`Range`."""
    return field(default=default, metadata={"range": Range(**bounds), "role": role})


def path_field(default: Any = MISSING, *, role: Role | None = None) -> Any:
    """A field for a path, or a list of paths; a leading ``~`` in it is the home directory."""
    return field(default=default, metadata={"path": True, "role": role})


@dataclass
class ConvConfig:
    """A convolution and the operations after it. Kernel counts are totals over both towers."""

    present: bool = True  # false removes the layer
    kernels: int = MISSING  # output channels
    kernel_size: int = ranged(low=1)  # pixels per side
    stride: int = ranged(1, low=1)  # pixels
    padding: int = ranged(0, low=0)  # pixels of zeros on each side
    overhang: bool = False  # the last window may extend past the right and bottom edges
    reads_both_towers: bool = False  # read the maps of both towers, or only those of its own tower
    after: list[LayerOp] = field(default_factory=lambda: [LayerOp.activation])  # in order
    init_std: float = MISSING  # standard deviation of the initial weights
    init_bias: float = MISSING  # initial bias


@dataclass
class LinearConfig:
    """A hidden fully connected layer. Unit counts are totals over both towers."""

    present: bool = True  # false removes the layer
    units: int = MISSING  # outputs
    reads_both_towers: bool = True  # read the units of both towers, or only those of its own tower
    init_std: float = MISSING  # standard deviation of the initial weights
    init_bias: float = MISSING  # initial bias


@dataclass
class BottleneckConfig:
    """Linear units between fc7 and fc8: fc8's weight is then of low rank, for many classes."""

    present: bool = False  # true adds the layer
    units: int = 2048  # outputs, totals over both towers
    init_std: float = 0.01  # standard deviation of the initial weights
    init_bias: float = 0.0  # initial bias


@dataclass
class HeadConfig:
    """The last layer, with one unit per class of the data set."""

    init_std: float = MISSING  # standard deviation of the initial weights
    init_bias: float = MISSING  # initial bias


@dataclass
class NormConfig:
    """b = a / (k + s·Σ a²)^beta over ``size`` maps or pixels; s is alpha, or alpha / window."""

    size: int = MISSING  # window: maps, or pixels per side; odd
    alpha: float = MISSING  # factor of the sum of squares
    beta: float = MISSING  # exponent of the denominator
    k: float = ranged(above=0)  # constant in the denominator
    divide_by_window: bool = MISSING  # divide alpha by the number of values in the window


@dataclass
class PoolConfig:
    """Max or average pooling."""

    size: int = ranged(low=1)  # pixels per side
    stride: int = ranged(low=1)  # pixels


@dataclass
class AugmentConfig:
    """Random augmentation of training images, and mean subtraction."""

    crop: bool = True  # random crops; false: the centre crop
    flip: bool = True  # random horizontal flips
    # 33 crop positions per side instead of 32, for crops of 224 from 256 pixels
    include_last_position: bool = MISSING
    images_per_draw: int = ranged(low=1)  # consecutive images that share a crop and a flip
    # crop the mean image at the image's position; false: at the centre
    mean_follows_crop: bool = MISSING
    lighting: bool = True  # PCA colour augmentation
    lighting_std: float = ranged(low=0)  # standard deviation of the colour noise
    lighting_scale: LightingScale = MISSING  # what scales the colour noise
    train_divisor: float = ranged(above=0)  # divides training images while lighting is on


@dataclass
class OptimizerConfig:
    """v ← momentum·v − weight_decay·ε·w − ε·g;  w ← w + v."""

    momentum: float = ranged(low=0, below=1)  # share of the previous update that is kept
    weight_decay: float = ranged(low=0)  # an update subtracts this times learning rate and weight
    decay_biases: bool = MISSING  # apply weight decay to biases, too
    # weight decay of individual layers, by name, where it differs from weight_decay
    layer_decay: dict[str, float] = field(default_factory=dict)


@dataclass
class RecipeConfig:
    """Everything that a source prescribes: architecture, initialization and training."""

    name: str = MISSING  # name of its file in conf/recipe
    input_size: int = ranged(224, low=1)  # pixels per side that init_std is meant for
    towers: int = ranged(low=1)  # towers that every layer is split over
    conv1: ConvConfig = field(default_factory=ConvConfig)
    conv2: ConvConfig = field(default_factory=ConvConfig)
    conv3: ConvConfig = field(default_factory=ConvConfig)
    conv4: ConvConfig = field(default_factory=ConvConfig)
    conv5: ConvConfig = field(default_factory=ConvConfig)
    conv6: ConvConfig = field(default_factory=ConvConfig)
    fc6: LinearConfig = field(default_factory=LinearConfig)
    fc7: LinearConfig = field(default_factory=LinearConfig)
    fc8_bottleneck: BottleneckConfig = field(default_factory=BottleneckConfig)
    fc8: HeadConfig = field(default_factory=HeadConfig)
    lrn: NormConfig = field(default_factory=NormConfig)
    # LRN windows cross the border between the towers, as on one GPU
    lrn_across_towers: bool = False
    spatial_norm: NormConfig = field(default_factory=NormConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    dropout_rate: float = ranged(low=0, below=1)  # in hidden fully connected layers
    conv_dropout_rate: float = ranged(0.0, low=0, below=1)  # of `dropout` after a convolution
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    # draw the order of the training images anew in every epoch, or once: then every epoch has the
    # same minibatches, and the same images share a crop
    shuffle: Shuffle = Shuffle.every_epoch
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def layers(self) -> list[str]:
        """Names of all layers with parameters, in order."""
        bottleneck = ["fc8_bottleneck"] if self.fc8_bottleneck.present else []
        return [*self.convs, *self.hidden, *bottleneck, "fc8"]

    @property
    def convs(self) -> dict[str, ConvConfig]:
        """The convolutions that are present, by name and in order."""
        convs = {f"conv{i}": getattr(self, f"conv{i}") for i in range(1, 7)}
        return {name: conv for name, conv in convs.items() if conv.present}

    @property
    def hidden(self) -> dict[str, LinearConfig]:
        """The hidden fully connected layers that are present, by name and in order."""
        linears = {"fc6": self.fc6, "fc7": self.fc7}
        return {name: linear for name, linear in linears.items() if linear.present}


@dataclass
class ModelConfig:
    """Changes to a recipe's architecture: the activation, or a smaller network."""

    # non-linearity after every layer but the last
    activation: Activation = field(default=Activation.relu, metadata={"role": Role.variant})
    width: float = ranged(1.0, above=0)  # multiplies all kernel and unit counts except the classes
    input_size: int = ranged(224, low=1)  # pixels per side of the crops that the model reads


@dataclass
class DropConfig:
    """A milestone: new values that apply from the start of ``epoch``."""

    epoch: int = ranged(low=0)  # counted from 0
    rate: float | None = ranged(None, low=0)  # learning rate of weights
    bias_rate: float | None = ranged(None, low=0)  # learning rate of biases
    # learning rate of individual layers, weights and biases, by name
    layer_rates: dict[str, float] = field(default_factory=dict)
    # learning rate of the biases of individual layers, where it differs from layer_rates
    layer_bias_rates: dict[str, float] = field(default_factory=dict)
    lighting: bool | None = None  # PCA colour augmentation on or off


@dataclass
class ScheduleConfig:
    """Length of training, and learning rates by epoch."""

    # drop rates when the validation or training error plateaus, or at fixed epochs
    kind: ScheduleKind = MISSING
    epochs: int = ranged(low=1, role=Role.length)  # passes over the training images
    # multiplies epochs, and the epochs of drops: the same schedule in a longer training
    epochs_factor: int = ranged(1, low=1, role=Role.variant)
    rate: float = ranged(above=0)  # initial learning rate of weights
    bias_rate: float = ranged(low=0)  # initial learning rate of biases
    # multiplies all learning rates, also those of drops
    rate_factor: float = ranged(1.0, above=0, role=Role.variant)
    factor: float = ranged(10.0, above=1)  # plateau: every drop divides the rates by this
    max_drops: int = ranged(3, low=0)  # plateau: maximum number of drops
    # plateau: epochs without improvement of the error before a drop
    patience_epochs: int = ranged(3, low=1)
    # fixed: changes at given epochs, sorted by epoch; each has epoch and any of rate, bias_rate,
    # layer_rates, layer_bias_rates, lighting
    drops: list[DropConfig] = field(default_factory=list)
    # epochs in which all rates rise linearly, step by step, from almost 0; 0: no warm-up
    warmup_epochs: int = ranged(0, low=0)
    # batch size that the rates are meant for; they scale in proportion to data.batch_size. null:
    # no scaling
    reference_batch: int | None = ranged(None, low=1)


@dataclass
class DataConfig:
    """The store of preprocessed images, and the source from which it is made if missing."""

    # images to make the store from, as in `prepare`; null: the store must exist
    source: str | None = path_field(role=Role.input)
    # path of the store; null: next to the source, or in the user's cache for named sources
    store: str | None = path_field(None, role=Role.input)
    store_size: int = ranged(256, low=1, role=Role.identity)  # pixels per side of stored images
    # training images per step, over all replicas
    batch_size: int = ranged(128, low=1, role=Role.identity)
    # maximum number of images that a replica processes at once; larger batches are split, and the
    # gradients of the parts are summed. null: the whole batch
    micro_batch: int | None = ranged(None, low=1, role=Role.placement)
    # validation images per forward pass of a replica
    eval_batch_size: int = ranged(64, low=1, role=Role.evaluation)
    # split: each tower decodes its share of a batch and sends it to the others; duplicate: each
    # decodes all of it
    feed: Feed = field(default=Feed.split, metadata={"role": Role.input})
    # memory: decode each image once and keep it in memory that the processes of a machine share;
    # device: keep it on each GPU; no: decode at each use; auto: memory if the images take at most
    # half of the available memory, otherwise no
    keep: Keep = field(default=Keep.auto, metadata={"role": Role.input})
    # device that decodes JPEGs; auto is the device of the model
    decoder: Decoder = field(default=Decoder.auto, metadata={"role": Role.input})
    # decoder threads per process; null: 2, or one per core of the process when training on a GPU
    decode_threads: int | None = ranged(None, low=1, role=Role.input)
    # use only this many images per class, the first ones; null: all
    limit: int | None = ranged(None, low=1, role=Role.identity)
    # use only this many classes, the first ones of the store; null: all
    first_classes: int | None = ranged(None, low=1, role=Role.identity)
    # leave out this many classes, the first ones of the store, before counting first_classes
    skip_classes: int = ranged(0, low=0, role=Role.identity)
    # steps between checks that all towers got the same batch
    check_every_steps: int = ranged(50, low=1, role=Role.input)


@dataclass
class MeshConfig:
    """The processes, as a data × tower mesh."""

    # processes that `train` starts; under torchrun its world size is used instead
    processes: int = field(default=2, metadata={"role": Role.world_size})
    # processes that share a replica of the model; a single process computes all towers
    towers: int = ranged(2, low=1)
    device: Device = Device.auto  # auto selects CUDA if there is a GPU per process
    # seconds that a live rank may keep others waiting at a collective
    timeout_s: int = ranged(300, low=1)
    stall_s: int = ranged(20, low=1)  # seconds without a sign of life before a rank counts as lost
    # gather the logits of all towers before the loss; false: compute the loss from sharded logits
    gather_logits: bool = True
    # on a GPU, capture the training step as CUDA graphs and replay them
    graph: bool = True


@dataclass
class CheckpointConfig:
    """When to save checkpoints, besides at the end, on SIGTERM and on SIGINT; all null: never."""

    every_epochs: int | None = ranged(1, low=1)  # epochs between checkpoints; null: not by epoch
    every_steps: int | None = ranged(None, low=1)  # steps between checkpoints; null: not by step
    # minutes between checkpoints, on rank 0's clock; null: not by time
    every_minutes: float | None = ranged(10.0, above=0)
    keep_last: int | None = ranged(3, low=1)  # newest checkpoints to keep; null: all
    keep_best: bool = True  # also keep the checkpoint with the lowest top-1 validation error

    @property
    def wanted(self) -> bool:
        return (self.every_epochs, self.every_steps, self.every_minutes) != (None, None, None)


@dataclass
class TrackingConfig:
    """Loggers besides the files of the run directory, and how much is logged."""

    # Weights & Biases; the environment variable WANDB_MODE takes precedence
    wandb: WandbMode = WandbMode.offline
    tensorboard: bool = False  # write TensorBoard event files into the run directory
    project: str = "alexnet2012"  # project name in Weights & Biases
    log_every_steps: int = ranged(10, low=1)  # steps between records of the training loss
    # file of reference bands, made by `runs bands`; null: those of the package
    bands: str | None = path_field(None)
    watch: bool = True  # log kernels, wrong predictions and update ratios, if a logger is on


@dataclass
class TrainConfig:
    """One training run."""

    # seed of initial weights, data order, augmentation and dropout
    seed: int = ranged(0, low=0, role=Role.variant)
    # arithmetic: bf16 keeps activations in bf16, tf32 rounds the inputs of matmuls (GPU only)
    precision: Precision = field(default=Precision.fp32, metadata={"role": Role.identity})
    # stop after this many steps; null: after schedule.epochs
    max_steps: int | None = ranged(None, low=1, role=Role.length)
    # stop after the first epoch with at most this training error, in %; null: never
    stop_at_train_error_pct: float | None = ranged(None, low=0, high=100, role=Role.length)
    # crops averaged per validation image, 1 or 10
    eval_views: int = field(default=1, metadata={"role": Role.evaluation})
    eval_every_epochs: int = ranged(1, low=1, role=Role.evaluation)  # epochs between validations
    # at the end, evaluate this many training images (every k-th of the split), without augmentation
    # and dropout, as validation images are. 0: none
    eval_train_images: int = ranged(0, low=0, role=Role.evaluation)
    # auto: resume from the newest valid checkpoint of the run directory, if any; a path: resume
    # from that checkpoint, or from the newest one of that run; null: require a new run directory
    resume: str | None = path_field("auto", role=Role.checkpointing)
    # pretrained weights: a checkpoint or run that initializes init_layers; null: random weights
    init_from: str | None = path_field(None, role=Role.identity)
    # layers that are initialized from init_from; empty: all but fc8
    init_layers: list[str] = field(default_factory=list, metadata={"role": Role.identity})
    # trace this many steps, after a warm-up, for ui.perfetto.dev; null: none
    profile: int | None = ranged(None, low=1, role=Role.logging)
    recipe: RecipeConfig = field(default_factory=RecipeConfig, metadata={"role": Role.variant})
    model: ModelConfig = field(default_factory=ModelConfig, metadata={"role": Role.identity})
    schedule: ScheduleConfig = field(
        default_factory=ScheduleConfig, metadata={"role": Role.identity}
    )
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig, metadata={"role": Role.placement})
    checkpoint: CheckpointConfig = field(
        default_factory=CheckpointConfig, metadata={"role": Role.checkpointing}
    )
    tracking: TrackingConfig = field(
        default_factory=TrackingConfig, metadata={"role": Role.logging}
    )


@dataclass
class PrepareConfig:
    """A store made from images."""

    source: str = path_field("photos")  # name of a data set, a folder, or an archive
    store: str = path_field()  # folder to write
    size: int = ranged(256, low=16, high=4096)  # pixels per side of the stored images
    quality: int = ranged(95, low=1, high=100)  # JPEG quality of the stored images
    workers: int | None = ranged(None, low=1, high=1024)  # processes; null: one per core
    on_reject: OnReject = OnReject.skip  # skip: list unusable images; fail: stop at one
    # validation images in % of each class, for folders without a split of their own;
    # 100: all, for a store to evaluate on
    val_percent: float = ranged(10.0, above=0, high=100)
    # list of image names and classes, for images in no class folders; null: a list beside them
    labels: str | None = path_field(None)
    seed: int = ranged(0, low=0)  # seed of that split, and of the crops of `photos`


@dataclass
class EvaluateConfig:
    """Errors of one checkpoint, or of several as an ensemble."""

    checkpoint: Any = path_field()  # a run or a checkpoint; or a list of them, as an ensemble
    store: str | None = path_field(None)  # store to evaluate on; null: that of the training run
    views: int = 10  # crops averaged per image, 1 or 10
    out: str | None = path_field(None)  # JSON file for the result
    json: bool = False  # print the result as JSON
    batch_size: int = ranged(64, low=1)  # images per forward pass
    device: Device = Device.auto  # where the model runs; auto selects CUDA if available
    decode_threads: int | None = ranged(None, low=1)  # decoder threads; null: as in training
    # which classes of the model those of the store are, where they differ. shared: classes of the
    # same name, leaving out the others; index: numbers are positions among the other's classes; or
    # a file (.json or tab-separated) with the model's class, or classes, for each of the store's
    classes: str | None = path_field(None)
    # file with the right labels of each image, which may be several, in place of the store's
    labels: str | None = path_field(None)
    # file to write with the five predictions and the errors of each image, .csv or .jsonl
    predictions: str | None = path_field(None)
    per_class: str | None = path_field(None)  # .csv file to write with the errors of each class
    confusion: str | None = path_field(
        None
    )  # .csv file to write with images by class and predicted class
    # file to write in ILSVRC's format: five class numbers per image; it needs devkit
    submission: str | None = path_field(None)
    # ILSVRC's development kit (.tar.gz, or unpacked), which numbers the classes
    devkit: str | None = path_field(None)


@dataclass
class VerifyConfig:
    """Which part of a run is replayed, to prove it."""

    run: str = path_field()  # directory of the run
    segments: int = ranged(3, low=1)  # stretches between checkpoints to replay
    # steps to replay in all, at most; null: a twentieth of the run's
    steps: int | None = ranged(None, low=1)
    # seed of the choice of stretches; null: another choice each time
    seed: int | None = ranged(None, low=0)
    store: str | None = path_field(None)  # store of the images; null: where it was in training
    json: bool = False  # print the result as JSON


@dataclass
class PlanConfig:
    """Predicted time and memory of a training step on given machines."""

    nodes: int = ranged(1, low=1)  # machines
    gpus: int = ranged(2, low=1)  # processes per machine
    batch: int = ranged(128, low=1)  # images per step, over all replicas
    classes: int = ranged(1000, low=1)  # classes of the last layer
    precision: Precision = Precision.fp32  # arithmetic; see `train`
    card: str | None = None  # GPU whose data sheet supplies speeds that are not set
    # TFLOP/s of a process; null: the card's, or measured on this machine
    tflops: float | None = ranged(None, above=0)
    # memory bandwidth of a process in GB/s; null: the card's, or unlimited
    memory_gb_per_s: float | None = ranged(None, above=0)
    # bandwidth between machines in Gbit/s per direction; with one machine, between processes
    link_gbps: float | None = ranged(None, above=0)
    # bandwidth between the processes of a machine, Gbit/s
    node_link_gbps: float | None = ranged(None, above=0)
    link_latency_us: float | None = ranged(None, low=0)  # latency of a message, microseconds
    json: bool = False  # print JSON instead of a table
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    # its batch_size is used unless `batch` is set
    data: DataConfig = field(default_factory=DataConfig)
    # its towers, and the device that is measured
    mesh: MeshConfig = field(default_factory=MeshConfig)


@dataclass
class ReproduceConfig:
    """The whole reproduction, from images to the report."""

    # name of a data set, a folder, or an archive; as in `prepare`
    source: str = path_field("photos")
    out: str = path_field("reproduction")  # folder to write
    # compute budget: minutes, hours on two cores, half an hour of a GPU, or the whole of ILSVRC
    budget: Budget = Budget.quick
    # parts to run (docs/ledger.md lists them); empty: those that suit the budget and the images
    parts: list[str] = field(default_factory=list)
    # ablations of the sweeps; empty: all that the claims and their controls need
    arms: list[str] = field(default_factory=list)
    # seeds of each ablation; null: 2 if quick, 8 if reduced, 3 on a GPU, 5 at full scale
    seeds: int | None = ranged(None, low=1)
    # seeds of the baseline; null: √k times as many as those of each of k ablations
    control_seeds: int | None = ranged(None, low=1)
    # factors of the learning rates that are tried for each ablation; empty: 0.5, 1 and 2 if reduced
    # or on a GPU, otherwise only 1
    rate_factors: list[float] = field(default_factory=list)
    # seeds on which the learning rate of each ablation is chosen, besides those it is measured on
    rate_seeds: int = ranged(2, low=1)
    # runs of a sweep at once, each on its share of the cores; auto: one per core, or one on a GPU
    jobs: str = "1"
    # further settings of every run of the sweeps, such as precision=bf16
    overrides: list[str] = field(default_factory=list)
    caveat: str = ""  # a sentence about your images, shown with every number measured on them
    seed: int = ranged(0, low=0)  # first seed
    full_size_steps: int = ranged(60, low=1)  # training steps of the full-size run
    reduced_epochs: int = ranged(14, low=1)  # epochs of the reduced run
    relu_epochs: int = ranged(32, low=1)  # epochs of each run of the ReLU-tanh comparison
    # training images per class of the reduced run; null: all
    pictures_per_class: int | None = ranged(None, low=1)
