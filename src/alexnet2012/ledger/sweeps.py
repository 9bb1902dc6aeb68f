"""Sweeps of a reproduction: stores, the order of their runs, seeds, learning rates and caveats.

Each run is a child process that composes its own settings; finished runs are kept, so the same call
continues an interrupted sweep.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import shlex
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from statistics import fmean
from subprocess import CalledProcessError

from alexnet2012.config.compose import compose_config, quoted
from alexnet2012.config.enums import NAMED_SOURCES, Budget
from alexnet2012.config.renamed import FORMER_EXPERIMENTS
from alexnet2012.config.schema import ConfigError, PrepareConfig, ReproduceConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.ledger.claims import Measurement, Scale, ablations_of, load_claims
from alexnet2012.ledger.measurements.training_runs import read_summary
from alexnet2012.ledger.statistics import finished_runs
from alexnet2012.ledger.training_pool import LOG, core_shares, run_all

CIFAR10_CLASSES = {
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}
SEEDS = {Budget.quick: 2, Budget.reduced: 8, Budget.gpu: 3, Budget.full: 5}
SEARCHED_RATES = (0.5, 1.0, 2.0)
FIRST_RATE_SEED = 1000  # rates are chosen on other seeds than the measurements are made with

# Ablations that no claim is about, but that claims are checked by.
CONTROLS = {
    "ablations": ("lrn_alpha0", "no_dropout_no_crops"),
    "lrn_cifar10": (),
}
PRETRAINING_ARMS = (  # the first is the control
    "few_classes_equal_steps",
    "few_classes",
    "none,pretrained",
    "other_classes,pretrained_other",
)


class Sweeps:
    """Trains the experiments of one reproduction, in child processes."""

    def __init__(self, config: ReproduceConfig, out: Path, first: str) -> None:
        self.config, self.out = config, out
        self.core_shares, self.log = core_shares(config.jobs), out / "runs" / LOG
        self.warnings: list[str] = []
        self.store_of_report = self.store(first)  # the report describes the first experiment's

    def store(self, experiment: str) -> Store:
        """The store that an experiment reads; prepared if it does not exist."""
        size = store_size(experiment)
        name = source = self.config.source
        if source not in NAMED_SOURCES:  # directory names may repeat, so the path's hash follows
            path = Path(source).resolve()
            name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        store = self.out / "stores" / f"{name}-{size}"
        return prepare(PrepareConfig(source=source, store=str(store), size=size))

    def train(self, experiment: str, overrides: Sequence[str]) -> str:
        """Train every combination of the overrides in one child process; returns the command.

        Failed runs raise CalledProcessError.
        """
        given = [f"seed={self.config.seed}", *overrides]
        (command,) = self._commands(experiment, [given], self.directory(experiment))
        if run_all([command], [frozenset()], self.log):
            raise CalledProcessError(1, shlex.join(command))
        arguments = [f"experiment={experiment}", *self.config.overrides, *given]
        source = self.config.source
        if source != "photos":
            shown = source if source in NAMED_SOURCES else f"PATH/{Path(source).name}"
            arguments += ["data=folder", f"data.source={shown}"]
        return f"python -m alexnet2012.train -m {shlex.join(arguments)}"

    def train_each(
        self,
        experiment: str,
        runs: Sequence[Sequence[str]],
        directory: Path | None = None,
        *,
        warn: bool = True,
    ) -> None:
        """Train runs, given by their overrides, in this order, ``jobs`` of them at a time.

        Runs that fail only become a warning, if ``warn``.
        """
        commands = self._commands(experiment, runs, directory or self.directory(experiment))
        failed = run_all(commands, self.core_shares, self.log)
        if failed and warn:
            self.warnings.append(f"{experiment}: {len(failed)} of {len(commands)} runs failed")

    def train_ablations(self, experiment: str, arms: Sequence[str]) -> None:
        """Train ablations over their seeds, each at the learning rate chosen for it.

        The first is the control, which has more seeds. Several names in one arm, separated by
        commas, are trained one after the other: each may start from the one before.
        """
        factors = self.choose_rates(experiment, arms)
        order = seed_major(arms, self.seeds, self.control_seeds(len(arms) - 1))
        self.train_each(experiment, [_run(arm, seed, factors[arm]) for arm, seed in order])

    def choose_rates(self, experiment: str, arms: Sequence[str]) -> dict[str, float]:
        """The factor of each arm's learning rates with the lowest mean validation error.

        Factors are compared on seeds of their own. A factor with a failed run counts as too high.
        """
        factors = self.rate_factors
        if len(factors) == 1:
            return dict.fromkeys(arms, factors[0])
        first = self.config.seed + FIRST_RATE_SEED
        seeds = range(first, first + self.config.rate_seeds)
        errors: dict[str, dict[float, float]] = {arm: {} for arm in arms}
        for factor in factors:
            runs = [_run(arm, seed, factor) for arm, seed in seed_major(arms, seeds, seeds)]
            directory = self.rate_directory(experiment, factor)
            self.train_each(experiment, runs, directory, warn=False)
            for arm in arms:
                runs_of_arm = finished_runs(directory, arm.rpartition(",")[2], seeds).values()
                top1 = [read_summary(run)["top1_error_pct"] for run in runs_of_arm]
                complete = len(top1) == len(seeds)
                errors[arm][factor] = fmean(top1) if complete else math.inf
        return {arm: best_factor(by_factor) for arm, by_factor in errors.items()}

    @property
    def rate_factors(self) -> Sequence[float]:
        """The factors of the learning rates that are tried for each arm."""
        searched = self.config.budget in (Budget.reduced, Budget.gpu)
        return self.config.rate_factors or (SEARCHED_RATES if searched else (1.0,))

    def rate_directory(self, experiment: str, factor: float) -> Path:
        """Where the runs at one factor of the learning rates are: a sweep of its own."""
        directory = self.directory(experiment)
        return directory.with_name(f"{directory.name}-rates") / f"{factor:g}"

    def _commands(
        self, experiment: str, runs: Sequence[Sequence[str]], directory: Path
    ) -> list[list[str]]:
        """The command of each run; ConfigError if the directory has runs on other images."""
        store = self.store(experiment)
        for file in directory.rglob("summary.json"):
            summary = json.loads(file.read_text(encoding="utf-8"))
            if summary.get("store_fingerprint", store.fingerprint) != store.fingerprint:
                remedy = f"{file.parent} was trained on other images; choose another directory"
                raise ConfigError("out", self.out, remedy)
        train = [sys.executable, "-m", "alexnet2012.train", "-m", f"experiment={experiment}"]
        paths = ["data=store", f"data.store={quoted(store.root)}"]
        paths.append(f"hydra.sweep.dir={quoted(directory)}")
        return [[*train, *self.config.overrides, *overrides, *paths] for overrides in runs]

    def directory(self, experiment: str) -> Path:
        """Where an experiment's runs are; an earlier version's directory is continued."""
        names = [former for former, name in FORMER_EXPERIMENTS.items() if name == experiment]
        directory, *former = (self.out / "runs" / name for name in (experiment, *names))
        existing = [path for path in (directory, *former) if path.is_dir()]
        return existing[0] if existing else directory

    def runs(self, experiment: str) -> list[Path]:
        """The numbered run directories of an experiment, in order."""
        numbered = (path for path in self.directory(experiment).iterdir() if path.name.isdecimal())
        return sorted(numbered, key=lambda path: int(path.name))

    @property
    def seeds(self) -> list[int]:
        """The seeds of each ablation."""
        count = self.config.seeds or SEEDS[self.config.budget]
        return [self.config.seed + index for index in range(count)]

    def control_seeds(self, arms: int) -> list[int]:
        """Those of the baseline, which every ablation is compared with: √k times as many."""
        count = self.config.control_seeds or round(math.sqrt(arms) * len(self.seeds))
        return [self.config.seed + index for index in range(max(count, len(self.seeds)))]

    @property
    def runs_cifar10(self) -> bool:
        """Whether the budget and the data allow the paper's CIFAR-10 experiments."""
        quick = self.config.budget is Budget.quick
        return not quick and set(self.store_of_report.classes) == CIFAR10_CLASSES

    def scale(self, network: str) -> tuple[Scale, str | None]:
        """Scale and caveat of the ablations."""
        if self.config.budget is Budget.full and edition_of(self.store_of_report) is not None:
            return Scale.full, None
        return Scale.reduced, self.caveat(network, f"{len(self.seeds)} seeds")

    def for_edition(self, measurement: Measurement) -> Measurement:
        """Reduce the scale of a measurement whose claim is about another edition of ILSVRC."""
        (claim,) = (claim for claim in load_claims() if claim.id == measurement.claim)
        edition = edition_of(self.store_of_report)
        if measurement.scale is not Scale.full or claim.edition in (None, edition):
            return measurement
        caveat = f"The claim is about ILSVRC-{claim.edition}, but the data are ILSVRC-{edition}."
        return replace(measurement, scale=Scale.reduced, caveat=caveat)

    def caveat(self, setup: str, seeds: str = "one seed") -> str:
        """The caveat of a reduced measurement."""
        return f"Reduced scale: {setup}; {seeds}. {self.data_caveat}"

    @property
    def data_caveat(self) -> str:
        return f"{self.store_of_report.description} {self.config.caveat}".strip()


