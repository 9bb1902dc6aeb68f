"""Learning rates as a pure function of the epoch and of the validation errors so far."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.schema import ScheduleConfig


@dataclass(frozen=True)
class LearningRates:
    """What is in force during one epoch. ``layers`` replaces both rates of a layer."""

    weight: float
    bias: float
    layers: dict[str, float] = field(default_factory=dict)
    lighting: bool = True

    def of(self, layer: str, *, bias: bool) -> float:
        return self.layers.get(layer, self.bias if bias else self.weight)

    def times(self, factor: float) -> LearningRates:
        layers = {layer: factor * rate for layer, rate in self.layers.items()}
        return LearningRates(factor * self.weight, factor * self.bias, layers, self.lighting)


def learning_rates(
    config: ScheduleConfig, epoch: int, validation_errors: Sequence[float], batch_size: int
) -> LearningRates:
    """The rates of ``epoch`` (from 0), given the validation error after each earlier epoch.

    Source: paper sec. 5 (``plateau``); the 2012 code's run notes (``fixed``).
    """
    now = _as_written(config, epoch, validation_errors)
    if config.reference_batch is None:
        return now
    return now.times(batch_size / config.reference_batch)


def _as_written(
    config: ScheduleConfig, epoch: int, validation_errors: Sequence[float]
) -> LearningRates:
    if config.kind is ScheduleKind.plateau:
        drops = _plateaus(validation_errors, config.patience_epochs, config.max_drops)
        return LearningRates(config.rate, config.bias_rate).times(config.factor**-drops)
    now = LearningRates(config.rate, config.bias_rate)
    for drop in config.drops:
        if drop.epoch <= epoch:
            now = LearningRates(
                weight=now.weight if drop.rate is None else drop.rate,
                bias=now.bias if drop.bias_rate is None else drop.bias_rate,
                layers={**now.layers, **drop.layer_rates},
                lighting=now.lighting if drop.lighting is None else drop.lighting,
            )
    return now


def _plateaus(errors: Sequence[float], patience: int, most: int) -> int:
    """How often the error went ``patience`` epochs without a new best, at most ``most`` times."""
    best, waited, plateaus = float("inf"), 0, 0
    for error in errors:
        if error < best:
            best, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return min(plateaus, most)
