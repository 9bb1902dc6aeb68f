"""Composition of command-line overrides into a validated dataclass, and quoting for Hydra.

The rest of the package gets plain dataclasses, without OmegaConf.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, fields, is_dataclass
from enum import Enum
from functools import reduce
from importlib import resources
from pathlib import Path
from typing import Any, TypeVar
from zlib import crc32

from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from alexnet2012.config.renamed import with_current_names
from alexnet2012.config.schema import ConfigError, RecipeConfig, ScheduleConfig
from alexnet2012.config.validation import user_path, validate
from alexnet2012.utils.untrusted import read_yaml

CONF = "alexnet2012.conf"
Schema = TypeVar("Schema")
_TEXT_TYPES = ("str", "str | None", "Any", "list[str]")
_LISTS_OF_TEXT = ("Any", "list[str]")
_HYDRAS_PATHS = ("hydra.run.dir", "hydra.sweep.dir", "hydra.sweep.subdir")
_CHOICE = re.compile(r"choice\((.*)\)")
_FILES = {"recipe": RecipeConfig, "schedule": ScheduleConfig}  # groups whose files may lie anywhere


def compose_config(
    name: str, schema: type[Schema], overrides: Sequence[str]
) -> tuple[Schema, Path]:
    """The configuration and the run directory that Hydra would create for it."""
    words = hydra_overrides(schema, overrides)
    register_schema(name, schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        cfg = compose(name, overrides=words, return_hydra_config=True)
        run_dir = Path(cfg.hydra.run.dir).absolute()
        HydraConfig.instance().set_config(cfg)  # for ${hydra:…}
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return from_hydra(cfg, schema), run_dir


def register_schema(name: str, schema: type[Any]) -> None:
    """Let the command's configuration find its schema; a second call takes no time."""
    if f"{name}_schema.yaml" not in ConfigStore.instance().repo:
        ConfigStore.instance().store(name=f"{name}_schema", node=schema)


def from_hydra(cfg: Any, schema: type[Schema]) -> Schema:
    """Convert a composed configuration to its dataclass, and validate it."""
    config = OmegaConf.to_object(cfg)
    assert isinstance(config, schema)
    validate(config)
    return config


def hydra_overrides(schema: type[Any], overrides: Sequence[str]) -> list[str]:
    """The overrides as Hydra reads them as they were meant; ConfigError names a malformed one.

    Text, such as a path, is quoted where Hydra's grammar would reject it or read anything else: a
    list in ``/data/[1]``, the number 202406 in ``2024_06``. Commas still separate the values of a
    sweep. Former names of experiments become the current ones. A ``recipe`` or a ``schedule`` may
    be the path of a YAML file of one's own.
    """
    named = [_with_registered_files(with_current_names(override)) for override in overrides]
    words = [_quoted_text(schema(), override) for override in named]
    for override, word in zip(overrides, words, strict=True):
        _check_grammar(override, word)
    return words


def _with_registered_files(override: str) -> str:
    """Replace the paths in ``recipe=DIR/mine.yaml`` by names under which Hydra finds the files.

    A recipe's schedule is the one of the same name, as in conf/: here ``schedule.yaml`` beside it.
    """
    group, _, text = override.partition("=")
    if group not in _FILES or ".yaml" not in text:
        return override
    names = []
    for value in _split(text):
        path = user_path(group, value.strip().strip("'\"")).absolute()
        if path.suffix != ".yaml":
            names.append(value)
            continue
        name = f"{re.sub(r'[^a-zA-Z0-9_]', '_', path.stem)}_{crc32(str(path).encode()):08x}"
        _register_file(group, path, name)
        if group == "recipe" and (beside := path.with_name("schedule.yaml")).is_file():
            _register_file("schedule", beside, name)
        names.append(name)
    return f"{group}={','.join(names)}"


def _register_file(group: str, path: Path, name: str) -> None:
    try:
        config: Any = typed_config(_FILES[group], read_yaml(path))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(group, path, f"cannot be read: {reason}") from error
    ConfigStore.instance().store(group=group, name=name, node=_literal(_plain(asdict(config))))


def _plain(value: Any) -> Any:
    """Dataclasses' values as YAML writes them: enums by their names."""
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return value.name if isinstance(value, Enum) else value


