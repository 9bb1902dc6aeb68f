"""Untrusted text, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape all characters that are not printable, such as control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, such as a traceback."""
    return "\n".join(map(printable, text.split("\n")))


def say(text: str) -> None:
    """Print text that holds a name: of a file, a class or anything else that others chose."""
    print(printable_lines(text))
