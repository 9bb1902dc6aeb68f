"""Former names of experiments, found in printed commands and in directories of runs."""

from __future__ import annotations

import re

FORMER_EXPERIMENTS = {  # by current name
    "full_size/quick": "quick/full_size",
    "reduced/quick": "quick/reduced",
    "relu/quick": "quick/relu",
    "relu_cifar10_lr/full": "relu_cifar10/rates",
    "relu_cifar10/full": "relu_cifar10/epochs",
    "ablations/quick": "effects/quick",
    "ablations/reduced": "effects/reduced",
    "ablations/full": "effects/full",
}
_CURRENT = {former: current for current, former in FORMER_EXPERIMENTS.items()}
_FORMER = re.compile(rf"\b({'|'.join(map(re.escape, _CURRENT))})\b")


def with_current_names(override: str) -> str:
    """``experiment=effects/quick`` → ``experiment=ablations/quick``, in lists of a sweep, too."""
    key, equals, names = override.partition("=")
    if key.lstrip("+") != "experiment":
        return override
    return key + equals + _FORMER.sub(lambda match: _CURRENT[match[0]], names)
