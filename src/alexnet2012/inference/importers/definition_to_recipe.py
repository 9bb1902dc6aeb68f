"""Write a recipe and a schedule from a definition of cuda-convnet."""

from __future__ import annotations

from pathlib import Path

from omegaconf import OmegaConf

from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.importers.cuda_convnet import Definition, read_definition

_SCHEDULE = ("kind", "epochs", "rate", "bias_rate", "drops")  # the others have their defaults


def import_definition(config: ImportConfig, out: Path) -> Definition:
    """Write ``recipe.yaml``, ``schedule.yaml`` and ``notes.txt`` to the folder ``out``."""
    if config.params is None:
        remedy = "is required for a definition: its file of training parameters, layer-params-….cfg"
        raise ConfigError("params", None, remedy)
    for key in ("mean", "classes", "entry"):
        if (value := getattr(config, key)) is not None:
            raise ConfigError(key, value, "is for files with weights; a definition has none")
    if out.exists():
        raise ConfigError("out", out, "already exists; remove it, or choose another folder")
    definition = read_definition(Path(config.source), Path(config.params), config.input_size)
    schedule = OmegaConf.to_container(OmegaConf.structured(definition.schedule), enum_to_str=True)
    assert isinstance(schedule, dict)
    brief = {key: schedule[key] for key in _SCHEDULE}
    brief["drops"] = [
        {key: value for key, value in drop.items() if value not in (None, {})}
        for drop in brief["drops"]
    ]
    out.mkdir(parents=True)
    (out / "recipe.yaml").write_text(OmegaConf.to_yaml(definition.recipe), encoding="utf-8")
    (out / "schedule.yaml").write_text(OmegaConf.to_yaml(brief), encoding="utf-8")
    (out / "notes.txt").write_text(f"{definition.notes}\n", encoding="utf-8")
    return definition
