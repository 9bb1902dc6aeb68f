"""How a command starts: one configuration, one run directory, one function."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import hydra
from hydra import compose, initialize_config_module
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from hydra.experimental.callback import Callback
from omegaconf import DictConfig

from alexnet2012.cli.args import expand_json_flag
from alexnet2012.cli.errors import MISTAKES, end_interrupted, exit_on_error, unknown_flag
from alexnet2012.cli.help import usage
from alexnet2012.config.compose import CONF, Schema, check_grammar, from_hydra, quoted_text
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.config.validation import check_files
from alexnet2012.utils.interrupt import InterruptError


def _parsed(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Hydra's flags and the settings, in any order, and what is neither."""
    parser = get_args_parser()
    parser.exit_on_error = False
    try:
        return parser.parse_known_intermixed_args(words)
    except argparse.ArgumentError as error:
        raise ConfigError("arguments", " ".join(words), f"{error}; see --hydra-help") from None


class SweepDirs(Callback):
    """Records the directories of sweeps; Hydra creates them before it checks the jobs."""

    found: ClassVar[list[Path]] = []

    def on_multirun_start(self, config: DictConfig, **kwargs: Any) -> None:
        self.found.append(Path(config.hydra.sweep.dir))


def hydra_main(
    name: str,
    schema: type[Schema],
    work: Callable[[Schema, Path], None],
    discard: Callable[[Path], None] = lambda _: None,
) -> None:
    """Run a command as a Hydra application: ``work(config, run_dir)`` for each job.

    In a sweep a failed job does not keep the others from running; the first error ends the command
    after the last job. At the end, ``discard`` is called with the directory of each job and sweep.
    """
    ConfigStore.instance().store(name=f"{name}_schema", node=schema)
    failures: list[Exception] = []
    run_dirs: list[Path] = []
    launcher_pid = os.getpid()

    @hydra.main(config_path=f"pkg://{CONF}", config_name=name, version_base="1.3")
    def application(cfg: Any) -> None:
        run_dir = Path(HydraConfig.get().runtime.output_dir)
        run_dirs.append(run_dir)
        try:
            config = from_hydra(cfg, schema)
            check_files(config)
            work(config, run_dir)
        except InterruptError as error:  # no further job of a sweep
            end_interrupted(error.number)
        except (*MISTAKES, RunError) as error:
            if os.getpid() != launcher_pid:  # a cluster's launcher must see its job fail
                raise
            failures.append(error)  # Hydra would add lines of its own to ours

    def run() -> None:
        words = expand_json_flag(sys.argv[1:], schema)
        given, unknown = _parsed(words)
        if unknown:
            raise unknown_flag(unknown[0], schema)
        check_grammar(given.overrides)
        overrides = quoted_text(schema, given.overrides)
        if given.help:
            with initialize_config_module(CONF, version_base="1.3"):
                sys.stdout.write(usage(name, schema, compose(name, overrides=overrides)))
            return
        flags = [word for word in words if word not in given.overrides]
        sys.argv[1:] = [*overrides, *flags]  # what Hydra reads; it takes no settings after a flag
        try:
            application()
        finally:
            for folder in (*run_dirs, *SweepDirs.found):
                discard(folder)
        if failures:
            raise failures[0]

    # Hydra prints errors in the overrides over many lines; with this set it raises them instead.
    os.environ["HYDRA_FULL_ERROR"] = "1"
    exit_on_error(run, schema)
