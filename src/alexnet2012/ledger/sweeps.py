"""The sweeps of a reproduction: their stores, their runs, and what repeats and limits them."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet2012.config.compose import quoted
from alexnet2012.config.enums import NAMED_SOURCES, Budget
from alexnet2012.config.schema import ConfigError, PrepareConfig, ReproduceConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.store import Store
from alexnet2012.distributed.launch import die_with_parent
from alexnet2012.ledger.claims import Measurement, Scale, load_claims
from alexnet2012.ledger.provenance import source_name

# Pixels of the store that an experiment reads.
SIZES = {
    "quick/full_size": 256,
    "quick/reduced": 128,
    "quick/relu": 72,
    "lrn_cifar10/quick": 72,
    **dict.fromkeys(("relu_cifar10/rates", "relu_cifar10/epochs"), 32),
    **dict.fromkeys(("lrn_cifar10/reduced", "lrn_cifar10/full"), 32),
    **dict.fromkeys(("effects/quick", "effects/reduced", "pretrain/quick", "pretrain/reduced"), 72),
    **dict.fromkeys(("effects/full", "pretrain/full"), 256),
}
CIFAR10_CLASSES = {
    *("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
}


class Sweeps:
    """Trains the experiments of one reproduction, each a Hydra sweep in processes of its own.

    ``pictures`` is the store of the experiment that comes first.
    """

    def __init__(self, config: ReproduceConfig, out: Path, first: str) -> None:
        self.config, self.out = config, out
        self.warnings: list[str] = []
        self.pictures = self.store(first)

    def store(self, experiment: str) -> Store:
        """The store that an experiment reads, made unless it is there."""
        size = SIZES[experiment]
        store = self.out / "stores" / f"{source_name(self.config.source)}-{size}"
        return prepare(PrepareConfig(source=self.config.source, store=str(store), size=size))

    def train(
        self,
        experiment: str,
        overrides: Sequence[str],
        seeds: Sequence[int] | None = None,
        *,
        warn: bool = True,
    ) -> str:
        """Train every combination of the overrides, and of the seeds; returns what repeats it.

        Raises:
            CalledProcessError: a run failed. With ``seeds`` that is a warning, or without ``warn``
                for the caller to tell: what did end is compared all the same, and the same command
                tries the others again.
            ConfigError: runs on other pictures lie there, which would be taken for these.
        """
        store = self.store(experiment)
        for summary in self.directory(experiment).rglob("summary.json"):
            found = json.loads(summary.read_text(encoding="utf-8"))
            if found.get("store_fingerprint", store.fingerprint) != store.fingerprint:
                remedy = f"{summary.parent} was trained on other pictures; take another place"
                raise ConfigError("out", self.out, remedy)
        arguments = [
            f"experiment={experiment}",
            f"seed={','.join(map(str, seeds or [self.config.seed]))}",
            *overrides,
        ]
        where = [
            "data=store",
            f"data.store={quoted(store.root)}",
            f"hydra.sweep.dir={quoted(self.directory(experiment))}",
        ]
        try:
            _run_child([sys.executable, "-m", "alexnet2012.train", "-m", *arguments, *where])
        except subprocess.CalledProcessError as error:
            if seeds is None:
                raise
            if warn:
                self.warnings.append(f"{experiment}: not every run ended: {error}")
        if self.config.source != "photos":
            source = self.config.source
            shown = source if source in NAMED_SOURCES else f"PATH/{Path(source).name}"
            arguments += ["data=folder", f"data.source={shown}"]
        return f"python -m alexnet2012.train -m {shlex.join(arguments)}"

    def directory(self, experiment: str) -> Path:
        return self.out / "runs" / experiment

    def runs(self, experiment: str) -> list[Path]:
        """The run directories of an experiment that numbers them, in order."""
        numbered = (path for path in self.directory(experiment).iterdir() if path.name.isdigit())
        return sorted(numbered, key=lambda path: int(path.name))

    @property
    def seeds(self) -> list[int]:
        """Those of the paired runs."""
        # Two show the form; a verdict takes more.
        count = self.config.seeds or (2 if self.config.budget is Budget.quick else 5)
        return [self.config.seed + index for index in range(count)]

    @property
    def has_cifar10(self) -> bool:
        """Whether there are the time and the pictures for what the paper did on CIFAR-10."""
        quick = self.config.budget is Budget.quick
        return not quick and set(self.pictures.classes) == CIFAR10_CLASSES

    def scale(self, what: str) -> tuple[Scale, str | None]:
        """How far the paired runs go, and what to say of it."""
        full = self.config.budget is Budget.full and is_ilsvrc(self.pictures)
        seeds = f"{len(self.seeds)} seeds"
        return Scale.full if full else Scale.reduced, None if full else self.caveat(what, seeds)

    def of_its_edition(self, found: Measurement) -> Measurement:
        """A claim of one edition is not measured at full scale on the other's pictures."""
        (claim,) = (claim for claim in load_claims() if claim.id == found.claim)
        here = edition_of(self.pictures)
        if found.scale is not Scale.full or claim.edition in (None, here):
            return found
        caveat = f"The claim is of ILSVRC-{claim.edition}; these are the pictures of {here}."
        return replace(found, scale=Scale.reduced, caveat=caveat)

    def caveat(self, what: str, seeds: str = "one seed") -> str:
        return f"Reduced scale: {what}; {seeds}. {self.data_caveat}"

    @property
    def data_caveat(self) -> str:
        return f"{self.pictures.description} {self.config.caveat}".strip()


def edition_of(pictures: Store) -> int | None:
    """2010 or 2012, by the number of training pictures; None: not those of the challenge.

    Source: the challenge's own counts, 1,261,406 in 2010 and 1,281,167 in 2012.
    """
    if not is_ilsvrc(pictures):
        return None
    return 2010 if len(pictures.split("train").labels) < 1_270_000 else 2012


def is_ilsvrc(pictures: Store) -> bool:
    """Whether a store has the classes and at least about the pictures of the challenge.

    Source: paper section 2: 1,000 classes, 1.2 million training pictures.
    """
    ids = all(re.fullmatch(r"n\d{8}", name) for name in pictures.classes)
    return (
        ids and len(pictures.classes) == 1000 and len(pictures.split("train").labels) >= 1_200_000
    )


def _run_child(command: Sequence[str]) -> None:
    """Run a training to its end; whatever ends this process first ends it and its workers too."""
    with subprocess.Popen(command, preexec_fn=die_with_parent) as child:
        try:
            code = child.wait()
        except BaseException:
            child.terminate()
            child.wait()
            raise
    if code:
        raise subprocess.CalledProcessError(code, shlex.join(command))