@cache
def store_size(experiment: str) -> int:
    """Pixels a side of the store that an experiment reads (its ``data.store_size``)."""
    config, _ = compose_config("train", TrainConfig, [f"experiment={experiment}"])
    return config.data.store_size


def edition_of(store: Store) -> int | None:
    """Edition of ILSVRC, by the classes and the number of training images; None: other data."""
    images = len(store.split("train").labels)
    wordnet_ids = all(re.fullmatch(r"n\d{8}", name) for name in store.classes)
    # paper section 2: 1,000 classes, 1.2 million training images
    if not wordnet_ids or len(store.classes) != 1000 or images < 1_200_000:
        return None
    return 2010 if images < 1_270_000 else 2012  # 1,261,406 and 1,281,167


def arms_of(sweep: str) -> list[str]:
    """The ablations that the claims of a sweep and their controls need, each once."""
    return list(dict.fromkeys((*ablations_of(sweep), *CONTROLS[sweep])))


def seed_major(
    arms: Sequence[str], seeds: Sequence[int], control_seeds: Sequence[int]
) -> list[tuple[str, int]]:
    """All arms, the first of which is the control, seed by seed; then its other seeds.

    An interrupted sweep then has as many seeds of one arm as of another.
    """
    order = [(arm, seed) for seed in seeds for arm in arms]
    return order + [(arms[0], seed) for seed in control_seeds if seed not in seeds]


def best_factor(errors: Mapping[float, float]) -> float:
    """The factor with the lowest error; of equal ones the one nearest to 1."""
    return min(errors, key=lambda factor: (errors[factor], abs(math.log(factor))))


def _run(arm: str, seed: int, rate_factor: float) -> list[str]:
    factor = [] if rate_factor == 1 else [f"schedule.rate_factor={rate_factor:g}"]
    return [f"seed={seed}", f"ablation={arm}", *factor]
