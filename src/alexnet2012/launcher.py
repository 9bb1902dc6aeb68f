"""Hydra outside, processes inside: how every entry point starts.

``python -m alexnet2012.train`` composes one configuration and makes one run directory, then
starts its processes through torch's elastic launcher. Under torchrun this process *is* one of
them: then rank 0's configuration and directory are everyone's.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import sys
import tempfile
import traceback
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import hydra
import torch
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from torch.distributed.elastic.multiprocessing.api import DefaultLogsSpecs, SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from alexnet2012.checks import Schema, from_hydra
from alexnet2012.config import ConfigError, RunError
from alexnet2012.mistakes import (
    EXIT_FAILURE,
    EXIT_MISTAKE,
    MISTAKES,
    end_interrupted,
    exit_on_error,
)

CONF = "alexnet2012.conf"
LOST_PEER = ("Connection closed by peer", "Connection reset by peer", "Broken pipe")


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
            work(config, Path(HydraConfig.get().runtime.output_dir))
        except SignalException as error:  # no further job of a sweep
            end_interrupted(error.sigval)
        except (*MISTAKES, RunError) as error:
            if os.getpid() != started_here:  # a cluster's launcher must see its job fail
                raise
            failures.append(error)  # Hydra would add lines of its own to ours

    def run() -> None:
        _check_grammar(get_args_parser().parse_args().overrides)
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
    _check_grammar(overrides)
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    GlobalHydra.instance().clear()
    with initialize_config_module(CONF, version_base="1.3"):
        cfg = compose(name, overrides=list(overrides), return_hydra_config=True)
        run_dir = Path(cfg.hydra.run.dir).absolute()
        HydraConfig.instance().set_config(cfg)  # what ${hydra:…} reads
        OmegaConf.set_struct(cfg, False)
        del cfg["hydra"]
        return from_hydra(cfg, schema), run_dir


def _check_grammar(overrides: Sequence[str]) -> None:
    """Hydra meets some malformed overrides with an error that does not say which one it was."""
    parser = OverridesParser.create()
    for override in overrides:
        try:
            parser.parse_override(override)
        except Exception as error:
            remedy = "cannot be read as KEY=VALUE; put odd values in quotes: KEY='\"…\"'"
            raise ConfigError("override", override, remedy) from error


def launch(worker: Callable[..., None], processes: int, *args: Any) -> None:
    """Run ``worker(*args)`` in ``processes`` new processes that find each other as under torchrun.

    ``worker`` is a module's function; a single one runs right here. When one process fails the
    others are ended.

    Raises:
        ConfigError: a process met a user's mistake.
        RunError: a process failed; names its rank.
    """
    if processes == 1:
        try:
            worker(*args)
        except (ConfigError, RunError, SignalException):
            raise
        except Exception as error:
            raise RunError("".join(traceback.format_exception(error))) from None
        return
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
            logs_specs=DefaultLogsSpecs(log_dir=folder),  # torch's own folder would stay
        )
        # torch's own reports of a failure are long and lack the cause; ours follows.
        logging.disable(logging.CRITICAL)
        try:
            elastic_launch(config, _guarded)(worker, folder, *args)
        except ChildFailedError as error:
            raise _cause(error, Path(folder), processes) from None
        finally:
            logging.disable(logging.NOTSET)


def _guarded(worker: Callable[..., None], folder: str, *args: Any) -> None:
    """In a new process: leave the cause of a failure where the parent finds it."""
    try:
        worker(*args)
    except BaseException as error:
        rank, mistake = os.environ["RANK"], None
        text = "".join(traceback.format_exception(error))
        if isinstance(error, ConfigError):
            mistake = [error.key, str(error.value), error.remedy]
        elif isinstance(error, RunError):  # says all there is to say
            text = str(error)
        cause = {"rank": int(rank), "mistake": mistake, "text": text}
        Path(folder, f"{rank}.json").write_text(json.dumps(cause), encoding="utf-8")
        sys.stdout.flush()
        # Not sys.exit: it would wait for threads, and a peer may be waiting in an exchange.
        os._exit(EXIT_MISTAKE if mistake else EXIT_FAILURE)


def _cause(error: ChildFailedError, folder: Path, processes: int) -> ConfigError | RunError:
    """What began it: the peers of a failed rank fail too, in their next exchange."""
    causes = [
        json.loads(file.read_text(encoding="utf-8")) for file in sorted(folder.glob("*.json"))
    ]
    for cause in causes:
        if cause["mistake"]:
            return ConfigError(*cause["mistake"])
    for cause in causes:
        if not any(words in cause["text"] for words in LOST_PEER):
            return RunError(f"rank {cause['rank']}: {cause['text'].strip()}")
    # Only lost peers have spoken: whoever they lost was killed and could not.
    told = {cause["rank"] for cause in causes}
    seen = {rank: failure.exitcode for rank, failure in error.failures.items() if rank not in told}
    silent = ", ".join(str(rank) for rank in seen or set(range(processes)) - told)
    codes = "".join(f" with exit code {code}" for code in seen.values())
    return RunError(f"rank {silent} ended{codes} and left no message; was it killed?")


def set_threads(processes_here: int) -> None:
    """Share the cores between the processes of this machine, however they were started."""
    cores = len(os.sched_getaffinity(0))
    torch.set_num_threads(max(1, cores // processes_here))


def reuse_memory() -> None:
    """Keep freed memory in the process.

    glibc hands large blocks back to the system at once, and every activation then pays for fresh
    pages. Elsewhere than glibc nothing is changed.
    """
    libc = ctypes.CDLL(None)
    if hasattr(libc, "mallopt"):
        trim_threshold, mmap_max = -1, -4  # malloc.h
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)
