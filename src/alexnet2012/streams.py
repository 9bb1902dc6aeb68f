"""Seeds of named random streams, so that no draw depends on what else was drawn before it."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream called ``names`` of a run; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1
