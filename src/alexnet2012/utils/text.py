"""Untrusted text, made safe to print."""

from __future__ import annotations


def printable(text: str) -> str:
    """Escape all characters that are not printable, such as control characters."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def printable_lines(text: str) -> str:
    """The same for text of several lines, such as a traceback."""
    return "\n".join(map(printable, text.split("\n")))
