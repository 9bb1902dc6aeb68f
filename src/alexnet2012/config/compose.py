"""From command-line words to one plain, checked dataclass; OmegaConf goes no further.

Everything that quotes or escapes text for Hydra's grammar is here.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import fields, is_dataclass
from functools import reduce
from pathlib import Path
from typing import Any, TypeVar

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from alexnet2012.config.renamed import with_current_names
from alexnet2012.config.schema import ConfigError
from alexnet2012.config.validation import validate

CONF = "alexnet2012.conf"
Schema = TypeVar("Schema")
# A value, or one of a list or a sweep, that is not text to Hydra's grammar.
_NOT_TEXT = re.compile(
    r"(^|[,[(] ?)([-+]?[\d_.]+(e[-+]?\d+)?|[-+]?(nan|inf)|true|false)(?= ?[,\])]|$)", re.IGNORECASE
)
_UNQUOTED = re.compile(r"(choice\()?[^'\"(){}]*\)?")  # without quotes, and no range
_TEXT_TYPES = ("str", "str | None", "Any", "list[str]")
_HYDRAS_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")


def compose_config(
    name: str, schema: type[Schema], overrides: Sequence[str]
) -> tuple[Schema, Path]:
    """One configuration and the run directory that Hydra would make for it.

    Raises:
        HydraException, ConfigError: an override is wrong.
    """
    check_grammar(overrides)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        cfg = compose(name, overrides=quoted_text(schema, overrides), return_hydra_config=True)
        run_dir = Path(cfg.hydra.run.dir).absolute()
        HydraConfig.instance().set_config(cfg)  # what ${hydra:…} reads
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return from_hydra(cfg, schema), run_dir


def from_hydra(cfg: Any, schema: type[Schema]) -> Schema:
    """The plain dataclass of a composed configuration, checked.

    Raises:
        ConfigError: a key that no code reads, or a value that cannot work.
    """
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    validate(config)
    return config


def check_grammar(overrides: Sequence[str]) -> None:
    """Name the malformed override: some of Hydra's own errors do not.

    Raises:
        ConfigError: an override cannot be parsed.
    """
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except Exception as error:
            remedy = "cannot be read as KEY=VALUE; put odd values in quotes: KEY='\"…\"'"
            raise ConfigError("override", override, remedy) from error


CONF = "alexnet2012.conf"


def quoted_text(schema: type[Any], overrides: Sequence[str]) -> list[str]:
    """Overrides with quotes around text that Hydra would read as a number: a path like 2024_06.

    The text then stays as written, also in a sweep, whose jobs receive what the grammar has parsed.
    Former names of experiments become the current ones.
    """
    return [_quoted_text(schema(), with_current_names(override)) for override in overrides]


def _quoted_text(defaults: Any, override: str) -> str:
    key, equals, text = override.partition("=")
    *groups, name = key.lstrip("+").split(".")
    owner = reduce(lambda at, group: getattr(at, group, None), groups, defaults)
    types = {item.name: item.type for item in fields(owner)} if is_dataclass(owner) else {}
    if (types.get(name) in _TEXT_TYPES or key in _HYDRAS_PATHS) and _UNQUOTED.fullmatch(text):
        quoted = _NOT_TEXT.sub(r"\1'\2'", text)
        return f"{key}{equals}{quoted}"
    return override


def quoted(word: object) -> str:
    """Any text as a value that OmegaConf and then Hydra's grammar read back unchanged.

    To both a backslash is a backslash unless it stands before something that it would escape.
    """
    text = re.sub(r"(\\*)\$\{", r"\1\1\\${", str(word))
    text = re.sub(r'(\\*)("|$)', lambda found: 2 * found[1] + (found[2] and '\\"'), text)
    return f'"{text}"'


def literal(value: Any) -> Any:
    """Settings from a file, for OmegaConf: ``${…}`` in them is text, and nothing is resolved."""
    if isinstance(value, dict):
        return {key: literal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [literal(inner) for inner in value]
    return re.sub(r"(\\*)\$\{", r"\1\1\\${", value) if isinstance(value, str) else value
