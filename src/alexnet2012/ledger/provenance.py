"""Where a reproduction's numbers come from, and what repeats it."""

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
    """This code, this machine, these pictures, today."""
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
    """What repeats this reproduction; without ``out``, which changes no number."""
    default = ReproduceConfig()
    # Where the pictures lie is nobody's concern.
    shown = {**vars(config), "source": Path(config.source).name}
    given = []
    for key, value in shown.items():
        if key not in ("out", "caveat") and value != getattr(default, key):
            text = f"[{','.join(value)}]" if isinstance(value, list) else value
            given.append(f"{key}={text}")
    return shlex.join(["python", "-m", "alexnet2012.reproduce", *given])


def source_name(source: str) -> str:
    """A name for stores of a source: two folders of one name are still two sources."""
    if source in NAMED_SOURCES:
        return source
    path = Path(source).expanduser().resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
