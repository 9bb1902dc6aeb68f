"""Validation of configurations, default paths, and recipes read without Hydra."""

from __future__ import annotations

import os
from copy import deepcopy
from dataclasses import fields, is_dataclass
from functools import cache
from importlib import resources
from itertools import product
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alexnet2012.config.enums import NAMED_SOURCES, LayerOp, ScheduleKind
from alexnet2012.config.inference_schema import (
    ExportConfig,
    FeaturesConfig,
    PredictConfig,
    ServeConfig,
)
from alexnet2012.config.schema import (
    ConfigError,
    DataConfig,
    EvaluateConfig,
    ModelConfig,
    PlanConfig,
    RecipeConfig,
    TrainConfig,
)

LIST_RUNS = "`alexnet2012 runs` lists the runs in a folder"


def validate(config: object) -> None:
    """Check a configuration; expand ``~`` in its paths and fill in the store's default path."""
    check_values(config)
    expand_paths(config)
    if isinstance(config, TrainConfig):
        store = config.data.store or default_store(config.data)
        config.data.store = str(Path(store).absolute())  # checkpoints keep it
        check_recipe(config.recipe, config.model)
        _check_train(config)
    elif isinstance(config, (EvaluateConfig, PredictConfig, ServeConfig)):
        _check_views("views", config.views)
        if config.checkpoint == []:
            raise ConfigError("checkpoint", "[]", "must name at least one checkpoint")
    elif isinstance(config, PlanConfig):
        check_recipe(config.recipe, config.model)
        _check_plan(config)


def check_files(config: object) -> None:
    """Check the files that a command reads and the folders that it writes to, without torch."""
    if isinstance(
        config, (EvaluateConfig, PredictConfig, ServeConfig, ExportConfig, FeaturesConfig)
    ):
        given = config.checkpoint
        for path in given if isinstance(given, list) else [given]:
            if not user_path("checkpoint", str(path)).exists():
                raise ConfigError("checkpoint", path, f"does not exist; {LIST_RUNS}")
    if isinstance(config, EvaluateConfig):
        _check_files(config)


def default_store(data: DataConfig) -> str:
    """The path of a source's store when none is given."""
    if data.source is None:
        raise ConfigError("data.store", None, "data.source is not set either; set one of them")
    if data.source in NAMED_SOURCES:
        return str(home() / f"{data.source}-{data.store_size}")
    source = user_path("data.source", data.source).absolute()
    beside = source.resolve() if source.name == ".." else source
    return f"{beside}-store-{data.store_size}"


def home() -> Path:
    """The folder of named stores and downloads: $ALEXNET2012_HOME, or one in the user's cache."""
    given = os.environ.get("ALEXNET2012_HOME") or "~/.cache/alexnet2012"
    return user_path("ALEXNET2012_HOME", given).absolute()


def user_path(key: str, path: str) -> Path:
    """Expand a leading ``~``; ConfigError if there is no such user or home directory."""
    try:
        return Path(path).expanduser()
    except RuntimeError:
        remedy = "no such home directory on this machine; give a path without ~"
        raise ConfigError(key, path, remedy) from None


def expand_paths(config: Any, prefix: str = "") -> None:
    """Expand a leading ``~`` in every path of a configuration, in place."""
    for item in fields(config):
        key, value = f"{prefix}{item.name}", getattr(config, item.name)
        if is_dataclass(value):
            expand_paths(value, f"{key}.")
        elif item.metadata.get("path"):
            paths = value if isinstance(value, list) else [value]
            expanded = [
                str(user_path(key, path)) if str(path).startswith("~") else path for path in paths
            ]
            setattr(config, item.name, expanded if isinstance(value, list) else expanded[0])


def check_values(config: Any, prefix: str = "") -> None:
    """Check numbers against the ranges of their fields; refuse keys added with Hydra's ``+``."""
    known = {item.name: item.metadata.get("range") for item in fields(config)}
    for name, value in vars(config).items():
        key, allowed = f"{prefix}{name}", known.get(name)
        if is_dataclass(value):
            check_values(value, f"{key}.")
        elif isinstance(value, list) and value and is_dataclass(value[0]):
            for index, inner in enumerate(value):
                check_values(inner, f"{key}[{index}].")
        elif name not in known:
            raise ConfigError(key, value, "no such key; remove it")
        elif value is not None and allowed is not None and value not in allowed:
            raise ConfigError(key, value, f"must be {allowed}")


def load_recipe(name: str) -> RecipeConfig:
    """The recipe of ``conf/recipe/<name>.yaml``, without Hydra; ConfigError if there is none.

    A recipe that is another with changes names it under ``defaults``.
    """
    return deepcopy(_recipe(name))


@cache
def _recipe(name: str) -> RecipeConfig:
    folder = resources.files("alexnet2012.conf") / "recipe"
    files = (file.name for file in folder.iterdir())
    names = sorted(file.removesuffix(".yaml") for file in files if file.endswith(".yaml"))
    if name not in names:
        raise ConfigError("recipe", name, f"no such recipe; use one of {', '.join(names)}")
    loaded = OmegaConf.create((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(loaded, DictConfig)
    parents = [parent for parent in loaded.pop("defaults", []) if parent != "_self_"]
    base = _recipe(parents[0]) if parents else RecipeConfig()
    recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(base), loaded))
    assert isinstance(recipe, RecipeConfig)
    return recipe


def scaled(count: int, width: float, towers: int) -> int:
    """A kernel or unit count times the width factor, rounded to whole kernels per tower."""
    return count if width == 1 else max(1, round(count * width / towers)) * towers


