"""Python's garbage collector, in processes that import torch.

Imports allocate a million objects that live on. As usually set, the collector scans them again and
again: for a sixth of the time that imports take, and for a second at exit.
"""

from __future__ import annotations

import atexit
import gc

_USUAL = gc.get_threshold()
_WHILE_IMPORTING = 100_000  # new objects between two scans


def before_imports() -> None:
    """Scan rarely from now on, and no modules at exit."""
    gc.set_threshold(_WHILE_IMPORTING)
    atexit.register(gc.freeze)


def after_imports() -> None:
    """Scan as often as usual, but only what is made from now on."""
    gc.freeze()
    gc.set_threshold(*_USUAL)
