"""ReLU against tanh on CIFAR-10, as the paper has it: each activation at its best rate.

Short runs find the rates, runs to the paper's training error follow.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from alexnet2012.ledger.relu_vs_tanh import Rates, best_rates, rates_beyond, read_runs
from alexnet2012.ledger.statistics import finished_runs
from alexnet2012.ledger.sweeps import Sweeps

RATES, EPOCHS = "relu_cifar10/rates", "relu_cifar10/epochs"
FIRST_RATES = (0.004, 0.008)  # then further while the best lies at an end


def train(sweeps: Sweeps) -> list[Path]:
    """The finished runs of the four-layer net, over seeds."""
    runs: list[Path] = []
    for activation, rate in best_rates(_short_runs(sweeps)).items():
        overrides = [f"model.activation={activation}", f"schedule.rate={rate:g}"]
        sweeps.train(EPOCHS, overrides, sweeps.seeds)
        arm = sweeps.directory(EPOCHS) / activation / f"{rate:g}"
        runs += finished_runs(arm.parent, arm.name, sweeps.seeds).values()
    return runs


def _short_runs(sweeps: Sweeps) -> dict[str, Rates]:
    """A few epochs at every rate, up or down until each activation's best has neighbours."""
    tried = {activation: set(FIRST_RATES) for activation in ("relu", "tanh")}
    new: Mapping[str, Iterable[float]] = tried
    while new:
        for activation, rates in new.items():
            chosen = ",".join(f"{rate:g}" for rate in sorted(rates))
            overrides = [f"model.activation={activation}", f"schedule.rate={chosen}"]
            # Far too high a rate ends in NaN, and is named below.
            sweeps.train(RATES, overrides, sweeps.seeds[:1], warn=False)
        found = read_runs(
            run
            for activation, rates in tried.items()
            for rate in rates
            for run in finished_runs(
                sweeps.directory(RATES) / activation, f"{rate:g}", sweeps.seeds[:1]
            ).values()
        )
        new = {activation: {rate} for activation, rate in rates_beyond(found, tried).items()}
        for activation, rates in new.items():
            tried[activation].update(rates)
    for activation, rates in tried.items():
        for rate in sorted(rates - found[activation].keys()):
            sweeps.warnings.append(f"{RATES}: {activation} at {rate:g} failed: held for too high")
    return found
