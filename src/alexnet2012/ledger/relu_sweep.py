"""Trains ReLU against tanh on CIFAR-10 as in the paper, each activation at its best learning rate.

Short runs choose the learning rates; runs to the paper's training error follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from alexnet2012.ledger.relu_vs_tanh import Rates, best_rates, rates_beyond, read_runs
from alexnet2012.ledger.statistics import finished_runs
from alexnet2012.ledger.sweeps import Sweeps

SEARCH, TRAINING = "relu_cifar10_lr/full", "relu_cifar10/full"
FIRST_RATES = (0.004, 0.008)  # the search extends these while the best is at an end


def train(sweeps: Sweeps) -> list[Path]:
    """Directories of the finished runs of the four-layer network, over all seeds."""
    runs: list[Path] = []
    for activation, rate in best_rates(_search_rates(sweeps)).items():
        overrides = [f"model.activation={activation}", f"schedule.rate={rate:g}"]
        sweeps.train(TRAINING, overrides, sweeps.seeds)
        directory = sweeps.directory(TRAINING) / activation
        runs += finished_runs(directory, f"{rate:g}", sweeps.seeds).values()
    return runs


def _search_rates(sweeps: Sweeps) -> dict[str, Rates]:
    """A few epochs at each learning rate, until the best of each activation has neighbours."""
    tried = {activation: set(FIRST_RATES) for activation in ("relu", "tanh")}
    new: Mapping[str, Iterable[float]] = tried
    while new:
        for activation, rates in new.items():
            values = ",".join(f"{rate:g}" for rate in sorted(rates))
            overrides = [f"model.activation={activation}", f"schedule.rate={values}"]
            # A rate that is far too high diverges to NaN; the warning is below.
            sweeps.train(SEARCH, overrides, sweeps.seeds[:1], warn=False)
        runs = read_runs(
            run
            for activation, rates in tried.items()
            for rate in rates
            for run in finished_runs(
                sweeps.directory(SEARCH) / activation, f"{rate:g}", sweeps.seeds[:1]
            ).values()
        )
        new = {activation: {rate} for activation, rate in rates_beyond(runs, tried).items()}
        for activation, rates in new.items():
            tried[activation].update(rates)
    for activation, rates in tried.items():
        for rate in sorted(rates - runs[activation].keys()):
            sweeps.warnings.append(
                f"{SEARCH}: {activation} at learning rate {rate:g} failed; treated as too high"
            )
    return runs
