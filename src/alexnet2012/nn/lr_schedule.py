"""Learning-rate schedules: pure functions of the epoch or step, and of the validation errors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.schema import ScheduleConfig


@dataclass(frozen=True)
class LearningRates:
    """Learning rates of an epoch or a step, and whether lighting augmentation is on.

    ``layers`` overrides the rates of both weight and bias of a layer, ``layer_biases`` that of its
    bias.
    """

    weight: float
    bias: float
    layers: dict[str, float] = field(default_factory=dict)
    lighting: bool = True
    layer_biases: dict[str, float] = field(default_factory=dict)

    def of(self, layer: str, *, bias: bool) -> float:
        if bias and layer in self.layer_biases:
            return self.layer_biases[layer]
        return self.layers.get(layer, self.bias if bias else self.weight)

    def scaled(self, factor: float) -> LearningRates:
        return LearningRates(
            weight=factor * self.weight,
            bias=factor * self.bias,
            layers={layer: factor * rate for layer, rate in self.layers.items()},
            lighting=self.lighting,
            layer_biases={layer: factor * rate for layer, rate in self.layer_biases.items()},
        )


def learning_rates(
    config: ScheduleConfig, epoch: int, errors: Sequence[float], batch_size: int
) -> LearningRates:
    """Learning rates of ``epoch`` (from 0), given the error after each earlier epoch.

    It is the validation error for ``plateau`` and the training error for ``train_plateau``. Rates
    are scaled linearly with the batch size if the schedule has a ``reference_batch``. Errors
    during the warm-up do not count towards a plateau: its small rates may improve nothing.

    Source: paper sec. 5 (``plateau``); the training notes of the 2012 code (``fixed``).
    """
    rates = LearningRates(config.rate, config.bias_rate)
    if config.kind in (ScheduleKind.plateau, ScheduleKind.train_plateau):
        counted = errors[config.warmup_epochs :]
        drops = _count_plateaus(counted, config.patience_epochs, config.max_drops)
        rates = rates.scaled(config.factor**-drops)
    else:
        for drop in config.drops:
            if drop.epoch * config.epochs_factor <= epoch:
                rates = LearningRates(
                    weight=rates.weight if drop.rate is None else drop.rate,
                    bias=rates.bias if drop.bias_rate is None else drop.bias_rate,
                    layers={**rates.layers, **drop.layer_rates},
                    lighting=rates.lighting if drop.lighting is None else drop.lighting,
                    layer_biases={**rates.layer_biases, **drop.layer_bias_rates},
                )
    if config.reference_batch is not None:
        rates = rates.scaled(batch_size / config.reference_batch)
    return rates.scaled(config.rate_factor)


def warmup_factor(config: ScheduleConfig, step: int, steps_per_epoch: int) -> float:
    """Factor of all learning rates at a step of the run (from 0): linear, then 1.

    Source: Goyal et al. 2017, "Accurate, large minibatch SGD", sec. 2.2.
    """
    return min(1.0, (step + 1) / max(1, config.warmup_epochs * steps_per_epoch))


def _count_plateaus(errors: Sequence[float], patience: int, limit: int) -> int:
    """Number of times, up to ``limit``, that ``patience`` epochs brought no new lowest error."""
    best, waited, plateaus = float("inf"), 0, 0
    for error in errors:
        if error < best:
            best, waited = error, 0
        else:
            waited += 1
        if waited == patience:
            waited, plateaus = 0, plateaus + 1
    return min(plateaus, limit)
