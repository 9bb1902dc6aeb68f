"""The 2012 AlexNet as it was built: two towers, two processes, its claims measured."""

from __future__ import annotations

import sys
from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from alexnet2012.distributed.mesh import init_mesh
    from alexnet2012.inference.trained_model import load_trained
    from alexnet2012.nn.alexnet import AlexNet

__all__ = ["AlexNet", "init_mesh", "load_trained"]

if sys.argv[0] == "-m" and any(word.startswith("alexnet2012.") for word in sys.orig_argv):
    # A command that is about to be imported: python -m alexnet2012.COMMAND.
    from alexnet2012.utils.interrupt import end_at_once_on_sigint

    end_at_once_on_sigint()

_HOMES = {
    "AlexNet": "alexnet2012.nn.alexnet",
    "init_mesh": "alexnet2012.distributed.mesh",
    "load_trained": "alexnet2012.inference.trained_model",
}


def __getattr__(name: str) -> object:
    """Load torch only for what needs it: preparation's workers do not."""
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
