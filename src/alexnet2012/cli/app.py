"""How a command starts: one configuration, one run directory, one function."""

from __future__ import annotations

import argparse
import math
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from hydra.types import RunMode
from omegaconf import DictConfig

from alexnet2012.cli.args import expand_json_flag
from alexnet2012.cli.errors import MISTAKES, exit_on_error, unknown_flag
from alexnet2012.cli.help import usage
from alexnet2012.config.compose import (
    CONF,
    Schema,
    from_hydra,
    hydra_overrides,
    key_of,
    keys_of_fixed,
    register_schema,
)
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.config.validation import check_files

GROUP_PARTS = 2  # such as runs/ablations-full, or the date and time of a sweep


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags and the settings, in any order, and what is neither."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        return parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError("arguments", " ".join(words), f"{error}; see --hydra-help") from None


class OutputDirs(Callback):
    """Records the directories of runs and sweeps, before Hydra creates them."""

    found: ClassVar[list[Path]] = []

    def on_run_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.found.append(Path(config.hydra.run.dir))

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.found.append(Path(config.hydra.sweep.dir))


@contextmanager
def wandb_labels(job: Any, fixed: Collection[str]) -> Iterator[None]:
    """Give wandb a group and a name for a job of a sweep, by its variables, unless they are set.

    The group is the end of the sweep's path. The name consists of the settings that are not among
    ``fixed``; without any it is the job's subdirectory.
    """
    labels: dict[str, str] = {}
    if job.mode is RunMode.MULTIRUN:
        swept = [word for word in job.overrides.task if key_of(word) not in fixed]
        sweep_dir = Path(job.sweep.dir).absolute()
        labels["WANDB_RUN_GROUP"] = "/".join(sweep_dir.parts[-GROUP_PARTS:])
        labels["WANDB_NAME"] = " ".join(swept) or str(job.sweep.subdir)
    own = {key: value for key, value in labels.items() if key not in os.environ}
    os.environ.update(own)
    try:
        yield
    finally:
        for key in own:
            del os.environ[key]


def hydra_main(
    name: str,
    schema: type[Schema],
    work: Callable[[Schema, Path], object],
    discard: Callable[[Path], None] = lambda _: None,
) -> None:
    """Run a command as a Hydra application: ``work(config, run_dir)`` for each job.

    In a sweep a failed job does not keep the others from running; the first error ends the command
    after the last job. A sweeper that minimises gets what ``work`` returns, or infinity for a job
    that failed. Relative paths are those of the directory where the command was given, also with
    ``hydra.job.chdir=true``. At the end, ``discard`` is called with the directory of each job and
    sweep.
    """
    register_schema(name, schema)
    failures: list[Exception] = []
    run_dirs: list[Path] = []
    fixed: list[str] = []  # keys that have the same value in all jobs of a sweep
    launcher_pid = os.getpid()

    @hydra.main(config_path=f"pkg://{CONF}", config_name=name, version_base="1.3")
    def application(cfg: Any) -> object:
        job = HydraConfig.get()
        if job.job.chdir:
            os.chdir(job.runtime.cwd)
        run_dir = Path(job.runtime.output_dir)
        run_dirs.append(run_dir)
        try:
            config = from_hydra(cfg, schema)
            check_files(config)
            with wandb_labels(job, fixed):
                return work(config, run_dir)
        except (*MISTAKES, RunError) as error:
            if os.getpid() != launcher_pid:  # a cluster's launcher must see its job fail
                raise
            failures.append(error)  # Hydra would add lines of its own to ours
            return math.inf

    def run() -> None:
        words = expand_json_flag(sys.argv[1:], schema)
        given, unknown = _parsed(words)
        if unknown:
            raise unknown_flag(unknown[0], schema)
        overrides = hydra_overrides(schema, given.overrides)
        if given.help:
            with initialize_config_module(CONF, version_base="1.3"):
                sys.stdout.write(usage(name, schema, compose(name, overrides=overrides)))
            return
        flags = [word for word in words if word not in given.overrides]
        fixed.extend(keys_of_fixed(overrides))
        sys.argv[1:] = [*overrides, *flags]  # what Hydra reads; it takes no settings after a flag
        try:
            application()
        except OSError as error:  # of Hydra, which writes its record there
            if error.errno and error.filename is None and OutputDirs.found:
                error.filename = str(OutputDirs.found[-1])
            raise
        finally:
            for folder in (*run_dirs, *OutputDirs.found):
                discard(folder)
        if failures:
            raise failures[0]

    # Hydra prints errors in the overrides over many lines; with this set it raises them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    exit_on_error(run, schema)
