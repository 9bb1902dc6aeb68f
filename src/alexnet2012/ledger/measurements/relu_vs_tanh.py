"""ReLU against tanh: epochs to a training error, each activation at its best learning rate.

Reads sweeps of ``conf/experiment/relu`` and ``conf/experiment/relu_cifar10``, or any runs that
differ only in activation, learning rate and seed. On CIFAR-10, as in the paper, rates are compared
by the epochs to the paper's training error itself.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
from omegaconf import OmegaConf
from rich.table import Table

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.results import Ablation, Arm, EpochRatio
from alexnet2012.ledger.statistics import Estimate, SeedMean, finished_runs, within_runs
from alexnet2012.ledger.sweeps import Sweeps
from alexnet2012.tracking.tracker import read_records

THRESHOLD_PCT = 25.0  # paper fig. 1
CLAIMED_RATIO = 6.0  # paper sec. 3.1
THRESHOLDS_PCT = (45.0, 40.0, 35.0, 30.0, THRESHOLD_PCT)
TRAINING = "relu_cifar10/full"
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
    """The rate with the fewest epochs to the threshold, then the lowest final error, on average.

    Rates are compared on the seeds that all of them have, or if there are none, on their own.
    """
    common = set.intersection(*({*by_seed} for by_seed in rates.values()))

    def slowness(rate: float) -> tuple[float, float]:
        runs = [rates[rate][seed] for seed in common or rates[rate]]
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


def ratios(runs: Mapping[str, Rates]) -> list[EpochRatio]:
    """Epochs of tanh over those of ReLU at every threshold that ReLU reaches with all seeds."""
    relu, tanh = (runs[name][best_rate(runs[name])] for name in ("relu", "tanh"))
    seeds = sorted(relu.keys() & tanh.keys())
    if not seeds:
        value = f"relu has {sorted(relu)}, tanh {sorted(tanh)}"
        raise ConfigError("runs", value, "have no seed in common; train both with the same seeds")
    found = []
    for threshold in THRESHOLDS_PCT:
        with_relu, with_tanh = (
            [epochs_to(by_seed[seed], threshold) for seed in seeds] for by_seed in (relu, tanh)
        )
        reached = [epochs for epochs in with_relu if epochs is not None]
        if len(reached) < len(seeds):
            continue
        # A tanh network that stops above the threshold would take longer than it was trained for.
        at_least = [
            float(len(tanh[seed])) if epochs is None else epochs
            for seed, epochs in zip(seeds, with_tanh, strict=True)
        ]
        by_seed_ratio = [b / a for a, b in zip(reached, at_least, strict=True)]
        mean = SeedMean.of(by_seed_ratio)
        found.append(
            EpochRatio(
                threshold_pct=threshold,
                relu_epochs=fmean(reached),
                tanh_epochs=fmean(at_least),
                ratios=by_seed_ratio,
                mean=mean.mean,
                interval=mean.interval,
                is_bound=None in with_tanh,
            )
        )
    return found


def relu_from_sample(sample: Mapping[str, np.ndarray], *how: *How) -> Measurement:
    """The measurement from the errors of each run, named ``ACTIVATION/RATE/SEED``."""
    runs: dict[str, Rates] = defaultdict(lambda: defaultdict(dict))
    for name, errors in sample.items():
        activation, rate, seed = name.split("/")
        runs[activation][float(rate)][int(seed)] = errors.tolist()
    return relu_measurement(runs, *how)


@measures("relu", part="relu", from_sample={"relu": relu_from_sample})
def relu_measurement(runs: Mapping[str, Rates], *how: *How) -> Measurement:
    """Ratio of the epochs to the training error, tanh over ReLU, mean over paired seeds."""
    relu, tanh = (runs[name][best_rate(runs[name])] for name in ("relu", "tanh"))
    seeds, found = sorted(relu.keys() & tanh.keys()), ratios(runs)
    numbers: dict[str, float | int | str | bool]
    numbers = {ratio_name(ratio): ratio["mean"] for ratio in found}
    sample = {
        f"{activation}/{rate:g}/{seed}": np.array(errors)
        for activation, rates in runs.items()
        for rate, by_seed in rates.items()
        for seed, errors in by_seed.items()
    }
    also = "".join(f"; {ratio_text(r)}" for r in found if r["threshold_pct"] > THRESHOLD_PCT)
    if not found or found[-1]["threshold_pct"] > THRESHOLD_PCT:
        epochs = max(len(relu[seed]) for seed in seeds)
        value = f"ReLU did not reach {THRESHOLD_PCT:g}% in {epochs} epochs{also}"
        count = len(seeds)
        return Measurement("relu", value, *how, numbers=numbers, n_seeds=count, sample=sample)
    last = found[-1]
    mean, design = within_runs([ratio - 1 for ratio in last["ratios"]], None)
    claimed = None if last["is_bound"] else CLAIMED_RATIO - 1  # a bound leaves no size out
    return Measurement(
        "relu",
        f"{ratio_text(last)}: {_epochs_text(relu, seeds)} epochs with ReLU, "
        f"{_epochs_text(tanh, seeds)} with tanh{also}",
        *how,
        numbers=numbers,
        n_seeds=len(seeds),
        interval=last["interval"],
        agreement_note="the paper reports 6 ×; an effect is the ratio less 1",
        estimates=(Estimate("tanh", "epochs_ratio_less_1", mean, design, claimed=claimed),),
        sample=sample,
    )


def ratio_name(ratio: EpochRatio) -> str:
    kind = "ratio_at_least" if ratio["is_bound"] else "ratio"
    is_claimed = ratio["threshold_pct"] == THRESHOLD_PCT
    return kind if is_claimed else f"{kind}_at_{ratio['threshold_pct']:g}_pct"


def ratio_text(ratio: EpochRatio) -> str:
    """``more than 5.3 × (95% interval of the lower bound 4.0 to 6.5) at 25%``."""
    bounds, of_bound = "", " interval of the lower bound" if ratio["is_bound"] else ""
    if ratio["interval"] is not None:
        low, high = ratio["interval"]
        bounds = f" (95%{of_bound} {low:.1f} to {high:.1f})"
    more = "more than " if ratio["is_bound"] else ""
    return f"{more}{ratio['mean']:.1f} ×{bounds} at {ratio['threshold_pct']:g}%"


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
    tried = _search_rates(sweeps)
    best = best_rates(_read(sweeps, tried, _search_seeds(sweeps)))
    rest = [(name, rate, seed) for seed in sweeps.seeds for name, rate in best.items()]
    sweeps.train_each(TRAINING, [_overrides(*run) for run in rest])
    return _finished(sweeps, tried, sweeps.seeds)


def _search_rates(sweeps: Sweeps) -> dict[str, set[float]]:
    """Train at rates until the best of each activation has neighbours; returns those tried.

    Every run goes to the threshold, so it counts as one of the comparison, too.
    """
    tried = {activation: set(FIRST_RATES) for activation in ("relu", "tanh")}
    seeds, new = _search_seeds(sweeps), dict[str, set[float]](tried)
    while new:
        runs = [
            _overrides(activation, rate, seed)
            for seed in seeds
            for activation, rates in new.items()
            for rate in sorted(rates)
        ]
        # A rate that is far too high diverges to NaN; the warning is below.
        sweeps.train_each(TRAINING, runs, warn=False)
        found = _read(sweeps, tried, seeds)
        new = {activation: {rate} for activation, rate in rates_beyond(found, tried).items()}
        for activation, rates in new.items():
            tried[activation] = tried[activation] | rates
    for activation, rates in tried.items():
        for rate in sorted(rates - found[activation].keys()):
            sweeps.warnings.append(
                f"{TRAINING}: {activation} at learning rate {rate:g} failed; treated as too high"
            )
    return tried


def _search_seeds(sweeps: Sweeps) -> list[int]:
    return sweeps.seeds[: sweeps.config.rate_seeds]


def _read(
    sweeps: Sweeps, tried: Mapping[str, Iterable[float]], seeds: list[int]
) -> dict[str, Rates]:
    """Training errors of the finished runs; a rate of which some failed has none."""
    found = read_runs(_finished(sweeps, tried, seeds))
    return {
        activation: {rate: runs for rate, runs in rates.items() if len(runs) == len(seeds)}
        for activation, rates in found.items()
    }


def _finished(sweeps: Sweeps, tried: Mapping[str, Iterable[float]], seeds: list[int]) -> list[Path]:
    directory = sweeps.directory(TRAINING)
    searched = [(directory / name, f"{rate:g}") for name, rates in tried.items() for rate in rates]
    return [run for key in searched for run in finished_runs(*key, seeds).values()]


def _overrides(activation: str, rate: float, seed: int) -> list[str]:
    return [f"seed={seed}", f"model.activation={activation}", f"schedule.rate={rate:g}"]
