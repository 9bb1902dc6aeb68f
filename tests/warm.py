"""Imported last by the fork server of :mod:`ranks`: what its ranks would each do first."""

from __future__ import annotations

from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.utils.collector import after_imports

for name in ("paper", "code145", "code146"):
    load_recipe(name)
compose_config("train", TrainConfig, ["data.store=none"])  # Hydra learns its grammar
after_imports()
