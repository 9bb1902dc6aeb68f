"""What all benchmarks do alike: take words, print a table, keep a file."""

from __future__ import annotations

import json
import os
import platform
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from alexnet2012.utils.environment import cpu_name, running_commit


def given(**defaults: Any) -> SimpleNamespace:
    """The ``key=value`` words of the command line, of the types of their defaults."""
    known = " ".join(f"{key}={default}" for key, default in defaults.items())
    values = dict(defaults)
    for word in sys.argv[1:]:
        key, _, text = word.partition("=")
        if key not in defaults:
            sys.exit(f"{sys.argv[0]}: {word} is none of {known}")
        try:
            values[key] = type(defaults[key])(text)
        except ValueError:
            sys.exit(f"{sys.argv[0]}: {word} is no {type(defaults[key]).__name__}")
    return SimpleNamespace(**values)


_shown: list[dict[str, Any]] = []


def show(title: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows as a table, and keep it as printed; ``columns`` has a format for each heading."""
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    _shown.append({"title": title, "headings": list(columns), "cells": cells})
    table = Table(title=title)
    for heading in columns:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in cells:
        table.add_row(*row)
    Console(width=140).print(table)


def machine() -> dict[str, Any]:
    """What a benchmark ran on; with a GPU also its name."""
    found: dict[str, Any] = {"processor": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    if torch.cuda.is_available():
        found["gpu"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return found


def keep(question: str, packages: Sequence[str], load_before: float, **found: Any) -> None:
    """Write results/NAME.json for this benchmark: what was found and shown, how, on what and when.

    On a GPU NAME also says so, and which batch. ``load_before`` is the machine's load average when
    the benchmark began: what else ran.
    """
    commit, changed = running_commit()
    result = {
        "question": question,
        "command": " ".join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *sys.argv[1:]]),
        "commit": commit + (" with changes" if changed else ""),
        "machine": machine(),
        "load_before": load_before,
        "versions": {"python": platform.python_version()}
        | {name: version(name) for name in packages},
        **found,
        "tables": _shown,
    }
    on_gpu = "-gpu" if "gpu" in result["machine"] else ""
    if on_gpu and "batch" in found:
        on_gpu += f"-{found['batch']}"
    name = Path(sys.argv[0]).stem + on_gpu
    out = Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
