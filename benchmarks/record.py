"""Shared by all benchmarks: command-line arguments, result tables and result files."""

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
    """Parse ``key=value`` arguments; each value has the type of its default."""
    known = " ".join(f"{key}={default}" for key, default in defaults.items())
    values = dict(defaults)
    for word in sys.argv[1:]:
        key, _, text = word.partition("=")
        if key not in defaults:
            sys.exit(f"{sys.argv[0]}: {word}: unknown; use {known}")
        try:
            values[key] = type(defaults[key])(text)
        except ValueError:
            sys.exit(f"{sys.argv[0]}: {word}: must be of type {type(defaults[key]).__name__}")
    return SimpleNamespace(**values)


_shown: list[dict[str, Any]] = []


def show(title: str, columns: Mapping[str, str], rows: Iterable[Mapping[str, Any]]) -> None:
    """Print rows as a table and store it; ``columns`` maps each heading to a format."""
    cells = [[form.format(**row) for form in columns.values()] for row in rows]
    _shown.append({"title": title, "headings": list(columns), "cells": cells})
    table = Table(title=title)
    for heading in columns:
        table.add_column(heading.replace(" ", "\n"), justify="right")
    for row in cells:
        table.add_row(*row)
    Console(width=140).print(table)


def machine() -> dict[str, Any]:
    """Processor, number of cores and GPU of this machine."""
    result: dict[str, Any] = {"processor": cpu_name(), "cores": len(os.sched_getaffinity(0))}
    if torch.cuda.is_available():
        result["gpu"] = f"{torch.cuda.device_count()} × {torch.cuda.get_device_name()}"
    return result


def keep(question: str, packages: Sequence[str], load_before: float, **results: Any) -> None:
    """Write results/NAME.json: results, tables, command, commit, machine and versions.

    On a GPU, NAME includes that and the batch size. ``load_before`` is the machine's load average
    before the benchmark started, from other programs.
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
        **results,
        "tables": _shown,
    }
    on_gpu = "-gpu" if "gpu" in result["machine"] else ""
    if on_gpu and "batch" in results:
        on_gpu += f"-{results['batch']}"
    name = Path(sys.argv[0]).stem + on_gpu
    out = Path(__file__).parent / "results" / f"{name}.json"
    out.parent.mkdir(exist_ok=True)
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
