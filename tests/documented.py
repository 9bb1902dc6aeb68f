"""Commands that pages print; test_readme.py runs those of the README and of docs/commands.md.

Those that another test names (:func:`printed`) are run there.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from programs import REPOSITORY, TINY

README, COMMANDS = REPOSITORY / "README.md", REPOSITORY / "docs" / "commands.md"


def lines(page: Path) -> list[str]:
    """The commands in a page's blocks of shell, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [text for line in found if (text := re.sub(r"(^| +)#.*", "", line).strip())]


def shown() -> list[str]:
    """Those of both pages, and those within their texts; each once, `alexnet2012 X` as a module."""
    found = []
    for page in (COMMANDS, README):
        text = page.read_text(encoding="utf-8")
        found += lines(page)
        found += re.findall(r"`((?:python|make|alexnet2012) [^`]+)`", text)
    found = [re.sub(r"^alexnet2012 (?=[a-z])", "python -m alexnet2012.", text) for text in found]
    return [command for command in dict.fromkeys(found) if "COMMAND" not in command]


def printed(command: str) -> list[str]:
    """The words of a command that one of them prints; the test that asks for them runs it."""
    assert command in shown(), f"README.md and docs/commands.md have no such line: {command}"
    return shlex.split(command.replace("…", ""))


def make(words: list[str]) -> str:
    """What `make` prints; a `make test` that these tests are run by does not hand on its words."""
    inherited = ("MAKEFLAGS", "MAKELEVEL", "MFLAGS", "ARGS", "DATA", "OUT")
    env = {key: value for key, value in os.environ.items() if key not in inherited}
    made = subprocess.run(words, cwd=REPOSITORY, env=env, capture_output=True, text=True)
    assert made.returncode == 0, made.stderr
    return made.stdout


def make_here(words: list[str], arguments: str) -> str:
    """The same of a target, with arguments, in the environment of the tests."""
    here = [f"VENV={sys.prefix}", "-o", f"{sys.prefix}/ready", f"ARGS={arguments}"]
    return make([*words, *here])


def made_small(words: list[str], *more: str) -> list[str]:
    """Words of a training, and those that make it one of seconds; the first of a key counts."""
    first: dict[str, str] = {}
    for word in (*words, *more, *TINY):
        first.setdefault(word.partition("=")[0], word)
    return list(first.values())
