"""The text of ``--help``: every setting with its value, its range and its meaning.

Meanings are the comments in the schema and in the chosen recipe's file, which also gives sources.
"""

from __future__ import annotations

import ast
import inspect
import io
import textwrap
import tokenize
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import cache
from importlib import resources
from itertools import takewhile
from typing import Any, NamedTuple, get_type_hints

from omegaconf import DictConfig, ListConfig, OmegaConf

from alexnet2012.config.compose import CONF

COLUMNS, KEY_COLUMNS = 80, 32
RECIPE = "recipe"  # shown as its YAML file


class Setting(NamedTuple):
    """One key; ``allowed`` is its range or its choices, if it has any."""

    key: str
    value: str
    allowed: str
    meaning: str


def settings(schema: type, config: DictConfig, prefix: str = "") -> Iterator[Setting]:
    """All settings of a schema except the recipe's, with the values of a composed configuration."""
    kinds, meanings = get_type_hints(schema), _meanings(inspect.getmodule(schema), schema.__name__)
    for item in fields(schema):
        key, kind = f"{prefix}{item.name}", kinds[item.name]
        if is_dataclass(kind) and isinstance(kind, type):
            if item.name != RECIPE:
                yield from settings(kind, config[item.name], f"{key}.")
            continue
        allowed = str(item.metadata.get("range", ""))
        if isinstance(kind, type) and issubclass(kind, Enum):
            allowed = ", ".join(str(choice.value) for choice in kind)
        yield Setting(key, _shown(config, item.name), allowed, meanings.get(item.name, ""))


def usage(name: str, schema: type, config: DictConfig) -> str:
    """The help text of a command, in 80 columns except for the recipe's file."""
    conf = resources.files(CONF)
    lines = [*_comment(conf.joinpath(f"{name}.yaml").read_text("utf-8")), ""]
    if groups := _groups(name):
        lines += ["Configuration files, chosen as GROUP=NAME:", ""]
        for group, names in groups.items():
            lines += _two_columns(group, ", ".join(names))
        lines += [""]
    lines += ["Settings, given as KEY=VALUE:", ""]
    for setting in settings(schema, config):
        words = "; ".join(part for part in (setting.allowed, setting.meaning) if part)
        lines += _two_columns(f"{setting.key}={setting.value}", words)
    if RECIPE in config:
        shipped = config.recipe.name in choices_of(RECIPE)
        file = f"{RECIPE}/{config.recipe.name}.yaml"
        place = f"conf/{file}" if shipped else "of your own"
        text = (
            conf.joinpath(file).read_text("utf-8") if shipped else OmegaConf.to_yaml(config.recipe)
        )
        lines += ["", f"Settings of the recipe, given as recipe.KEY=VALUE ({place}):", ""]
        lines += text.splitlines()
    flags = "Hydra's flags: -m sweeps KEY=A,B; --cfg job prints all settings; --hydra-help."
    return "\n".join([*lines, "", flags]) + "\n"


def _two_columns(left: str, right: str) -> list[str]:
    first, *rest = textwrap.wrap(right, COLUMNS - KEY_COLUMNS) or [""]
    if len(left) + 3 > KEY_COLUMNS:
        lines = [f"  {left}", *([f"{'':{KEY_COLUMNS}}{first}"] if first else [])]
    else:
        lines = [f"  {left:{KEY_COLUMNS - 2}}{first}".rstrip()]
    return lines + [f"{'':{KEY_COLUMNS}}{line}" for line in rest]


def _shown(config: DictConfig, key: str) -> str:
    if OmegaConf.is_missing(config, key):
        return "…"
    value = config[key]
    if isinstance(value, ListConfig) and any(isinstance(item, DictConfig) for item in value):
        return "[…]"
    if isinstance(value, ListConfig):
        return f"[{', '.join(map(str, value))}]"
    if value is None:
        return "null"
    return str(value).lower() if isinstance(value, bool) else str(value)


def _comment(text: str) -> list[str]:
    """The comment at the head of a YAML file: commands (continued by indentation), then prose."""
    commands: list[str] = []
    prose: list[str] = []
    for line in takewhile(lambda line: line.startswith("#"), text.splitlines()):
        line = line.removeprefix("# ")
        if line.startswith(("python", " ")):
            commands += textwrap.wrap(line, COLUMNS, subsequent_indent="    ")
        else:
            prose.append(line)
    return commands + textwrap.wrap(" ".join(prose), COLUMNS)


def _groups(name: str) -> dict[str, list[str]]:
    """The configuration groups in conf/ that ``NAME.yaml`` uses, with their choices."""
    conf = resources.files(CONF)
    chosen = OmegaConf.create(conf.joinpath(f"{name}.yaml").read_text("utf-8"))
    assert isinstance(chosen, DictConfig)
    found = {}
    for default in chosen.get("defaults", []):
        for group in map(str, default if isinstance(default, DictConfig) else ()):
            if "/" not in group and " " not in group and conf.joinpath(group).is_dir():
                found[group] = sorted(_names(conf.joinpath(group)))
    return found


def choices_of(group: str) -> list[str]:
    """The choices of a configuration group, including nested groups."""
    return sorted(_names(resources.files(CONF).joinpath(group)))


def _names(folder: Any, prefix: str = "") -> Iterator[str]:
    for entry in folder.iterdir():
        if entry.is_dir():
            yield from _names(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(".yaml"):
            yield prefix + entry.name.removesuffix(".yaml")


@cache
def _meanings(module: Any, name: str) -> dict[str, str]:
    """The meaning of each field of a dataclass: the comment after it, or the one above it."""
    source = inspect.getsource(module)
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    comments = {t.start[0]: t for t in tokens if t.type == tokenize.COMMENT}

    def text(line: int) -> str:
        return comments[line].string.lstrip("# ")

    classes = (node for node in ast.parse(source).body if isinstance(node, ast.ClassDef))
    (schema,) = (node for node in classes if node.name == name)
    meanings = {}
    for node in schema.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            if node.end_lineno in comments:
                meanings[node.target.id] = text(node.end_lineno)
                continue
            above: list[str] = []
            line = node.lineno - 1
            while line in comments and comments[line].line.lstrip().startswith("#"):
                above.insert(0, text(line))
                line -= 1
            meanings[node.target.id] = " ".join(above)
    return meanings
