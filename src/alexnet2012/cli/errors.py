"""Turns exceptions into one line on standard error and an exit code.

Exit codes: 0 success; 2 a mistake in the command or its data (one line, no traceback); 128 + n
ended by signal n; 1 any other failure.
"""

from __future__ import annotations

import atexit
import difflib
import gc
import os
import re
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from dataclasses import fields, is_dataclass
from types import FrameType
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
from alexnet2012.utils.interrupt import InterruptError

EVERY_RANK_REPORTS = "ALEXNET2012_EVERY_RANK_REPORTS"
# What other trainers call our settings.
_OTHER_NAMES = {
    "precision": "amp dtype",
    "recipe": "arch",
    "mesh.device": "backend",
    "data.batch_size batch_size": "batch bs",
    "hydra.run.dir": "checkpoint_dir",
    "checkpoint resume": "ckpt",
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
_IN_SETTINGS = (ConfigError, HydraException, OmegaConfBaseException)
_HYDRAS_FLAG_ERRORS = ("Only one of --", "The --resolve flag")  # ValueErrors
MISTAKES = (*_IN_SETTINGS, OSError)


def exit_on_error(application: Callable[[], None], schema: type[Any] | None = None) -> None:
    """Call ``application``; an exception becomes one line and an exit code.

    Under torchrun all ranks raise the same errors, and only rank 0 prints them, until the ranks
    have joined (:data:`EVERY_RANK_REPORTS` is set).
    """
    atexit.register(gc.freeze)  # otherwise the interpreter scans all modules at exit, for a second
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, _raise_signal)  # so that cleanup code runs
    try:
        application()
    except _IN_SETTINGS as error:
        _end(explain(error, schema), EXIT_USER_ERROR)
    except LostPeerError:  # already reported
        sys.exit(EXIT_FAILURE)
    except RunError as error:
        _end(str(error), EXIT_FAILURE)
    except BrokenPipeError:  # a reader such as `head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for what is left to write
        sys.exit(128 + signal.SIGPIPE)
    except OSError as error:
        if error.filename is None:
            raise
        _end(f"{error.filename}: {error.strerror}", EXIT_USER_ERROR)
    except ValueError as error:
        if not str(error).startswith(_HYDRAS_FLAG_ERRORS):
            raise
        _end(str(error), EXIT_USER_ERROR)
    except InterruptError as error:
        end_interrupted(error.number)
    except KeyboardInterrupt:
        end_interrupted(signal.SIGINT)


def _raise_signal(number: int, frame: FrameType | None) -> NoReturn:
    raise InterruptError(number)


def end_interrupted(number: signal.Signals) -> NoReturn:
    """Exit with the code that a shell gives a program ended by a signal."""
    _end("interrupted", 128 + number)


def _end(line: str, code: int) -> NoReturn:
    if current_process().rank == 0 or EVERY_RANK_REPORTS in os.environ:
        print(f"alexnet2012: {line}", file=sys.stderr)
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


def _keys(config: Any, prefix: str = "") -> list[str]:
    keys = []
    for item in fields(config):
        name, value = f"{prefix}{item.name}", getattr(config, item.name)
        keys.append(name)
        if is_dataclass(value):
            keys.extend(_keys(value, f"{name}."))
    return keys
