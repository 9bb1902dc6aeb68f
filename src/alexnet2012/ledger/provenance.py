"""Provenance of a reproduction, and the command that reproduces it."""

from __future__ import annotations

import hashlib
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch

from alexnet2012.config.enums import NAMED_SOURCES
from alexnet2012.config.schema import ReproduceConfig
from alexnet2012.data.store import Store
from alexnet2012.ledger.results import Provenance
from alexnet2012.utils.environment import cpu_name, running_commit


def provenance(store: Store, command: str, seeds: Sequence[int], caveat: str) -> Provenance:
    """The code, machine, data and date of this process."""
    commit, dirty = running_commit()
    return Provenance(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=torch.__version__,
        dali=version("nvidia-dali-cuda130"),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        date=date.today().isoformat(),
        command=command,
        seeds=list(seeds),
        data_description=store.description,
        data_caveat=caveat,
        classes=list(store.classes),
        store_fingerprint=store.fingerprint,
        processes=2,
    )


def command_of(config: ReproduceConfig) -> str:
    """The command that repeats a reproduction, without ``out``, which changes no number."""
    default = ReproduceConfig()
    # The full path of the data is private.
    settings = {**vars(config), "source": Path(config.source).name}
    overrides = []
    for key, value in settings.items():
        if key not in ("out", "caveat") and value != getattr(default, key):
            text = f"[{','.join(value)}]" if isinstance(value, list) else value
            overrides.append(f"{key}={text}")
    return shlex.join(["python", "-m", "alexnet2012.reproduce", *overrides])


def source_name(source: str) -> str:
    """A name for stores of a source, with a hash of the path: directory names may repeat."""
    if source in NAMED_SOURCES:
        return source
    path = Path(source).expanduser().resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
