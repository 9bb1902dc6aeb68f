"""Sweeps of a reproduction: stores, runs, caveats, and the commands that repeat them."""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

from alexnet2012.config.compose import compose_config, quoted
from alexnet2012.config.enums import NAMED_SOURCES, Budget
from alexnet2012.config.renamed import FORMER_EXPERIMENTS
from alexnet2012.config.schema import ConfigError, PrepareConfig, ReproduceConfig, TrainConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.distributed.launch import die_with_parent
from alexnet2012.ledger.claims import Measurement, Scale, load_claims

CIFAR10_CLASSES = {
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


class Sweeps:
    """Trains the experiments of one reproduction, each as a Hydra sweep in child processes."""

    def __init__(self, config: ReproduceConfig, out: Path, first: str) -> None:
        self.config, self.out = config, out
        self.warnings: list[str] = []
        self.store_of_report = self.store(first)  # the report describes the first experiment's

    def store(self, experiment: str) -> Store:
        """The store that an experiment reads; prepared if it does not exist."""
        size = store_size(experiment)
        name = source = self.config.source
        if source not in NAMED_SOURCES:  # directory names may repeat, so the path's hash follows
            path = Path(source).expanduser().resolve()
            name = f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"
        store = self.out / "stores" / f"{name}-{size}"
        return prepare(PrepareConfig(source=source, store=str(store), size=size))

    def train(
        self,
        experiment: str,
        overrides: Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        warn: bool = True,
    ) -> str:
        """Train every combination of the overrides and seeds; returns the command.

        Finished runs are kept, so the same call continues an interrupted sweep. Failed runs raise
        CalledProcessError; with ``seeds`` they only become a warning, if ``warn``.
        """
        store = self.store(experiment)
        for file in self.directory(experiment).rglob("summary.json"):
            summary = json.loads(file.read_text(encoding="utf-8"))
            if summary.get("store_fingerprint", store.fingerprint) != store.fingerprint:
                remedy = f"{file.parent} was trained on other images; choose another directory"
                raise ConfigError("out", self.out, remedy)
        arguments = [
            f"experiment={experiment}",
            f"seed={','.join(map(str, seeds or [self.config.seed]))}",
            *overrides,
        ]
        sweep_dir = f"hydra.sweep.dir={quoted(self.directory(experiment))}"
        paths = ["data=store", f"data.store={quoted(store.root)}", sweep_dir]
        try:
            _run_child([sys.executable, "-m", "alexnet2012.train", "-m", *arguments, *paths])
        except subprocess.CalledProcessError as error:
            if seeds is None:
                raise
            if warn:
                self.warnings.append(f"{experiment}: some runs failed: {error}")
        source = self.config.source
        if source != "photos":
            shown = source if source in NAMED_SOURCES else f"PATH/{Path(source).name}"
            arguments += ["data=folder", f"data.source={shown}"]
        return f"python -m alexnet2012.train -m {shlex.join(arguments)}"

    def directory(self, experiment: str) -> Path:
        """Where an experiment's runs are; an earlier version's directory is continued."""
        directory = self.out / "runs" / experiment
        former = self.out / "runs" / FORMER_EXPERIMENTS.get(experiment, experiment)
        return former if former.is_dir() and not directory.is_dir() else directory

    def runs(self, experiment: str) -> list[Path]:
        """The numbered run directories of an experiment, in order."""
        numbered = (path for path in self.directory(experiment).iterdir() if path.name.isdigit())
        return sorted(numbered, key=lambda path: int(path.name))

    @property
    def seeds(self) -> list[int]:
        """The seeds of paired runs."""
        # Two seeds only show the form of the results; a verdict needs more.
        count = self.config.seeds or (2 if self.config.budget is Budget.quick else 5)
        return [self.config.seed + index for index in range(count)]

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


def _run_child(command: Sequence[str]) -> None:
    """Run a training; it and its workers end with this process, whatever ends it."""
    with subprocess.Popen(command, preexec_fn=die_with_parent) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, shlex.join(command))
