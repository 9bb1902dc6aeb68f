"""Trainings in child processes, several at a time, each on its share of the cores.

Two runs on one core each are faster than one run after the other on two: small networks gain
little from a second thread.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path

from alexnet2012.config.schema import ConfigError
from alexnet2012.distributed.devices import has_gpu_driver
from alexnet2012.distributed.launch import STOP_TIMEOUT_S, die_with_parent

POLL_S = 0.1
LOG = "sweep.log"

Cores = frozenset[int]


def core_shares(jobs: str) -> list[Cores]:
    """The cores of each of ``jobs`` concurrent runs, as equal as possible.

    ``auto`` is one run per core, or a single one on a machine with a GPU.

    Raises:
        ConfigError: it is neither ``auto`` nor a number from 1 to that of the cores.
    """
    cores = sorted(os.sched_getaffinity(0))
    if jobs == "auto":
        count = 1 if has_gpu_driver() else len(cores)
    else:
        count = int(jobs) if jobs.isdecimal() else 0
    if not 1 <= count <= len(cores):
        raise ConfigError("jobs", jobs, f"must be 1 to {len(cores)}, the number of cores, or auto")
    return [frozenset(cores[index::count]) for index in range(count)]


def run_all(
    commands: Iterable[Sequence[str]], shares: Sequence[Cores], log: Path
) -> list[Sequence[str]]:
    """Run the commands in order, one on each share of the cores; returns those that failed.

    They end with this process, whatever ends it. What they print goes to ``log`` if several run at
    once, where their lines would mix.
    """
    waiting, failed = list(commands)[::-1], []
    running: dict[Cores, tuple[Sequence[str], subprocess.Popen[bytes]]] = {}
    total, done = len(waiting), 0
    try:
        while waiting or running:
            for share in shares:
                if waiting and share not in running:
                    command = waiting.pop()
                    running[share] = command, _start(command, share, log, len(shares) > 1)
            for share, (command, child) in list(running.items()):
                if child.poll() is None:
                    continue
                del running[share]
                done += 1
                if child.returncode:
                    failed.append(command)
                if len(shares) > 1:
                    outcome = f"failed, see {log}" if child.returncode else "finished"
                    print(f"[{done}/{total}] {_settings(command)}: {outcome}", flush=True)
            time.sleep(POLL_S if running else 0)
    finally:
        _stop([child for _, child in running.values()])
    return failed


def _start(
    command: Sequence[str], share: Cores, log: Path, concurrent: bool
) -> subprocess.Popen[bytes]:
    if not concurrent:
        return subprocess.Popen(command, preexec_fn=die_with_parent)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            preexec_fn=_bound_to(share),
        )


def _bound_to(share: Cores) -> Callable[[], None]:
    """What a child does first; a run takes as many threads as it may use cores."""

    def prepare() -> None:
        die_with_parent()
        os.sched_setaffinity(0, share)

    return prepare


def _stop(children: Sequence[subprocess.Popen[bytes]]) -> None:
    """End the children, who save their state first."""
    for child in children:
        child.terminate()
    deadline_s = time.monotonic() + STOP_TIMEOUT_S
    for child in children:
        with suppress(subprocess.TimeoutExpired):
            child.wait(max(0.0, deadline_s - time.monotonic()))
        child.kill()
        child.wait()


def _settings(command: Sequence[str]) -> str:
    """The settings that tell a run from the others of its sweep."""
    shown = ("experiment", "seed", "ablation", "model.activation", "schedule.rate")
    return shlex.join(word for word in command if word.partition("=")[0] in shown)
