"""The typed configuration: what may be set, within which range, and what to do when it is not.

Hydra composes the files in ``conf/`` against these classes, so an unknown key or a wrong type is
an error before any work starts. Entry points turn the result into these plain dataclasses with
:func:`from_hydra`; no OmegaConf object goes further than that.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from importlib import resources
from typing import Any, TypeVar

import torch
from omegaconf import MISSING, OmegaConf


class ConfigError(ValueError):
    """A setting that cannot work: its key, its value and what to use instead, in one line."""

    def __init__(self, key: str, value: object, remedy: str) -> None:
        self.key, self.value, self.remedy = key, value, remedy
        super().__init__(f"{key}={value}: {remedy}")


class Activation(Enum):
    """Non-linearity after every layer but the last."""

    relu = "relu"
    tanh = "tanh"


class LightingScale(Enum):
    """What multiplies the random α of the PCA lighting, along each principal colour.

    ``eigenvalues`` reads the paper literally, with pixels in [0, 1]; on the 0-255 scale the
    same formula would add noise of a thousand grey levels.
    """

    eigenvalues = "eigenvalues"
    standard_deviations = "standard_deviations"


class Precision(Enum):
    """Type of weights, activations and updates."""

    fp32 = "fp32"
    fp64 = "fp64"

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self is Precision.fp64 else torch.float32


class ScheduleKind(Enum):
    """How the learning rate falls: on the validation error, or at given epochs."""

    plateau = "plateau"
    fixed = "fixed"


class WandbMode(Enum):
    """Where Weights & Biases records go; ``offline`` needs no account."""

    offline = "offline"
    online = "online"
    disabled = "disabled"


class Device(Enum):
    """Where the towers compute; ``auto`` takes CUDA where there is one."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


@dataclass
class ConvConfig:
    """One convolution with what follows it. Kernel counts are of the whole net, both towers."""

    kernels: int = MISSING
    kernel_size: int = MISSING
    stride: int = 1
    padding: int = 0  # zeros on each side
    overhang: bool = False  # the last window may hang over the right and bottom edge
    reads_both_towers: bool = False
    activation_last: bool = False  # order conv, LRN, pool, activation
    lrn: bool = False
    spatial_norm: bool = False
    pool: bool = False
    init_std: float = MISSING
    init_bias: float = MISSING


@dataclass
class LinearConfig:
    """A hidden fully connected layer: units of the whole net and initial values."""

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
    k: float = MISSING
    divide_by_window: bool = MISSING


@dataclass
class PoolConfig:
    """Max pooling."""

    size: int = MISSING
    stride: int = MISSING


@dataclass
class AugmentConfig:
    """What training draws for a picture, and what is subtracted from it."""

    crop: bool = True  # off: the centre
    flip: bool = True
    include_last_position: bool = MISSING  # 33 positions a side instead of 32, at 256 and 224
    images_per_draw: int = MISSING  # pictures that share a crop and a flip
    mean_follows_crop: bool = MISSING  # off: the centre of the mean image, whatever the crop
    lighting: bool = True
    lighting_std: float = MISSING
    lighting_scale: LightingScale = MISSING
    train_divisor: float = MISSING  # of training pictures, while lighting is on


@dataclass
class OptimizerConfig:
    """v ← momentum·v − weight_decay·ε·w − ε·g;  w ← w + v."""

    momentum: float = MISSING
    weight_decay: float = MISSING
    decay_biases: bool = MISSING


@dataclass
class RecipeConfig:
    """Everything that a source prescribes: the net, its initial values, its training."""

    name: str = MISSING
    towers: int = MISSING
    conv1: ConvConfig = field(default_factory=ConvConfig)
    conv2: ConvConfig = field(default_factory=ConvConfig)
    conv3: ConvConfig = field(default_factory=ConvConfig)
    conv4: ConvConfig = field(default_factory=ConvConfig)
    conv5: ConvConfig = field(default_factory=ConvConfig)
    fc6: LinearConfig = field(default_factory=LinearConfig)
    fc7: LinearConfig = field(default_factory=LinearConfig)
    fc8: HeadConfig = field(default_factory=HeadConfig)
    lrn: NormConfig = field(default_factory=NormConfig)
    spatial_norm: NormConfig = field(default_factory=NormConfig)
    pool: PoolConfig = field(default_factory=PoolConfig)
    dropout_rate: float = MISSING
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)

    @property
    def convs(self) -> dict[str, ConvConfig]:
        return {f"conv{i}": getattr(self, f"conv{i}") for i in range(1, 6)}

    @property
    def hidden(self) -> dict[str, LinearConfig]:
        return {"fc6": self.fc6, "fc7": self.fc7}


@dataclass
class ModelConfig:
    """Departures from a recipe's net: another activation, or a size for a small machine."""

    activation: Activation = Activation.relu
    width: float = 1.0  # multiplies every kernel and unit count but the classes
    input_size: int = 224  # pixels a side


