"""Words of the command line beside KEY=VALUE settings: flags and paths."""

from __future__ import annotations

import argparse
import difflib
import os
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import NoReturn

from hydra._internal.utils import get_args_parser

from alexnet2012.config.compose import quoted
from alexnet2012.config.schema import ConfigError

JSON_FLAG = "--json"


class ArgumentParser(argparse.ArgumentParser):
    """Argparse that raises errors as a ConfigError of one line, as those of all commands."""

    def error(self, message: str) -> NoReturn:
        name, _, reason = message.partition(": ")
        if not reason or name.endswith("required"):  # ": A, B" are then the missing arguments
            name, reason = "arguments", message
        value = " ".join(sys.argv[1:]) if name == "arguments" else None
        raise ConfigError(name, value, f"{reason}; see {self.prog} --help")


def expand_json_flag(words: Sequence[str], schema: type) -> list[str]:
    """``--json`` as the setting ``json=true`` of commands that print a result."""
    if JSON_FLAG not in words:
        return list(words)
    if "json" not in {item.name for item in fields(schema)}:
        raise ConfigError(JSON_FLAG, "true", "this command has no JSON output; remove the flag")
    return [*(word for word in words if word != JSON_FLAG), "json=true"]


def closest(word: str, known: Iterable[str]) -> str:
    """`` ; did you mean X?``, or nothing where no known word is close."""
    found = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {found[0]}?" if found else ""


def collect_images(words: Sequence[str]) -> list[str]:
    """Turn bare file names on the command line into ``images=[…]``, and ``--json`` into a setting.

    A shell's ``*.jpg`` then works for any file name: Hydra alone would read some as overrides.
    """
    words = ["json=true" if word == "--json" else word for word in words]
    overrides = get_args_parser().parse_known_args(words)[0].overrides
    # os.path and not Path.exists, which raises if a word is longer than a file name may be.
    exists = os.path.exists
    images = [word for word in overrides if "=" not in word or is_url(word) or exists(word)]
    others = [word for word in words if word not in images]
    return [*others, f"images=[{','.join(map(quoted, images))}]"] if images else others


def named(key: str, words: Sequence[str]) -> list[str]:
    """Turn a bare path on the command line into the setting ``key``."""
    settings = get_args_parser().parse_known_args(words)[0].overrides
    exists = os.path.exists  # as above
    bare = [word for word in settings if "=" not in word or exists(word)]
    return [f"{key}={quoted(word)}" if word in bare else word for word in words]


def is_url(word: str) -> bool:
    return word.lower().startswith(("http://", "https://"))