def check_recipe(recipe: RecipeConfig, model: ModelConfig) -> None:
    """Check that the network can be built; ConfigError names the first invalid key."""
    check_values(recipe, "recipe.")
    check_values(model, "model.")
    counts = {f"{name}.kernels": conv.kernels for name, conv in recipe.convs.items()}
    counts |= {f"{name}.units": linear.units for name, linear in recipe.hidden.items()}
    if recipe.fc8_bottleneck.present:
        counts["fc8_bottleneck.units"] = recipe.fc8_bottleneck.units
    for key, count in counts.items():
        below = count // recipe.towers * recipe.towers
        if count < 1 or count != below:
            choices = [str(n) for n in (below, below + recipe.towers) if n > 0]
            use = " or ".join(choices or [str(recipe.towers)])
            remedy = f"must divide evenly over {recipe.towers} towers; use {use}"
            raise ConfigError(f"recipe.{key}", count, remedy)
    for name, conv in recipe.convs.items():
        if conv.after.count(LayerOp.dropout) > 1:  # the second would repeat the draws of the first
            remedy = "has dropout twice; set recipe.conv_dropout_rate instead"
            raise ConfigError(f"recipe.{name}.after", ", ".join(map(str, conv.after)), remedy)
    for key, norm in (("lrn", recipe.lrn), ("spatial_norm", recipe.spatial_norm)):
        if norm.size < 1 or norm.size % 2 == 0:
            raise ConfigError(f"recipe.{key}.size", norm.size, "must be odd; the paper uses 5")


def check_world_size(world_size: int, towers: int) -> None:
    """Check that the processes make a data × tower mesh, or are one."""
    if world_size < 1 or (world_size != 1 and world_size % towers):
        near = max(1, world_size // towers) * towers
        remedy = f"must be 1, or a multiple of mesh.towers={towers}; use {near} or {near + towers}"
        raise ConfigError("mesh.processes", world_size, remedy)


def _check_towers(towers: int, recipe: RecipeConfig) -> None:
    if towers not in (1, recipe.towers):
        raise ConfigError("mesh.towers", towers, f"must be 1 or recipe.towers={recipe.towers}")


def _check_plan(config: PlanConfig) -> None:
    towers, processes = config.mesh.towers, config.nodes * config.gpus
    _check_towers(towers, config.recipe)
    if processes % towers:
        remedy = f"with nodes={config.nodes}, nodes·gpus must be a multiple of mesh.towers={towers}"
        raise ConfigError("gpus", config.gpus, f"{remedy}; use {towers}")
    if config.batch < processes // towers:
        remedy = f"must be at least {processes // towers}: one image per replica"
        raise ConfigError("batch", config.batch, remedy)


def _check_train(config: TrainConfig) -> None:
    _check_views("eval_views", config.eval_views)
    _check_towers(config.mesh.towers, config.recipe)
    check_world_size(config.mesh.processes, config.mesh.towers)
    if config.recipe.lrn_across_towers and min(config.mesh.processes, config.mesh.towers) > 1:
        remedy = "needs all maps in one process; set mesh=one_process"
        raise ConfigError("recipe.lrn_across_towers", "true", remedy)
    if config.data.store_size < config.model.input_size:
        remedy = f"must be at least model.input_size={config.model.input_size}"
        raise ConfigError("data.store_size", config.data.store_size, remedy)
    if config.schedule.kind is ScheduleKind.plateau and config.eval_every_epochs != 1:
        remedy = "must be 1 with schedule.kind=plateau, which needs the error after each epoch"
        raise ConfigError("eval_every_epochs", config.eval_every_epochs, remedy)
    _check_drops(config)


def _check_drops(config: TrainConfig) -> None:
    epochs = [drop.epoch for drop in config.schedule.drops]
    if epochs != sorted(epochs):
        raise ConfigError("schedule.drops", epochs, "must be sorted by epoch")
    layers = config.recipe.layers
    for drop, key in product(config.schedule.drops, ("layer_rates", "layer_bias_rates")):
        for name, rate in getattr(drop, key).items():
            if name not in layers or not rate >= 0:
                remedy = f"must be a learning rate of at least 0 for one of {', '.join(layers)}"
                raise ConfigError(f"schedule.drops.{key}", f"{name}: {rate}", remedy)


def _check_files(config: EvaluateConfig) -> None:
    """An evaluation may take hours: what it writes is checked before."""
    remedies = {"labels": "give a file", "devkit": "give a file"}
    if config.classes not in ("shared", "index"):
        remedies["classes"] = "use shared, index or a file"
    for key, remedy in remedies.items():
        given = getattr(config, key)
        if given is not None and not user_path(key, given).is_file():
            raise ConfigError(key, given, f"no such file; {remedy}")
    for key in ("out", "predictions", "per_class", "confusion", "submission"):
        given = getattr(config, key)
        if given is not None and not (folder := user_path(key, given).parent).is_dir():
            raise ConfigError(key, given, f"the folder {folder} does not exist; create it")
    if config.predictions is not None and not config.predictions.endswith((".csv", ".jsonl")):
        raise ConfigError("predictions", config.predictions, "must end in .csv or .jsonl")
    if config.submission is not None and config.devkit is None:
        remedy = "is required by submission=…; give ILSVRC2012_devkit_t12.tar.gz"
        raise ConfigError("devkit", None, remedy)


def _check_views(key: str, views: int) -> None:
    if views not in (1, 10):
        raise ConfigError(key, views, "must be 1 or 10")