@dataclass
class DropConfig:
    """From the start of ``epoch`` on: whatever is given replaces the value in force."""

    epoch: int = MISSING
    rate: float | None = None
    bias_rate: float | None = None
    layer_rates: dict[str, float] = field(default_factory=dict)
    lighting: bool | None = None


@dataclass
class ScheduleConfig:
    """Learning rates by epoch."""

    kind: ScheduleKind = MISSING
    epochs: int = MISSING
    rate: float = MISSING
    bias_rate: float = MISSING
    factor: float = 10.0  # plateau: a drop divides the rates by this
    max_drops: int = 3
    patience_epochs: int = 3  # plateau: epochs without a better validation error before a drop
    drops: list[DropConfig] = field(default_factory=list)  # fixed: in order of epochs


@dataclass
class DataConfig:
    """The prepared pictures, and what they are prepared from where the store is not there yet."""

    source: str = MISSING  # `photos`, or a folder of train/ and val/ with one folder a class
    store: str = MISSING
    store_size: int = 256
    batch_size: int = 128  # pictures a step, over all data replicas
    eval_batch_size: int = 64
    decode_threads: int = 2
    limit: int | None = None  # first pictures of each class only
    check_every_steps: int = 50  # steps between checks that all towers see the same batch


@dataclass
class MeshConfig:
    """The processes: data × tower."""

    processes: int = 2  # started by `train` itself; under torchrun its world size counts
    towers: int = 2  # processes that share one net; a single process always holds all towers
    device: Device = Device.auto
    timeout_s: int = 300


@dataclass
class TrackingConfig:
    """Records beside metrics.jsonl."""

    wandb: WandbMode = WandbMode.offline
    project: str = "alexnet2012"
    log_every_steps: int = 10


