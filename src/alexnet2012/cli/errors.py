"""Turns exceptions into one line on standard error and an exit code.

Exit codes: 0 success; 2 a mistake in the command or its data (one line, no traceback); 128 + n
ended by signal n; 1 any other failure.
"""

from __future__ import annotations

import difflib
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from errno import EPIPE
from itertools import pairwise
from typing import Any, NoReturn

from hydra.errors import HydraException
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

from alexnet2012.cli.help import choices_of
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.process_env import current_process
from alexnet2012.distributed.watchdog.failure_report import (
    EXIT_FAILURE,
    EXIT_USER_ERROR,
    LostPeerError,
)
from alexnet2012.utils.collector import before_imports
from alexnet2012.utils.files import os_error_line
from alexnet2012.utils.interrupt import InterruptError, raise_signals, received
from alexnet2012.utils.terminal import outliving_terminal
from alexnet2012.utils.text import printable_lines

EVERY_RANK_REPORTS = "ALEXNET2012_EVERY_RANK_REPORTS"
INTERRUPTED = "interrupted"
OPEN_FILES_NEEDED, OPEN_FILES_WANTED = 64, 4096
# What other trainers call our settings.
_OTHER_NAMES = {
    "precision": "amp dtype",
    "recipe": "arch",
    "mesh.device": "backend",
    "data.batch_size batch_size": "batch bs",
    "hydra.run.dir": "checkpoint_dir",
    "checkpoint resume": "ckpt",
    "checkpoint": "resume model",
    "model.input_size": "crop_size",
    "data.source data.store source": "data_dir data_path root",
    "data.source source": "dataset",
    "mesh.device device": "device",
    "recipe.dropout_rate": "dropout",
    "schedule.factor": "gamma",
    "data.micro_batch": "accumulate_grad_batches grad_accum gradient_accumulation_steps",
    "mesh.processes gpus": "gpus",
    "model.input_size size": "image_size img_size",
    "schedule.rate": "learning_rate lr",
    "tracking.log_every_steps": "log_every log_interval print_freq",
    "schedule.epochs": "max_epochs num_epochs",
    "schedule.drops": "milestones",
    "data.first_classes classes": "num_classes",
    "data.decode_threads decode_threads workers": "num_workers",
    "hydra.run.dir out": "out_dir output_dir",
    "schedule.patience_epochs": "patience",
    "init_from": "pretrained",
    "checkpoint.every_epochs": "save_every",
    "guesses": "topk",
    "data.eval_batch_size": "val_batch_size",
    "recipe.optimizer.weight_decay": "wd",
    "data.decode_threads decode_threads": "workers",
    "schedule.warmup_epochs": "warmup",
    "mesh.processes": "world_size",
}
SYNONYMS = {name: keys.split() for keys, names in _OTHER_NAMES.items() for name in names.split()}
# What pip installs for Hydra's own plugins, by the setting that selects one.
_PLUGINS = {
    "hydra/sweeper=optuna": "'alexnet2012[optuna]'",
    "hydra/sweeper=ax": "hydra-ax-sweeper",
    "hydra/sweeper=nevergrad": "hydra-nevergrad-sweeper",
    "hydra/launcher=joblib": "hydra-joblib-launcher",
    "hydra/launcher=ray": "ray cloudpickle && pip install --no-deps hydra-ray-launcher",
    "hydra/launcher=rq": "hydra-rq-launcher",
    "hydra/launcher=submitit_local": "hydra-submitit-launcher",
    "hydra/launcher=submitit_slurm": "hydra-submitit-launcher",
}
_OF_RUNS = {"checkpoint": "; to start from a run, set resume=RUN or init_from=RUN"}
_IN_SETTINGS = (ConfigError, HydraException, OmegaConfBaseException)
_HYDRAS_FLAG_ERRORS = ("Only one of --", "The --resolve flag")  # ValueErrors
MISTAKES = (*_IN_SETTINGS, OSError)


def exit_on_error(
    application: Callable[[], None],
    schema: type[Any] | None = None,
    *,
    same_on_all_ranks: bool = False,
) -> None:
    """Call ``application``; an exception becomes one line and an exit code.

    With ``same_on_all_ranks``, the ranks that torchrun started on one machine raise the same
    errors, and only the first of them prints, until :data:`EVERY_RANK_REPORTS` is set.
    """

    def end(line: str, code: int) -> NoReturn:
        announced = same_on_all_ranks and EVERY_RANK_REPORTS not in os.environ
        if announced and current_process().local_rank > 0:
            sys.exit(code)
        _end(line, code)

    before_imports()
    raise_signals()  # so that cleanup code runs
    with outliving_terminal() as output:
        try:
            _allow_open_files()
            application()
        except InterruptError as error:
            end(INTERRUPTED, 128 + error.number)
        except KeyboardInterrupt:
            end(INTERRUPTED, 128 + signal.SIGINT)
        except Exception as error:
            if received:  # an error of what the signal broke off, an import for example
                end(INTERRUPTED, 128 + received[0])
            _end_failed(error, schema, end)
        output.flush()
        if output.error is not None and output.error.errno != EPIPE:  # of `… | head`
            reason = f"{output.error.strerror}; the work is done, but some of its output is lost"
            _end(f"standard output: {reason}", EXIT_FAILURE)