def _check_grammar(override: str, word: str) -> None:
    """Parse ``word``: some of Hydra's own errors do not name the malformed override."""
    try:
        parsed = OverridesParser.create().parse_override(word)
    except Exception as error:
        remedy = "cannot be parsed as KEY=VALUE; quote special characters: KEY='\"…\"'"
        raise ConfigError("override", override, remedy) from error
    if not parsed.key_or_group:
        raise ConfigError("override", override, "has no key; write settings as KEY=VALUE")
    remedy = f"must be the name of a file in conf/{parsed.key_or_group}"
    is_name = isinstance(parsed.value(), (str, list)) or parsed.is_delete()
    if not (is_name or parsed.is_sweep_override()) and _is_group(parsed.key_or_group):
        raise ConfigError(parsed.key_or_group, override.partition("=")[2], remedy)


def keys_of_fixed(overrides: Sequence[str]) -> list[str]:
    """The keys of overrides that give one value, and not several for a sweep."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    return [override.key_or_group for override in parsed if not override.is_sweep_override()]


def key_of(override: str) -> str:
    """``data.store`` of ``+data.store=a``."""
    return override.partition("=")[0].lstrip("+")


def _is_group(key: str) -> bool:
    return resources.files(CONF).joinpath(key).is_dir()


def _quoted_text(defaults: Any, override: str) -> str:
    key, equals, text = override.partition("=")
    *groups, name = key_of(override).split(".")
    owner = reduce(lambda node, group: getattr(node, group, None), groups, defaults)
    kinds = {item.name: str(item.type) for item in fields(owner)} if is_dataclass(owner) else {}
    kind = "str" if key in _HYDRAS_PATHS else kinds.get(name)
    if kind not in _TEXT_TYPES:
        return override
    if key in _HYDRAS_PATHS and text.startswith("~"):  # others are expanded in their commands
        text = str(user_path(key, text))
    return f"{key}{equals}{_each_quoted(text, lists=kind in _LISTS_OF_TEXT)}"


def _each_quoted(text: str, *, lists: bool) -> str:
    """Quote each of the values that commas separate, or ``choice(…)`` does."""
    if match := _CHOICE.fullmatch(text):
        return f"choice({_each_quoted(match[1], lists=lists)})"
    return ",".join(_value_quoted(value.strip(), lists=lists) for value in _split(text))


def _value_quoted(text: str, *, lists: bool) -> str:
    if lists and text.startswith("[") and text.endswith("]"):
        return f"[{_each_quoted(text[1:-1], lists=False)}]"
    try:
        parsed = OverridesParser.create().parse_override(f"key={text}")
    except Exception:
        return _in_quotes(text)
    # Functions of a sweep, such as glob(…), and null keep their meaning.
    kept = parsed.is_sweep_override() or isinstance(parsed.value(), str | None)
    return text if kept else _in_quotes(text)


_BEFORE_QUOTES = ("", *"[({,:")  # elsewhere a quote is a character of a name


def _split(text: str) -> list[str]:
    """Split at commas outside brackets and outside values in quotes."""
    values, depth, quote, escaped = [""], 0, "", False
    for character in text:
        if quote:
            quote = "" if character == quote and not escaped else quote
            escaped = character == "\\" and not escaped
        elif character in "'\"" and values[-1].strip()[-1:] in _BEFORE_QUOTES:
            quote = character
        elif character == "," and not depth:
            values.append("")
            continue
        else:
            depth = max(0, depth + (character in "([{") - (character in ")]}"))
        values[-1] += character
    return values


def quoted(value: object) -> str:
    """Quote any text so that Hydra's grammar and OmegaConf read it back unchanged.

    To both a backslash is literal unless it precedes a character that it would escape.
    """
    return _in_quotes(re.sub(r"(\\*)\$\{", r"\1\1\\${", str(value)))


def _in_quotes(text: str) -> str:
    """As ``quoted``, but ``${…}`` remains an interpolation."""
    text = re.sub(r'(\\*)("|$)', lambda match: 2 * match[1] + (match[2] and '\\"'), text)
    return f'"{text}"'


def typed_config(schema: type[Schema], settings: Any) -> Schema:
    """Saved settings as their dataclass; ValueError of one line if they are not of it."""
    try:
        typed = OmegaConf.merge(OmegaConf.structured(schema), _literal(settings))
        config = OmegaConf.to_object(typed)
    except (OmegaConfBaseException, TypeError, AttributeError, ValueError) as error:
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
