"""Hydra outside, processes inside: how every entry point starts, and how its errors end.

``python -m alexnet2012.train`` composes one configuration and makes one run directory, then
starts its processes through torch's elastic launcher. Under torchrun this process *is* one of
them: then rank 0's configuration and directory are everyone's.

Exit codes: 0 done, 2 a user's mistake (one line, no traceback), 1 anything else.
"""

from __future__ import annotations

import ctypes
import difflib
import json
import logging
import os
import re
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexnet2012.config import ConfigError, Schema, TrainConfig, from_hydra

CONF = "alexnet2012.conf"
EXIT_MISTAKE = 2


class WorkerError(RuntimeError):
    """A process of a run failed; carries its rank and traceback."""


def under_torchrun() -> bool:
    return "TORCHELASTIC_RUN_ID" in os.environ and "RANK" in os.environ


def hydra_main(name: str, schema: type[Schema], work: Callable[[Schema, Path], None]) -> None:
    """Run an entry point as a Hydra application: ``work(config, run_dir)`` for each job.

    In a sweep a failed job does not keep the others from running; the first error ends it.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    failures: list[Exception] = []
    started_here = os.getpid()

    @hydra.main(config_path=f"pkg://{CONF}", config_name=name, version_base="1.3")
    def application(cfg: Any) -> None:
        try:
            config = from_hydra(cfg, schema)
            run_dir = Path(HydraConfig.get().runtime.output_dir)
            if HydraConfig.get().output_subdir is not None:
                OmegaConf.save(cfg, run_dir / "config.yaml", resolve=True)
            work(config, run_dir)
        except (ConfigError, WorkerError, OmegaConfBaseException) as error:
            if os.getpid() != started_here:  # a cluster's launcher must see its job fail
                raise
            failures.append(error)  # Hydra would add lines of its own to ours

    def run() -> None:
        application()
        if failures:
            raise failures[0]

    # Hydra prints errors in the overrides over many lines; with this set it raises them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    exit_on_error(run, schema)


def compose_config(
    name: str, schema: type[Schema], overrides: Sequence[str]
) -> tuple[Schema, Path]:
    """One configuration and the run directory that Hydra would make for it.

    Raises:
        HydraException, ConfigError: an override is wrong.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
        run_dir = Path(cfg.hydra.run.dir).absolute()
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return from_hydra(cfg, schema), run_dir


