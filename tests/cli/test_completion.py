"""Tab completion: what bash is answered, and that bash understands it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from alexnet2012.completion import completions, script

CONSOLE_SCRIPT = str(Path(sys.executable).with_name("alexnet2012"))
# What readline does at a Tab: bash cuts words at `=` too, and replaces the last of them.
TAB = """
eval "$1"
COMP_LINE=$2 COMP_POINT=${#2}
read -ra COMP_WORDS <<< "${COMP_LINE//=/ = }"
COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
_alexnet2012 "$3"
printf '%s\\n' "${COMPREPLY[@]}"
"""


@pytest.mark.parametrize(
    ("name", "line", "found"),
    [
        ("train", " recipe=co", ["recipe=code145", "recipe=code146", "recipe=code146_2011"]),
        ("train", " -m recipe=code145 data.sto", ["data.store=", "data.store_size="]),
        ("train", " model=small model.wid", ["model.width="]),
        ("train", " recipe=papr model.wid", []),
        ("prepare", " qual", ["quality="]),
        ("doctor", " data.sto", ["data.store=", "data.store_size="]),
        ("nothing", " a", []),
    ],
)
def test_the_last_word_is_completed_after_the_words_before(
    name: str, line: str, found: list[str]
) -> None:
    assert completions(name, line) == found


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("python -m alexnet2012.train seed=1 recipe=co", ["code145", "code146", "code146_2011"]),
        ("python -m alexnet2012.pre", ["alexnet2012.prepare ", "alexnet2012.predict "]),
        ("alexnet2012 train seed=1 recipe=co", ["code145", "code146", "code146_2011"]),
        ("alexnet2012 pre", ["prepare ", "predict "]),
        ("python -m pytest recipe=", [""]),
    ],
)
def test_bash_replaces_what_follows_the_sign(line: str, found: list[str]) -> None:
    program = CONSOLE_SCRIPT if line.startswith("alexnet2012") else sys.executable
    words = ["bash", "-c", TAB, "bash", script(), line, program]
    said = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    assert (said.stdout.removesuffix("\n").split("\n"), said.stderr) == (found, "")


def test_completion_does_not_wait_for_torch() -> None:
    code = "import sys, alexnet2012.completion; sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)