@dataclass
class TrainConfig:
    """One training run."""

    seed: int = 0
    precision: Precision = Precision.fp32
    max_steps: int | None = None
    eval_views: int = 1
    eval_every_epochs: int = 1
    checkpoint_every_epochs: int | None = 1  # null: none at all
    resume: str | None = None  # a checkpoint, or `auto` for the newest of the run directory
    recipe: RecipeConfig = field(default_factory=RecipeConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    schedule: ScheduleConfig = field(default_factory=ScheduleConfig)
    data: DataConfig = field(default_factory=DataConfig)
    mesh: MeshConfig = field(default_factory=MeshConfig)
    tracking: TrackingConfig = field(default_factory=TrackingConfig)


@dataclass
class PrepareConfig:
    """A store from a folder of pictures."""

    source: str = "photos"
    store: str = MISSING
    size: int = 256
    quality: int = 95
    workers: int = 2
    seed: int = 0


@dataclass
class EvaluateConfig:
    """Errors of one checkpoint, or of several as an ensemble."""

    checkpoint: Any = MISSING  # a path or a list of paths
    store: str | None = None  # None: the store it was trained on
    views: int = 10
    batch_size: int = 64
    device: Device = Device.auto
    decode_threads: int = 2


@dataclass
class ReproduceConfig:
    """The whole reproduction, from pictures to the report."""

    source: str = "photos"  # or a folder of train/ and val/ with one folder a class
    out: str = "reproduction"
    seed: int = 0
    full_size_steps: int = 100
    reduced_epochs: int = 14
    relu_epochs: int = 32
    pictures_per_class: int | None = None  # of the reduced run; null: all


Schema = TypeVar("Schema", TrainConfig, PrepareConfig, EvaluateConfig, ReproduceConfig)


def from_hydra(cfg: Any, schema: type[Schema]) -> Schema:
    """The plain dataclass of a composed configuration, checked.

    Raises:
        ConfigError: a value is out of its range.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    _refuse_added_keys(config)
    if isinstance(config, TrainConfig):
        check_recipe(config.recipe, config.model)
        _check_train(config)
    return config


def load_recipe(name: str) -> RecipeConfig:
    """The recipe of ``conf/recipe/<name>.yaml``, without Hydra.

    Raises:
        ConfigError: no such recipe.
    """
    folder = resources.files("alexnet2012.conf") / "recipe"
    names = sorted(
        f.name.removesuffix(".yaml") for f in folder.iterdir() if f.name.endswith(".yaml")
    )
    if name not in names:
        raise ConfigError("recipe", name, f"no such recipe; use one of {', '.join(names)}")
    loaded = OmegaConf.create((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(RecipeConfig), loaded))
    assert isinstance(recipe, RecipeConfig)
    return recipe


def scaled(count: int, width: float, towers: int) -> int:
    """A kernel or unit count under the width multiplier, rounded to whole kernels a tower."""
    return count if width == 1 else max(1, round(count * width / towers)) * towers


def check_recipe(recipe: RecipeConfig, model: ModelConfig) -> None:
    """Refuse a net that cannot be built.

    Raises:
        ConfigError: names the first key that is wrong.
    """
    if recipe.towers < 1:
        raise ConfigError("recipe.towers", recipe.towers, "must be 1 or more; the paper has 2")
    if model.width <= 0:
        raise ConfigError("model.width", model.width, "must be above 0; 1 is the paper's net")
    counts = {f"{name}.kernels": conv.kernels for name, conv in recipe.convs.items()}
    counts |= {f"{name}.units": linear.units for name, linear in recipe.hidden.items()}
    for key, count in counts.items():
        below = count // recipe.towers * recipe.towers
        if count < 1 or count != below:
            choices = [str(n) for n in (below, below + recipe.towers) if n > 0]
            remedy = f"must divide evenly over {recipe.towers} towers; use {' or '.join(choices)}"
            raise ConfigError(f"recipe.{key}", count, remedy)
    if not 0 <= recipe.dropout_rate < 1:
        raise ConfigError("recipe.dropout_rate", recipe.dropout_rate, "must be in [0, 1); paper .5")
    for key, norm in (("lrn", recipe.lrn), ("spatial_norm", recipe.spatial_norm)):
        if norm.size < 1 or norm.size % 2 == 0:
            raise ConfigError(f"recipe.{key}.size", norm.size, "must be odd; the paper has 5")
    whole = {f"{name}.kernel_size": conv.kernel_size for name, conv in recipe.convs.items()}
    whole |= {f"{name}.stride": conv.stride for name, conv in recipe.convs.items()}
    whole |= {"pool.size": recipe.pool.size, "pool.stride": recipe.pool.stride}
    whole |= {"augment.images_per_draw": recipe.augment.images_per_draw}
    for key, value in whole.items():
        if value < 1:
            raise ConfigError(f"recipe.{key}", value, "must be 1 or more")
    divisor = recipe.augment.train_divisor
    if divisor <= 0:
        raise ConfigError("recipe.augment.train_divisor", divisor, "must be above 0; 1 for none")


def check_world_size(world_size: int, towers: int) -> None:
    """Refuse a number of processes that makes no data × tower mesh.

    Raises:
        ConfigError: neither one process nor a multiple of the towers.
    """
    if world_size < 1 or (world_size != 1 and world_size % towers):
        nearest = max(1, world_size // towers) * towers
        remedy = (
            f"must be 1, or a multiple of mesh.towers={towers}; use {nearest} or {nearest + towers}"
        )
        raise ConfigError("mesh.processes", world_size, remedy)


def _refuse_added_keys(config: Any, prefix: str = "") -> None:
    """Hydra's ``+key=value`` adds keys that no code would read."""
    known = {f.name for f in fields(config)}
    for name, value in vars(config).items():
        if name not in known:
            raise ConfigError(f"{prefix}{name}", value, "no such key; take it out")
        if is_dataclass(value):
            _refuse_added_keys(value, f"{prefix}{name}.")


def _check_train(config: TrainConfig) -> None:
    at_least_one = {
        "schedule.epochs": config.schedule.epochs,
        "schedule.patience_epochs": config.schedule.patience_epochs,
        "data.batch_size": config.data.batch_size,
        "data.eval_batch_size": config.data.eval_batch_size,
        "data.decode_threads": config.data.decode_threads,
        "data.check_every_steps": config.data.check_every_steps,
        "eval_every_epochs": config.eval_every_epochs,
        "checkpoint_every_epochs": config.checkpoint_every_epochs or 1,
        "mesh.towers": config.mesh.towers,
        "tracking.log_every_steps": config.tracking.log_every_steps,
    }
    for key, value in at_least_one.items():
        if value < 1:
            raise ConfigError(key, value, "must be 1 or more")
    if config.max_steps is not None and config.max_steps < 1:
        raise ConfigError("max_steps", config.max_steps, "must be 1 or more, or null for no limit")
    if config.eval_views not in (1, 10):
        raise ConfigError("eval_views", config.eval_views, "must be 1 or 10")
    if config.seed < 0:
        raise ConfigError("seed", config.seed, "must be 0 or more")
    if config.mesh.towers not in (1, config.recipe.towers):
        remedy = f"must be 1 or recipe.towers={config.recipe.towers}"
        raise ConfigError("mesh.towers", config.mesh.towers, remedy)
    check_world_size(config.mesh.processes, config.mesh.towers)
    if config.schedule.rate <= 0 or config.schedule.bias_rate < 0:
        raise ConfigError(
            "schedule.rate", config.schedule.rate, "must be above 0; the paper has .01"
        )
    epochs = [drop.epoch for drop in config.schedule.drops]
    if epochs != sorted(epochs):
        raise ConfigError("schedule.drops", epochs, "must be in order of their epochs")
    if config.data.store_size < config.model.input_size:
        remedy = f"must be at least model.input_size={config.model.input_size}"
        raise ConfigError("data.store_size", config.data.store_size, remedy)
