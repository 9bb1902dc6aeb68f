"""Writes the tables of settings.md and the descriptions of python.md: ``python docs/reference.py``.

They stand between ``<!-- settings of COMMAND -->``, ``<!-- recipe NAME -->`` or
``<!-- module or object: NAME -->`` and ``<!-- end -->``.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from pydoc import locate
from types import ModuleType
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from omegaconf import DictConfig, OmegaConf

from alexnet2012.cli.help import Setting, settings
from alexnet2012.cli.registry import COMMANDS
from alexnet2012.config.compose import CONF, register_schema
from alexnet2012.config.schema import RecipeConfig

CONF_FILES = Path(__file__).parents[1] / "conf"
PAGES = [Path(__file__).with_name(name) for name in ("settings.md", "python.md")]
MADE = re.compile(
    r"<!-- (settings of|recipe|module or object:) ([\w.]+) -->\n.*?<!-- end -->", re.DOTALL
)
SAME_KEYS = re.compile(r"conv[2-6]\.|fc7\.")  # as those of conv1 and fc6
SECTIONS = re.compile(r"^(Args|Raises|Returns|Yields):$", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\S+?): ", re.MULTILINE)
ROLE = re.compile(r":(?:func|class|meth|mod|data|attr):`+[.~]?(?:alexnet2012\.)?([\w.]+)`+")
WIDTH = 100


def written(text: str) -> str:
    """The text of a page with what the package says now."""

    def part(found: re.Match[str]) -> str:
        make = {"settings of": table, "recipe": recipe}.get(found[1], description)
        return f"<!-- {found[1]} {found[2]} -->\n{make(found[2])}\n<!-- end -->"

    return MADE.sub(part, text)


def table(name: str) -> str:
    """Every setting of a command with its default."""
    schema = COMMANDS[name].schema
    assert schema is not None
    register_schema(name, schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        found = list(settings(schema, compose(name)))
    return rows(["default"], [found])


def recipe(name: str) -> str:
    """Every setting of a recipe, with its values in this one and in ``code145``."""
    found = []
    for other in (name, "code145"):
        file = OmegaConf.load(CONF_FILES / "recipe" / f"{other}.yaml")
        config = OmegaConf.merge(OmegaConf.structured(RecipeConfig), file)
        assert isinstance(config, DictConfig)
        own = settings(RecipeConfig, config)
        found.append([s._replace(key=f"recipe.{s.key}") for s in own if not SAME_KEYS.match(s.key)])
    return rows([f"`{name}`", "`code145`"], found)


def rows(titles: list[str], found: list[list[Setting]]) -> str:
    """The settings as a table, with a column for each list of the same settings."""
    cells = [
        [
            f"`{same[0].key}`",
            *(f"`{s.value or repr('')}`" for s in same),
            same[0].allowed,
            same[0].meaning,
        ]
        for same in zip(*found, strict=True)
    ]
    head = [["setting", *titles, "values", "meaning"], ["---"] * (len(titles) + 3)]
    lines = [" | ".join(cell.replace("|", "\\|") for cell in row) for row in [*head, *cells]]
    return "\n".join(f"| {line} |" for line in lines)


def description(name: str) -> str:
    """A module's docstring and its public classes and functions, or one of these."""
    thing = locate(name)
    if not isinstance(thing, ModuleType):
        return "\n\n".join(entry(name.rpartition(".")[2], thing, "###"))
    parts = [f"### `{name}`", prose(thing)]
    for key, value in vars(thing).items():
        is_own = not key.startswith("_") and getattr(value, "__module__", None) == name
        if is_own and (inspect.isclass(value) or inspect.isfunction(value)):
            parts += entry(key, value)
    return "\n\n".join(part for part in parts if part)


def entry(name: str, thing: Any, level: str = "####") -> Iterator[str]:
    """What a class or function is called with, and its docstring; then a class's methods."""
    yield f"{level} `{name}`"
    yield f"```py\n{signature(name.rpartition('.')[2], thing)}\n```"
    yield prose(thing)
    for key, value in vars(thing).items() if inspect.isclass(thing) else ():
        if key.startswith("_"):
            continue
        if isinstance(value, property | cached_property):
            getter = value.fget if isinstance(value, property) else value.func
            if inspect.getdoc(getter):
                kind = inspect.signature(getter).return_annotation
                yield f"{level}# `{name}.{key}`: `{kind}`\n\n{prose(getter)}"
        elif inspect.isfunction(method := getattr(value, "__func__", value)) and method.__doc__:
            called = f"```py\n{signature(key, method)}\n```"
            yield f"{level}# `{name}.{key}`\n\n{called}\n\n{prose(method)}"


def signature(name: str, thing: Any) -> str:
    found = inspect.signature(thing)
    parameters = [p for p in found.parameters.values() if p.name not in ("self", "cls")]
    words = [str(p.replace(annotation=_Plain(p.annotation))) for p in parameters]
    words = [re.sub(r"<(\w+\.\w+): .*?>", r"\1", word) for word in words]  # enumerations
    words = [word.replace("<factory>", "...") for word in words]
    kinds = [p.kind for p in parameters]
    if inspect.Parameter.KEYWORD_ONLY in kinds and inspect.Parameter.VAR_POSITIONAL not in kinds:
        words.insert(kinds.index(inspect.Parameter.KEYWORD_ONLY), "*")
    result = "" if inspect.isclass(thing) else f" -> {found.return_annotation}"
    line = f"{name}({', '.join(words)}){result}"
    if len(line) <= WIDTH:
        return line
    return f"{name}(\n" + "".join(f"    {word},\n" for word in words) + f"){result}"


class _Plain:
    """An annotation that was not evaluated, as it stands in the source."""

    def __init__(self, text: object) -> None:
        self.text = getattr(text, "__forward_arg__", str(text))  # of a named tuple

    def __repr__(self) -> str:
        return self.text


def prose(thing: Any) -> str:
    """A docstring as Markdown; lists of arguments and errors become lists."""
    text = ROLE.sub(r"`\1`", inspect.getdoc(thing) or "").replace("``", "`")
    first, *rest = SECTIONS.split(text)
    parts = [first.strip()]
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        listed, _, after = re.sub(r"\n(?=\S)", "\0", body.strip("\n"), count=1).partition("\0")
        items = ENTRY.sub(r"- `\1`: ", listed)
        parts += [f"{title}:", re.sub(r"^ {5,}", "  ", items, flags=re.MULTILINE), after.strip()]
    return "\n\n".join(part.strip() for part in parts if part.strip())


if __name__ == "__main__":
    for page in PAGES:
        page.write_text(written(page.read_text("utf-8")), "utf-8")
