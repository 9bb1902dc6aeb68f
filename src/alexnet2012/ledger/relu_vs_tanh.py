"""ReLU against tanh: epochs to a training error, each activation at its best learning rate.

Reads sweeps of ``conf/experiment/relu`` and ``conf/experiment/relu_cifar10``, or any runs that
differ only in activation, learning rate and seed. On CIFAR-10, as in the paper, short runs choose
the learning rates, and runs to the paper's training error follow.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from rich.table import Table

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Ablation, Arm
from alexnet2012.ledger.statistics import MIN_SEEDS, SeedMean, finished_runs
from alexnet2012.ledger.sweeps import Sweeps
from alexnet2012.tracking.tracker import read_records

THRESHOLD_PCT = 25.0  # paper fig. 1
SEARCH, TRAINING = "relu_cifar10_lr/full", "relu_cifar10/full"
FIRST_RATES = (0.004, 0.008)  # the search extends these while the best is at an end

Errors = list[float]  # training error by epoch, per cent
# By learning rate and seed. A rate is chosen by the mean of its seeds, not by its luckiest one.
Rates = dict[float, dict[int, Errors]]


def read_runs(run_dirs: Iterable[Path]) -> dict[str, Rates]:
    """Training errors by activation, learning rate and seed."""
    runs: dict[str, Rates] = defaultdict(lambda: defaultdict(dict))
    for run_dir in run_dirs:
        settings: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
        epochs = [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "epoch"]
        activation, rate = settings["model"]["activation"], settings["schedule"]["rate"]
        by_seed, seed = runs[activation][rate], settings["seed"]
        if seed in by_seed:
            duplicate = f"{activation} at rate {rate:g}, seed {seed}"
            remedy = f"is a second run of {duplicate}; give the directory of one sweep"
            raise ConfigError("runs", run_dir, remedy)
        by_seed[seed] = [record["train_error_pct"] for record in epochs]
    if missing := {"relu", "tanh"} - runs.keys():
        remedy = "train both model.activation=relu and model.activation=tanh to the end"
        raise ConfigError("runs", f"without {min(missing)}", remedy)
    return {activation: dict(rates) for activation, rates in runs.items()}


def epochs_to(errors: Errors, threshold_pct: float = THRESHOLD_PCT) -> float | None:
    """Epochs until the training error is at most the threshold; None: not reached."""
    return next((i + 1.0 for i, error in enumerate(errors) if error <= threshold_pct), None)


def best_rate(rates: Rates) -> float:
    """The rate with the fewest epochs to the threshold, then the lowest final error, on average."""

    def slowness(rate: float) -> tuple[float, float]:
        runs = rates[rate].values()
        epochs = fmean(epochs_to(errors) or math.inf for errors in runs)
        return epochs, fmean(errors[-1] for errors in runs)

    return min(rates, key=slowness)


def best_rates(runs: Mapping[str, Rates]) -> dict[str, float]:
    return {activation: best_rate(rates) for activation, rates in runs.items()}


def rates_beyond(runs: Mapping[str, Rates], tried: Mapping[str, set[float]]) -> dict[str, float]:
    """Twice or half the best rate of each activation whose best is the highest or lowest tried.

    A rate in ``tried`` without runs has diverged, because it is far too high.
    """
    beyond = {}
    for activation, best in best_rates(runs).items():
        if best == max(tried[activation]):
            beyond[activation] = 2 * best
        elif best == min(tried[activation]):
            beyond[activation] = best / 2
    return beyond


def relu_chart(runs: Mapping[str, Rates], command: str) -> Ablation:
    """Learning curves of both activations at their best rates: mean over seeds, or first seed."""
    curves = []
    for activation in ("relu", "tanh"):
        rate = best_rate(runs[activation])
        by_seed = runs[activation][rate]
        # Runs that stop at the threshold differ in length; then the first seed stands for all.
        equal_length = len({len(errors) for errors in by_seed.values()}) == 1
        drawn = list(by_seed.values()) if equal_length else [by_seed[min(by_seed)]]
        mean = [fmean(errors) for errors in zip(*drawn, strict=True)]
        curves.append(
            Arm(
                label=f"{activation}, learning rate {rate:g}",
                epochs=[float(i + 1) for i in range(len(mean))],
                train_error_pct=mean,
                epochs_to_threshold=epochs_to(mean),
            )
        )
    return Ablation(
        name="relu",
        title="ReLU against tanh",
        arms=curves,
        threshold_pct=THRESHOLD_PCT,
        n_seeds=len(by_seed),
        note="Each activation at its best learning rate, without regularisation.",
        command=command,
    )


@measures("relu", part="relu")
def relu_measurement(runs: Mapping[str, Rates], *how: *How) -> Measurement:
    """Ratio of the epochs to the training error, tanh over ReLU, mean over paired seeds."""
    relu, tanh = (runs[name][best_rate(runs[name])] for name in ("relu", "tanh"))
    seeds = sorted(relu.keys() & tanh.keys())
    if not seeds:
        value = f"relu has {sorted(relu)}, tanh {sorted(tanh)}"
        raise ConfigError("runs", value, "have no seed in common; train both with the same seeds")
    ratios, at_least = [], False
    for seed in seeds:
        with_relu, with_tanh = epochs_to(relu[seed]), epochs_to(tanh[seed])
        if with_relu is None:
            value = f"ReLU did not reach {THRESHOLD_PCT:g}% in {len(relu[seed])} epochs"
            return Measurement("relu", value, *how, n_seeds=len(seeds))
        at_least |= with_tanh is None
        ratios.append((with_tanh or len(tanh[seed])) / with_relu)
    ratio = SeedMean.of(ratios)
    interval_text, agrees = "", None
    if ratio.interval is not None:
        low, high = ratio.interval
        interval_text = f" (95%{' of the bound' if at_least else ''} {low:.1f} to {high:.1f})"
        if len(seeds) >= MIN_SEEDS and not low <= 1 <= high:
            agrees = low > 1
    return Measurement(
        "relu",
        f"{'more than ' if at_least else ''}{ratio.mean:.1f} ×{interval_text}: "
        f"{_epochs_text(relu, seeds)} epochs with ReLU, {_epochs_text(tanh, seeds)} with tanh",
        *how,
        numbers={"ratio_at_least" if at_least else "ratio": ratio.mean},
        n_seeds=len(seeds),
        interval=ratio.interval,
        agrees=agrees,
        agreement_note="tests only whether ReLU is faster at all; the paper reports 6 ×",
    )


def relu_table(runs: Mapping[str, Rates]) -> Table:
    """Epochs to the threshold and final training error of each learning rate."""
    table = Table(title=f"epochs to {THRESHOLD_PCT:g}% training error, by seed")
    for heading in ("activation", "learning rate", "epochs", "final training error, %"):
        table.add_column(heading, justify="right")
    for activation, rates in runs.items():
        for rate, by_seed in sorted(rates.items()):
            final = fmean(errors[-1] for errors in by_seed.values())
            epochs = _epochs_text(by_seed, sorted(by_seed))
            table.add_row(activation, f"{rate:g}", epochs, f"{final:.1f}")
    return table


def _epochs_text(runs: Mapping[int, Errors], seeds: list[int]) -> str:
    """Epochs to the threshold by seed, or ``over N`` where N epochs did not reach it."""
    return ", ".join(
        f"over {len(runs[seed])}" if (epochs := epochs_to(runs[seed])) is None else f"{epochs:.0f}"
        for seed in seeds
    )


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
    seeds, root = sweeps.seeds[:1], sweeps.directory(SEARCH)
    new: Mapping[str, Iterable[float]] = tried
    while new:
        for activation, rates in new.items():
            values = ",".join(f"{rate:g}" for rate in sorted(rates))
            overrides = [f"model.activation={activation}", f"schedule.rate={values}"]
            # A rate that is far too high diverges to NaN; the warning is below.
            sweeps.train(SEARCH, overrides, seeds, warn=False)
        searched = [(root / name, f"{rate:g}") for name, rates in tried.items() for rate in rates]
        runs = read_runs(run for key in searched for run in finished_runs(*key, seeds).values())
        new = {activation: {rate} for activation, rate in rates_beyond(runs, tried).items()}
        for activation, rates in new.items():
            tried[activation].update(rates)
    for activation, rates in tried.items():
        for rate in sorted(rates - runs[activation].keys()):
            sweeps.warnings.append(
                f"{SEARCH}: {activation} at learning rate {rate:g} failed; treated as too high"
            )
    return runs
