"""Commands that pages print; test_readme.py runs those of the README that no other test names."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

from programs import REPOSITORY, TINY

README = REPOSITORY / "README.md"


def lines(page: Path) -> list[str]:
    """The commands in a page's blocks of shell, without comments."""
    blocks = re.findall(r"```sh\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    found = (line for block in blocks for line in block.replace("\\\n", " ").splitlines())
    return [text for line in found if (text := re.sub(r"(^| +)#.*", "", line).strip())]


def of_the_readme() -> list[str]:
    """Those, and those within its text; each once."""
    within = re.findall(r"`((?:python|make) [^`]+)`", README.read_text(encoding="utf-8"))
    return list(dict.fromkeys([*lines(README), *within]))


def printed(command: str) -> list[str]:
    """The words of a command that the README prints; the test that asks for them runs it."""
    assert command in of_the_readme(), f"README.md has no such line: {command}"
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
