"""ReLU against tanh: epochs to a training error, each activation at the rate that suits it best.

``python -m alexnet2012.relu DIR`` reads sweeps of ``conf/experiment/relu_cifar10``, or any folder
of runs that differ in activation, rate and seed.
"""

from __future__ import annotations

import argparse
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

from omegaconf import OmegaConf
from rich.console import Console
from rich.table import Table

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import MIN_SEEDS, Measurement, Scale
from alexnet2012.ledger.results import Ablation, Arm
from alexnet2012.tracking.tracker import read_records
from alexnet2012.utils.metrics import mean_interval

THRESHOLD_PCT = 25.0  # paper fig. 1

Errors = list[float]  # training error of each epoch, per cent
# By rate and seed: every seed of a rate, so that a rate is not chosen for its luck.
Rates = dict[float, dict[int, Errors]]


def read_runs(run_dirs: Iterable[Path]) -> dict[str, Rates]:
    """Training errors by activation, rate and seed.

    Raises:
        ConfigError: there is not both of ReLU and tanh, or one run of two lengths.
    """
    found: dict[str, Rates] = defaultdict(lambda: defaultdict(dict))
    for run_dir in run_dirs:
        settings: Any = OmegaConf.to_container(OmegaConf.load(run_dir / "config.yaml"))
        epochs = [r for r in read_records(run_dir / "metrics.jsonl") if r["kind"] == "epoch"]
        errors = [record["train_error_pct"] for record in epochs]
        activation, rate, seed = (
            settings["model"]["activation"],
            settings["schedule"]["rate"],
            settings["seed"],
        )
        if seed in found[activation][rate]:
            twice = f"{activation} at rate {rate:g}, seed {seed}"
            raise ConfigError("runs", run_dir, f"is the second of {twice}; take one sweep's folder")
        found[activation][rate][seed] = errors
    if missing := {"relu", "tanh"} - found.keys():
        remedy = "must hold finished runs of model.activation=relu and of tanh"
        raise ConfigError("runs", f"without {min(missing)}", remedy)
    return {activation: dict(rates) for activation, rates in found.items()}


def epochs_to(errors: Errors, threshold_pct: float = THRESHOLD_PCT) -> float | None:
    """Epochs until the training error is at most the threshold; None: it never was."""
    reached = [i + 1 for i, error in enumerate(errors) if error <= threshold_pct]
    return float(reached[0]) if reached else None


def best_rate(rates: Rates) -> float:
    """The rate whose seeds are there soonest in the mean, then lowest at the end."""

    def slowness(rate: float) -> tuple[float, float]:
        runs = rates[rate].values()
        reached = [epochs_to(errors) for errors in runs]
        mean = math.inf if None in reached else fmean(e for e in reached if e is not None)
        return mean, fmean(errors[-1] for errors in runs)

    return min(rates, key=slowness)


def best_rates(found: Mapping[str, Rates]) -> dict[str, float]:
    """The best rate of each activation."""
    return {activation: best_rate(rates) for activation, rates in found.items()}


def rates_beyond(found: Mapping[str, Rates], tried: Mapping[str, set[float]]) -> dict[str, float]:
    """By activation, the double or half of its best rate where nothing beyond that was tried yet.

    One that was tried and not found has failed, as a rate that is far too high does.
    """
    beyond = {}
    for activation, best in best_rates(found).items():
        if best == max(tried[activation]):
            beyond[activation] = 2 * best
        elif best == min(tried[activation]):
            beyond[activation] = best / 2
    return beyond