def exit_on_error(application: Callable[[], None], schema: type[Any] | None = None) -> None:
    """Call ``application`` and turn its errors into one line and an exit code.

    Under torchrun every rank meets the same mistake; rank 0 alone says so.
    """
    try:
        application()
    except (ConfigError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("RANK", "0") == "0":
            print(f"alexnet2012: {explain(error, schema)}", file=sys.stderr)
        sys.exit(EXIT_MISTAKE)
    except WorkerError as error:
        print(f"alexnet2012: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("alexnet2012: interrupted", file=sys.stderr)
        sys.exit(130)


def explain(error: Exception, schema: type[Any] | None = None) -> str:
    """One line for a configuration error: the key, the value and the remedy."""
    if isinstance(error, ConfigError):
        return str(error)
    text, cause = str(error), error.__cause__
    if isinstance(error, MissingMandatoryValue):
        key = str(error.full_key)
        return f"{key}=???: has no default here; set {key}=…"
    if found := re.search(r"Could not find '(.+)/(.+)'", text):
        group, choice = found.groups()
        choices = re.findall(r"^\t([\w-]+)$", text, flags=re.MULTILINE)
        return f"{group}={choice}: no such {group}; use one of {', '.join(choices)}"
    if found := re.search(r"Could not override '(.+)'", text):
        if cause is not None and "full_key: " in str(cause):
            key = re.findall(r"full_key: (\S+)", str(cause))[0]
            return f"{key}: no such key{_did_you_mean(key, schema)}"
        return f"{found[1]}: no such key{_did_you_mean(found[1], schema)}"
    if found := re.search(r"Error merging override (.+)", text):
        return f"{found[1]}: {str(cause).splitlines()[0]}"
    return " ".join(text.split())


def _did_you_mean(key: str, schema: type[Any] | None) -> str:
    if schema is None:
        return ""
    keys = _keys(schema())
    close = difflib.get_close_matches(key, keys, n=1)
    if not close:  # the right name in another group
        leaf = key.rsplit(".")[-1]
        close = [k for k in keys if k.rsplit(".")[-1] == leaf]
    return f"; did you mean {close[0]}?" if close else "; see --cfg job for all keys"


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        keys.append(name)
        if is_dataclass(value):
            keys.extend(_keys(value, f"{name}."))
    return keys


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)`` in ``processes`` new processes that find each other as under torchrun.

    ``worker`` is a module's function; a single one runs right here. When one process fails the
    others are ended.

    Raises:
        ConfigError: a process met a user's mistake.
        WorkerError: a process failed; names its rank.
    """
    if processes == 1:
        try:
            worker(*args)
        except ConfigError:
            raise
        except Exception as error:
            raise WorkerError("".join(traceback.format_exception(error))) from None
        return
    # The launcher's own report of a failure is long and lacks the cause; ours follows.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="alexnet2012-") as folder:
        config = LaunchConfig(
            min_nodes=1,
            max_nodes=1,
            nproc_per_node=processes,
            run_id=uuid.uuid4().hex,
            rdzv_backend="c10d",
            rdzv_endpoint="localhost:0",
            start_method="spawn",
            monitor_interval=0.1,
            max_restarts=0,
        )
        try:
            elastic_launch(config, _guarded)(worker, folder, *args)
        except ChildFailedError as error:
            raise _first_error(Path(folder)) or WorkerError(_signalled(error)) from None


def _guarded(worker: Callable[..., None], folder: str, *args: Any) -> None:
    """In a new process: leave the cause of a failure where the parent finds it."""
    try:
        worker(*args)
    except BaseException as error:
        mistake = isinstance(error, ConfigError)
        cause = {
            "rank": int(os.environ["RANK"]),
            "mistake": [error.key, str(error.value), error.remedy] if mistake else None,  # type: ignore[attr-defined]
            "text": "".join(traceback.format_exception(error)),
        }
        Path(folder, f"{os.environ['RANK']}.json").write_text(json.dumps(cause), encoding="utf-8")
        sys.stdout.flush()
        os._exit(EXIT_MISTAKE if mistake else 1)  # a peer may be waiting in an exchange


def _first_error(folder: Path) -> ConfigError | WorkerError | None:
    causes = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    for cause in causes:
        if cause["mistake"]:
            return ConfigError(*cause["mistake"])
    if not causes:
        return None
    # The peers of a failed rank fail too, in their next exchange: they are the less telling ones.
    lost_peer = "Connection closed by peer"
    first = next((cause for cause in causes if lost_peer not in cause["text"]), causes[0])
    return WorkerError(f"rank {first['rank']} failed\n{first['text']}")


def _signalled(error: ChildFailedError) -> str:
    rank, failure = error.get_first_failure()
    return f"rank {rank} ended with exit code {failure.exitcode} and left no message"


def set_threads(processes_here: int) -> None:
    """Share the cores between the processes of this machine, however they were started."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // processes_here))


def reuse_memory() -> None:
    """Keep freed memory in the process.

    glibc hands large blocks back to the system at once, and every activation then pays for fresh
    pages: a third of a full-size training step on CPU. Elsewhere than glibc nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def main() -> None:
    """Check the overrides of a run without starting it: ``python -m alexnet2012.launcher …``"""

    def check() -> None:
        compose_config("train", TrainConfig, sys.argv[1:])

    exit_on_error(check, TrainConfig)


if __name__ == "__main__":
    main()