def _allow_open_files() -> None:
    """Raise the soft limit on open files; with a few, pipes of child processes fail anyhow."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < OPEN_FILES_WANTED:  # negative: unlimited
        soft = min(hard, OPEN_FILES_WANTED) if hard >= 0 else OPEN_FILES_WANTED
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    if 0 <= soft < OPEN_FILES_NEEDED:
        remedy = f"at least {OPEN_FILES_NEEDED} open files are needed; raise the hard limit"
        raise ConfigError("ulimit -n", soft, remedy)


def _end_failed(
    error: Exception, schema: type[Any] | None, end: Callable[[str, int], NoReturn]
) -> NoReturn:
    if isinstance(error, _IN_SETTINGS):
        end(explain(error, schema), EXIT_USER_ERROR)
    if isinstance(error, LostPeerError):  # already reported
        sys.exit(EXIT_FAILURE)
    if isinstance(error, RunError):
        end(str(error), EXIT_FAILURE)
    if line := os_error_line(error):
        end(line, EXIT_USER_ERROR)
    if isinstance(error, ValueError) and str(error).startswith(_HYDRAS_FLAG_ERRORS):
        end(str(error), EXIT_USER_ERROR)
    raise error


def _end(line: str, code: int) -> NoReturn:
    print(printable_lines(f"alexnet2012: {line}"), file=sys.stderr)
    sys.exit(code)


def explain(error: Exception, schema: type[Any] | None = None) -> str:
    """One line for a configuration error: the key, the value and the remedy."""
    if isinstance(error, ConfigError):
        return f"{_key_of(schema, error.key)}={error.value}: {error.remedy}"
    text, cause = str(error), error.__cause__
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key}: required; set {error.full_key}=…"
    if match := re.search(r"Could not find '(.+)/(.*)'", text):
        group, choice = match.groups()
        if package := _PLUGINS.get(f"{group}={choice}"):
            return f"{group}={choice}: needs an extra package: pip install {package}"
        choices = re.findall(r"^\t([\w-]+)$", text, flags=re.MULTILINE)
        if not choices:  # Hydra does not list the choices of nested groups
            group, _, choice = f"{group}/{choice}".partition("/")
            choices = choices_of(group)
        return f"{group}={choice}: no such {group}; use {_one_of(choices)}"
    if match := re.search(r"Could not override '(.+)'", text):
        key = match[1]
        if inner := re.search(r"full_key: (\S+)", str(cause)):
            key = inner[1]
        return f"{key}: no such key{_did_you_mean(key, schema)}"
    if match := re.search(r"Error merging override (.+)", text):
        if (key := match[1].partition("=")[0]) in (groups := _groups(schema)):
            return (
                f"{match[1]}: is a group of settings, such as {groups[key]}{_OF_RUNS.get(key, '')}"
            )
        return f"{match[1]}: {str(cause).splitlines()[0]}"
    if match := re.search(r"^\w+Exception: (.+)", text):  # from the parser
        return f"{match[1].strip()}: cannot be parsed as KEY=VALUE; quote special characters"
    return " ".join(text.split())


def _key_of(schema: type[Any] | None, key: str) -> str:
    """A key as the command spells it: train's ``data.source`` is ``source`` in ``prepare``."""
    own = {field.name for field in fields(schema)} if schema is not None else set()
    short = key.removeprefix("data.")
    return short if short in own and "data" not in own else key


def _one_of(choices: Sequence[str]) -> str:
    return choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"


def unknown_flag(word: str, schema: type[Any]) -> ConfigError:
    """The error for ``--lr``, where settings are words of the form KEY=VALUE."""
    key = word.lstrip("-").partition("=")[0].replace("-", "_")
    remedy = f"no such flag; write settings as KEY=VALUE{_did_you_mean(key, schema)}"
    return ConfigError("arguments", word, remedy)


def _did_you_mean(key: str, schema: type[Any] | None) -> str:
    if schema is None:
        return ""
    keys = _keys(schema())
    close = [k for k in SYNONYMS.get(key, SYNONYMS.get(key.rpartition(".")[2], ())) if k in keys]
    close = close or difflib.get_close_matches(key, keys, n=1, cutoff=0.8)
    if not close:
        group, _, name = key.rpartition(".")
        # The same name in another group, else a name that shares a word; same group first.
        close = [k for k in keys if k.count(".") < 2 and k.rpartition(".")[2] == name]
        words = set(name.split("_"))
        close = close or [k for k in keys if words & set(k.rpartition(".")[2].split("_"))]
        close.sort(key=lambda k: (k.rpartition(".")[0] != group, "recipe." in k, k.count(".")))
    if not close:
        return "; see --cfg job for all keys"
    *others, last = close[:3]
    return f"; did you mean {', '.join(others)}{' or ' if others else ''}{last}?"


def _groups(schema: type[Any] | None) -> dict[str, str]:
    """The groups of a schema, each with the key of its first setting."""
    keys = _keys(schema()) if schema is not None else []
    return {group: first for group, first in pairwise(keys) if first.startswith(f"{group}.")}


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        keys.append(name)
        if is_dataclass(value):
            keys.extend(_keys(value, f"{name}."))
    return keys
