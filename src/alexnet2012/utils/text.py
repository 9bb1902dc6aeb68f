"""Text of unknown origin, made safe to print."""

from __future__ import annotations


def printable(name: str) -> str:
    """A name that can be shown: no control characters, nothing that is no text."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in name)
