"""Seeds of named random streams: draws of one stream do not depend on those of others."""

from __future__ import annotations

import hashlib


def stream_seed(seed: int, *names: object) -> int:
    """A 63-bit seed for the stream ``names`` of a run; the same on every machine."""
    text = "/".join(str(part) for part in (seed, *names))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def int64(number: int) -> int:
    """Wrap an integer to a signed 64-bit one."""
    return (number + 2**63) % 2**64 - 2**63


# SplitMix64: the n-th number is n·GAMMA, mixed by right shifts and multiplications.
GAMMA = int64(0x9E3779B97F4A7C15)
MIX = ((30, int64(0xBF58476D1CE4E5B9)), (27, int64(0x94D049BB133111EB)))
