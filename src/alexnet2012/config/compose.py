"""Composition of command-line overrides into a validated dataclass, and quoting for Hydra.

The rest of the package gets plain dataclasses, without OmegaConf.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexnet2012.config.renamed import with_current_names
from alexnet2012.config.schema import ConfigError
from alexnet2012.config.validation import validate

CONF = "alexnet2012.conf"
Schema = TypeVar("Schema")
# A value, alone or in a list or sweep, that Hydra's grammar does not read as text.
_NOT_TEXT = re.compile(
    r"(^|[,[(] ?)([-+]?[\d_.]+(e[-+]?\d+)?|[-+]?(nan|inf)|true|false)(?= ?[,\])]|$)", re.IGNORECASE
)
_UNQUOTED = re.compile(r"(choice\()?[^'\"(){}]*\)?")  # neither quoted nor a range
_TEXT_TYPES = ("str", "str | None", "Any", "list[str]")
_HYDRAS_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def compose_config(
    name: str, schema: type[Schema], overrides: Sequence[str]
) -> tuple[Schema, Path]:
    """The configuration and the run directory that Hydra would create for it."""
    check_grammar(overrides)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        cfg = compose(name, overrides=quoted_text(schema, overrides), return_hydra_config=True)
        run_dir = Path(cfg.hydra.run.dir).absolute()
        HydraConfig.instance().set_config(cfg)  # for ${hydra:…}
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return from_hydra(cfg, schema), run_dir


def from_hydra(cfg: Any, schema: type[Schema]) -> Schema:
    """Convert a composed configuration to its dataclass, and validate it."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    validate(config)
    return config


def check_grammar(overrides: Sequence[str]) -> None:
    """Parse the overrides: some of Hydra's own errors do not name the malformed one."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parsed = parser.parse_override(override)
        except Exception as error:
            remedy = "cannot be parsed as KEY=VALUE; quote special characters: KEY='\"…\"'"
            raise ConfigError("override", override, remedy) from error
        if not parsed.key_or_group:
            raise ConfigError("override", override, "has no key; write settings as KEY=VALUE")
        remedy = f"must be the name of a file in conf/{parsed.key_or_group}"
        is_name = isinstance(parsed.value(), (str, list)) or parsed.is_delete()
        if not (is_name or parsed.is_sweep_override()) and _is_group(parsed.key_or_group):
            raise ConfigError(parsed.key_or_group, _text(override), remedy)


def _is_group(key: str) -> bool:
    return resources.files(CONF).joinpath(key).is_dir()


def _text(override: str) -> str:
    return override.partition("=")[2]


def quoted_text(schema: type[Any], overrides: Sequence[str]) -> list[str]:
    """Quote text values that Hydra would parse as numbers, such as the path 2024_06.

    This also keeps them as written in a sweep, whose jobs get the parsed values. Former names of
    experiments become the current ones.
    """
    return [_quoted_text(schema(), with_current_names(override)) for override in overrides]


def _quoted_text(defaults: Any, override: str) -> str:
    key, equals, text = override.partition("=")
    *groups, name = key.lstrip("+").split(".")
    owner = reduce(lambda node, group: getattr(node, group, None), groups, defaults)
    types = {item.name: item.type for item in fields(owner)} if is_dataclass(owner) else {}
    if (types.get(name) in _TEXT_TYPES or key in _HYDRAS_PATHS) and _UNQUOTED.fullmatch(text):
        quoted = _NOT_TEXT.sub(r"\1'\2'", text)
        return f"{key}{equals}{quoted}"
    return override


def quoted(value: object) -> str:
    """Quote any text so that Hydra's grammar and OmegaConf read it back unchanged.

    To both a backslash is literal unless it precedes a character that it would escape.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value))
    text = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + (match[2] and '\\"'), text)
    return f'"{text}"'


def typed_config(schema: type[Schema], settings: Any) -> Schema:
    """Saved settings as their dataclass; ValueError of one line if they are not of it."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), _literal(settings))
        config = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, TypeError, AttributeError) as error:
        raise ValueError(str(error).splitlines()[0]) from error
    assert isinstance(config, schema)
    return config


def _literal(value: Any) -> Any:
    """Escape saved settings for OmegaConf, so that ``${…}`` in them is text, not interpolation."""
    if isinstance(value, dict):
        return {key: _literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
