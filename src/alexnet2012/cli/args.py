"""Words of the command line beside KEY=VALUE settings: flags and paths."""

from __future__ import annotations

import argparse
import difflib
import sys
from collections.abc import Iterable, Sequence
from dataclasses import fields
from typing import NoReturn

from alexnet2012.config.schema import ConfigError

JSON_FLAG = "--json"


class ArgumentParser(argparse.ArgumentParser):
    """Argparse that raises errors as a ConfigError of one line, as those of all commands."""

    def error(self, message: str) -> NoReturn:
        name, _, reason = message.partition(": ")
        if not reason:
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
