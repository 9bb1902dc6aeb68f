"""Makes the tables of definitions.md: ``python docs/definitions.py FOLDER``.

FOLDER: the unpacked definitions of the 2012 code (layers/, layers-cifar/, example-layers/). The
page is written again from the first table on.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from alexnet2012.config.schema import ConfigError, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.importers.cuda_convnet import KINDS, read_definition
from alexnet2012.inference.importers.cuda_convnet_files import read_sections

FIRST = "## ImageNet"
SAME = "the same network"
LAYERS, PARAMS = "layers-", "layer-params-"
_USES = (
    re.compile(r"(?:def|config|definition) file:? #?([\w-]*\d[\w-]*)"),
    re.compile(r"like #?([\w-]+) \((?:so|hence) uses (?:the )?same file"),
)
_RESULT = re.compile(r"logprob:\s*[\d.]+,\s*([\d.]+),\s*([\d.]+)")
_ABOUT = ("this is", "trained on", "its also", "it's also", "also deletes")


def tables(folder: Path) -> str:
    """Both tables, as Markdown."""
    imagenet = "\n".join(_rows(folder / "layers", "code145", _definition_of))
    cifar = "\n".join(
        row
        for name in ("layers-cifar", "example-layers")
        for row in _rows(folder / name, "cifar4", _own)
    )
    second = "## CIFAR-10 and examples"
    return f"{FIRST}\n\n{_head('#145')}{imagenet}\n\n{second}\n\n{_head('`cifar4`')}{cifar}\n"


def page(folder: Path, before: str) -> str:
    """The page with new tables."""
    return before.partition(FIRST)[0] + tables(folder)


def _head(base: str) -> str:
    cells = (
        "definition",
        "runs here",
        "GPUs",
        f"against {base}",
        "authors' words",
        "errors noted, %",
    )
    return f"| {' | '.join(cells)} |\n|---|---|--:|---|---|---|\n"


def _rows(folder: Path, base: str, definition_of: Any) -> Iterator[str]:
    files = {file.stem.removeprefix(LAYERS): file for file in folder.glob(f"{LAYERS}*.cfg")}
    if (odd := folder / "layers.gc.cfg").exists():
        files["gc"] = odd
    params: dict[str, list[Path]] = {name: [] for name in files}
    for file in sorted(folder.glob("layer-params*.cfg"), key=lambda file: (len(file.name), file)):
        if (name := definition_of(file, files)) in params:
            params[name].append(file)
    noted: set[tuple[str, str]] = set()  # notes are copied from file to file: the first has them
    results = {}
    for file in sorted(
        {f for found in params.values() for f in found}, key=lambda f: (len(f.name), f)
    ):
        results[file] = list(_results(read_sections(file).notes, noted))
    for name in sorted(files, key=lambda name: [(len(part), part) for part in name.split("-")]):
        yield _row(name, files[name], params[name], results, base)


def _row(name: str, file: Path, params: list[Path], results: Any, base: str) -> str:
    sections = read_sections(file).sections
    gpus = len({values.get("gpu", "0") for values in sections.values()})
    words = [line for path in params[:1] for line in _about(read_sections(path).notes)]
    errors = []
    for path in params:
        label = path.stem.removeprefix(PARAMS)
        if results[path]:
            prefix = "" if path is params[0] else f"{label}: "
            errors.append(prefix + ", ".join(results[path]))
    try:
        recipe = read_definition(file, params[0] if params else file).recipe
        against, here = _differences(recipe, load_recipe(base)), "yes"
    except ConfigError:
        against, here = _kinds(sections), "no"
    place = f"{file.parent.name}/" if base != "code145" else "#"
    cells = [f"{place}{name}", here, gpus, against, " ".join(words), "; ".join(errors)]
    return f"| {' | '.join(str(cell).replace('|', '/') for cell in cells)} |"


def _own(params: Path, known: Any) -> str | None:
    """The definition of the same name, or of the longest that the name begins with."""
    name = params.stem.removeprefix(PARAMS).removeprefix("layer-params.")
    fitting = [other for other in known if name == other or name.startswith(f"{other}-")]
    return max(fitting, key=len, default=None)


def _definition_of(params: Path, known: Any) -> str | None:
    if (name := params.stem.removeprefix(PARAMS)) in known:
        return name
    notes = read_sections(params).notes
    named = [match[1] for pattern in _USES for match in pattern.finditer(notes)]
    return next((found for found in named if found in known), None) or _own(params, known)


def _results(notes: str, noted: set[tuple[str, str]]) -> Iterator[str]:
    before = ""
    for line in notes.splitlines():
        if (match := _RESULT.search(line)) and match.groups() not in noted:
            noted.add((match[1], match[2]))
            top1, top5 = (f"{100 * float(error):.2f}" for error in match.groups())
            views = " (10 views)" if "multiv" in before + line.partition("(")[0] else ""
            yield f"{top1} / {top5}{views}"
        before = line


def _about(notes: str) -> list[str]:
    found = []
    for line in (line.strip() for line in notes.split("\n\n")[0].splitlines()):
        if line.startswith(_ABOUT):
            end = " …" if line.endswith(" but") else "" if line.endswith(".") else "."
            found.append(line + end)
        elif found:
            break
    return found[:2]


def _differences(one: Any, other: Any, prefix: str = "") -> str:
    found = []
    for item in fields(one):
        a, b, key = getattr(one, item.name), getattr(other, item.name), f"{prefix}{item.name}"
        if is_dataclass(a):
            found += [text] if (text := _differences(a, b, f"{key}.")) not in ("", SAME) else []
        elif a != b and not (isinstance(one, RecipeConfig) and item.name == "name"):
            shown = f"[{', '.join(map(str, a))}]" if isinstance(a, list) else str(a).lower()
            quotes = str.maketrans("", "", "'")
            found.append(f"`{key}={shown.translate(quotes)}`")
    return " ".join(found) or SAME


def _kinds(sections: Any) -> str:
    """Of a definition that is refused: the types of layers that a recipe lacks; all that it has."""
    kinds = Counter(values.get("type", "") for values in sections.values())
    lacking = [kind for kind in kinds if kind not in KINDS]
    counted = [
        f"{kinds[kind]} {kind}" for kind in ("conv", "cmrnorm", "rnorm", "fc") if kinds[kind]
    ]
    return f"**{', '.join(lacking)}**; {', '.join(counted)}"


if __name__ == "__main__":
    file = Path(__file__).with_suffix(".md")
    file.write_text(page(Path(sys.argv[1]), file.read_text("utf-8")), encoding="utf-8")