def relu_ablation(found: Mapping[str, Rates], command: str) -> Ablation:
    """Curves of each activation at its best rate, of the mean or the first seed."""
    arms = []
    seeds = 0
    for activation in ("relu", "tanh"):
        rate = best_rate(found[activation])
        runs = found[activation][rate]
        seeds = len(runs)
        # Runs that stop at the threshold have lengths of their own: then the first seed is shown.
        alike = len({len(errors) for errors in runs.values()}) == 1
        shown = list(runs.values()) if alike else [runs[min(runs)]]
        mean = [fmean(errors) for errors in zip(*shown, strict=True)]
        arms.append(
            Arm(
                label=f"{activation}, rate {rate:g}",
                epochs=[float(i + 1) for i in range(len(mean))],
                train_error_pct=mean,
                epochs_to_threshold=epochs_to(mean),
            )
        )
    return Ablation(
        name="relu",
        title="ReLU against tanh",
        arms=arms,
        threshold_pct=THRESHOLD_PCT,
        n_seeds=seeds,
        note="Each activation at the best of its rates; no regularisation.",
        command=command,
    )


def relu_measurement(
    found: Mapping[str, Rates], scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """How many times sooner ReLU reaches the training error, seed by seed.

    Raises:
        ConfigError: the two have no seed in common.
    """
    relu, tanh = (found[name][best_rate(found[name])] for name in ("relu", "tanh"))
    seeds = sorted(relu.keys() & tanh.keys())
    if not seeds:
        seeds_of = f"relu has {sorted(relu)}, tanh {sorted(tanh)}"
        raise ConfigError("runs", seeds_of, "have no seed in common; train the same of both")
    sooner, at_least = [], False
    for seed in seeds:
        with_relu, with_tanh = epochs_to(relu[seed]), epochs_to(tanh[seed])
        if with_relu is None:
            return Measurement(
                claim="relu",
                value=f"ReLU did not reach {THRESHOLD_PCT:g}% in {len(relu[seed])} epochs",
                scale=scale,
                command=command,
                caveat=caveat,
                n_seeds=len(seeds),
            )
        at_least |= with_tanh is None
        sooner.append((with_tanh or len(tanh[seed])) / with_relu)
    ratio, low, high = mean_interval(sooner)
    interval, around, agrees = None, "", None
    if low is not None and high is not None:
        of_bound = "of the bound " if at_least else ""
        interval, around = (low, high), f" ({of_bound}95% {low:.1f} to {high:.1f})"
        if len(seeds) >= MIN_SEEDS and not low <= 1 <= high:
            agrees = low > 1
    return Measurement(
        claim="relu",
        value=f"{'more than ' if at_least else ''}{ratio:.1f} ×{around}: "
        f"{_told(relu, seeds)} epochs with ReLU, {_told(tanh, seeds)} with tanh",
        scale=scale,
        command=command,
        numbers={"ratio_at_least" if at_least else "ratio": ratio},
        caveat=caveat,
        n_seeds=len(seeds),
        interval=interval,
        agrees=agrees,
        agreement_note="whether ReLU is sooner at all; the paper has 6 ×",
    )


def _told(runs: Mapping[int, Errors], seeds: list[int]) -> str:
    """The epochs of each seed, or how long it was tried for."""
    reached = [epochs_to(runs[seed]) for seed in seeds]
    return ", ".join(
        f"over {len(runs[seed])}" if epochs is None else f"{epochs:.0f}"
        for seed, epochs in zip(seeds, reached, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m alexnet2012.relu",
        description="Epochs to 25% training error, ReLU against tanh.",
    )
    parser.add_argument("directory", type=Path, metavar="DIR", help="of runs, at any depth")
    arguments = parser.parse_args()
    try:
        found = read_runs(file.parent for file in sorted(arguments.directory.rglob("summary.json")))
        measured = relu_measurement(found, Scale.reduced, "as the runs say", "…")
    except ConfigError as error:
        parser.error(str(error))
    table = Table(title=f"epochs to {THRESHOLD_PCT:g}% training error, by seed")
    for heading in ("activation", "rate", "epochs", "error at the end, %"):
        table.add_column(heading, justify="right")
    for activation, rates in found.items():
        for rate, runs in sorted(rates.items()):
            last = fmean(errors[-1] for errors in runs.values())
            table.add_row(activation, f"{rate:g}", _told(runs, sorted(runs)), f"{last:.1f}")
    Console().print(table)
    Console().print(measured.value)


if __name__ == "__main__":
    main()
