"""Hydra sweeps of training, each in processes of its own."""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path


def sweep(overrides: Sequence[str], store: Path, directory: Path) -> None:
    """Train every combination of the overrides on a store, below ``directory``.

    Raises:
        CalledProcessError: a run failed; the others were done all the same.
    """
    where = [
        "data=store",
        f"data.store={_quoted(store)}",
        f"hydra.sweep.dir={_quoted(directory)}",
    ]
    _run_child([sys.executable, "-m", "alexnet2012.train", "-m", *overrides, *where])


def runs_of(directory: Path) -> list[Path]:
    """The run directories of a sweep that numbers them, in order."""
    return sorted(
        (path for path in directory.iterdir() if path.name.isdigit()),
        key=lambda path: int(path.name),
    )


def _run_child(command: Sequence[str]) -> None:
    """Run a training to its end; whatever ends this process first ends it and its workers too."""
    with subprocess.Popen(command) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, shlex.join(command))


def _quoted(path: Path) -> str:
    """A path as a value of Hydra's grammar, whatever characters it holds."""
    escaped = str(path).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'
