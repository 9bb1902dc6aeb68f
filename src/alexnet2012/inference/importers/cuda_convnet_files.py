"""Read the definition files of cuda-convnet, the 2012 code: a network's layers, and their rates.

A network is two files of ``[layer]`` sections with ``key=value`` lines: its definition, and the
parameters of its training. Comments at the end of the latter are the notes of its runs. As in the
2012 code, keys are not case-sensitive. Values that the code would have evaluated (``initWFunc``,
``%(name)s``) are only text here.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from alexnet2012.utils.text import printable
from alexnet2012.utils.untrusted import read_bytes

MAX_BYTES = 2**20  # the largest of the 2012 files has 20 kB
MAX_SECTIONS = 1000
_SECTION = re.compile(r"\[([^\]]+)\]")
_KEY_VALUE = re.compile(r"([\w.]+)\s*[=:]\s*(.*)")


@dataclass(frozen=True)
class SectionFile:
    """The sections of a file, and its comments."""

    sections: Mapping[str, Mapping[str, str]]  # by name; keys in lower case
    notes: str  # the comments without their marks; blank lines separate the notes of runs


def read_sections(path: Path) -> SectionFile:
    """Parse a file.

    Raises:
        ValueError: it is no such file; the message is one line.
        OSError: it cannot be opened.
    """
    try:
        text = read_bytes(path, MAX_BYTES).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError("is not a text file in UTF-8") from error
    sections: dict[str, dict[str, str]] = {}
    notes: list[str] = []
    current: dict[str, str] | None = None
    for number, line in enumerate((line.strip() for line in text.splitlines()), start=1):
        if line.startswith(("#", ";")) or not line:
            notes.append(line[1:].removeprefix(" ").rstrip())
        elif match := _SECTION.fullmatch(line):
            name = match[1].strip()
            if len(sections) == MAX_SECTIONS:
                raise ValueError(f"has more than {MAX_SECTIONS} sections")
            current = sections.setdefault(name, {})  # later ones add to it, as in the code
        elif current is not None and (match := _KEY_VALUE.fullmatch(line)):
            current[match[1].lower()] = match[2].strip()
        else:
            raise ValueError(
                f"line {number} ({shown(line)}) is neither a [section] nor a key=value of one"
            )
    if not sections:
        raise ValueError("has no [sections]; give a definition file of cuda-convnet")
    paragraphs = re.sub(r"\n{3,}", "\n\n", "\n".join(notes)).strip("\n")
    return SectionFile(sections, paragraphs)


@dataclass(eq=False)
class Section:
    """A layer's settings, from the definition and from the parameters; the latter take precedence.

    Every getter raises ValueError, with the layer, the key and the value, if a value is not what it
    should be.
    """

    name: str
    values: Mapping[str, str]
    used: set[str] = field(default_factory=set)  # keys that were read

    def __contains__(self, key: str) -> bool:
        return key.lower() in self.values

    def text(self, key: str, default: str | None = None) -> str:
        self.used.add(key.lower())
        value = self.values.get(key.lower(), default)
        if value is None:
            remedy = "are the parameters those of this definition?"
            raise ValueError(f"[{shown(self.name)}] has no {key} in either file; {remedy}")
        return value

    def texts(self, key: str) -> list[str]:
        return [part.strip() for part in self.text(key).split(",")]

    def number(self, key: str, default: float | None = None) -> float:
        """A number, or the number that a list repeats: the code has a list item per input."""
        text = self.text(key, None if default is None else str(default))
        try:
            numbers = {float(part) for part in text.split(",")}
        except ValueError:
            raise self.error(key, "must be a number") from None
        if not all(map(math.isfinite, numbers)):
            raise self.error(key, "must be finite")
        if len(numbers) > 1:
            raise self.error(key, "must be the same for all inputs")
        return numbers.pop()

    def magnitude(self, key: str, default: float | None = None) -> float:
        number = self.number(key, default)
        if number < 0:
            raise self.error(key, "must be at least 0")
        return number

    def integer(self, key: str, default: int | None = None) -> int:
        number = self.number(key, default)
        if number != int(number):
            raise self.error(key, "must be a whole number")
        return int(number)

    def flag(self, key: str, default: bool) -> bool:
        value = self.text(key, str(default)).lower()
        if value not in ("true", "false", "1", "0"):
            raise self.error(key, "must be true or false")
        return value in ("true", "1")

    def expect(self, key: str, value: float) -> None:
        """Refuse another value than the only one that a recipe can express; absent is fine."""
        if key in self and self.number(key) != value:
            raise self.error(key, f"a recipe has only {value:g}")

    def error(self, key: str, remedy: str) -> ValueError:
        value = self.values.get(key.lower(), "")
        return ValueError(f"[{shown(self.name)}] {key}={shown(value)}: {remedy}")

    def check_all_used(self) -> None:
        """Refuse keys that nothing has read: what they ask for would be ignored."""
        for key in self.values:
            if key not in self.used:
                raise self.error(key, "is a setting that a recipe lacks")


def shown(text: str) -> str:
    """Untrusted text for an error message."""
    return printable(text if len(text) <= 40 else f"{text[:39]}…")
