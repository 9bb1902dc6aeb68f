"""Former names of experiments, found in printed commands and in directories of runs."""

from __future__ import annotations

import re

FORMER_EXPERIMENTS = {  # current names by former ones
    "quick/full_size": "full_size/quick",
    "quick/reduced": "reduced/quick",
    "quick/relu": "relu/quick",
    "relu_cifar10/rates": "relu_cifar10/full",
    "relu_cifar10_lr/full": "relu_cifar10/full",
    "relu_cifar10/epochs": "relu_cifar10/full",
    "effects/quick": "ablations/quick",
    "effects/reduced": "ablations/reduced",
    "effects/full": "ablations/full",
}
_FORMER = re.compile(rf"\b({'|'.join(map(re.escape, FORMER_EXPERIMENTS))})\b")


def with_current_names(override: str) -> str:
    """``experiment=effects/quick`` → ``experiment=ablations/quick``, in lists of a sweep, too."""
    key, equals, names = override.partition("=")
    if key.lstrip("+") != "experiment":
        return override
    return key + equals + _FORMER.sub(lambda match: FORMER_EXPERIMENTS[match[0]], names)
