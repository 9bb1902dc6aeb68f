"""The reproduction: ``make reproduce``, or ``python -m alexnet2012.reproduce [source=FOLDER] …``.

From pictures to ``report.html`` and ``ledger.json``. Every training is a Hydra run of its own
under ``OUT/runs``; a part that fails is named in the report and the others go on.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import time
from collections.abc import Callable, Sequence
from datetime import date
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console

from alexnet2012 import effects, exactness, experiments, relu
from alexnet2012.choices import NAMED_SOURCES
from alexnet2012.claims import Measurement, Scale, load_claims
from alexnet2012.config import ConfigError, EvaluateConfig, PrepareConfig, ReproduceConfig, RunError
from alexnet2012.data.preparing import prepare
from alexnet2012.data.store import Store
from alexnet2012.evaluate import evaluate_checkpoints, load_trained
from alexnet2012.findings import Exactness, Provenance, Reproduction, save_reproduction
from alexnet2012.launcher import hydra_main, launch
from alexnet2012.machine import cpu_name, running_commit
from alexnet2012.report import write_report
from alexnet2012.sweeping import runs_of, sweep

RECIPES = ("paper", "code145")
# Pixels of the stores by experiment.
SIZES = {"quick/full_size": 256, "quick/reduced": 128, "quick/relu": 72, "effects/quick": 72}
ABLATIONS = (effects.BASE, *(arm for claim in load_claims() for arm in claim.arms))
RELU_RATES = (0.002, 0.01)
EXACTNESS_STEPS = 3


class Reproduce:
    """The parts of a reproduction, in order; each fills in what the report shows of it."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self.out = Path(config.out).absolute()
        self.console = Console()
        self.command = _command(config)
        self.stores: dict[str, Store] = {}
        self.measurements: list[Measurement] = []
        self.found: Reproduction = {"warnings": [], "exactness": [], "evaluation": [], "runs": {}}

    def run(self) -> int:
        """Everything; returns how many parts failed."""
        began = time.perf_counter()
        self._part("preparing the pictures", self.prepare, needed=True)
        self.found["provenance"] = self.provenance()
        self._part("counting the architecture", self.audit)
        self._part("two processes against one, float64, full size", self.exactness)
        self._part("the full-size net, a hundred steps of either recipe", self.full_size)
        self._part("a reduced net, until it has learnt something", self.reduced)
        self._part("ReLU against tanh", self.relu)
        self._part("without one thing at a time", self.effects)
        self.found["measurements"] = [m.to_json() for m in self.measurements]
        save_reproduction(self.found, self.out)
        report = write_report(self.found, self.out)
        self.console.print(f"ledger: {self.out / 'ledger.json'}", soft_wrap=True)
        self.console.print(f"report: {report}", soft_wrap=True)
        minutes = (time.perf_counter() - began) / 60
        self.console.print(f"took {minutes:.1f} minutes")
        return len(self.found["warnings"])

    def prepare(self) -> None:
        for name, size in SIZES.items():
            store = self.out / "stores" / f"{_source_name(self.config.source)}-{size}"
            self.stores[name] = prepare(
                PrepareConfig(source=self.config.source, store=str(store), size=size)
            )
        # Runs of an earlier reproduction in the same place would be mistaken for this one's.
        shutil.rmtree(self.out / "runs", ignore_errors=True)

    def audit(self) -> None:
        self.found["audit"], measurements = experiments.audit_measurements(self.command)
        self.measurements += measurements

    def exactness(self) -> None:
        for recipe in RECIPES:
            answer = self.out / f"exactness-{recipe}.json"
            launch(exactness.worker, 2, recipe, 1.0, EXACTNESS_STEPS, self.config.seed, answer)
            for row in json.loads(answer.read_text(encoding="utf-8")):
                self.found["exactness"].append(
                    Exactness(
                        quantity=row["quantity"],
                        recipe=recipe,
                        dtype="float64",
                        worst_relative_difference=row["worst_relative_difference"],
                        bound=exactness.BOUND,
                    )
                )
            answer.unlink()

    def full_size(self) -> None:
        steps = self.config.full_size_steps
        command = self._train(
            "quick/full_size", [f"recipe={','.join(RECIPES)}", f"max_steps={steps}"]
        )
        classes = len(self.stores["quick/full_size"].classes)
        config = f"full-size net, 224 pixels, batch 32, rate .01, seed {self.config.seed}"
        paper, code = (
            experiments.read_run(self._runs("quick/full_size")[i], recipe, config, command, classes)
            for i, recipe in enumerate(RECIPES)
        )
        for arm in (paper, code):
            arm["note"] = experiments.off_chance_note(arm)
        self.found["runs"]["full_paper"], self.found["runs"]["full_code145"] = paper, code
        summary = experiments.read_summary(self._runs("quick/full_size")[1])
        self.found["exchanges"] = experiments.expected_exchanges(summary, classes)
        caveat = self._caveat(f"{steps} steps of batch 32")
        hardware = self.found["provenance"]["cpu"]
        self.measurements += [
            experiments.recipe_measurement(paper, code, caveat, command),
            experiments.time_measurement(code, hardware, caveat, command),
        ]

    def reduced(self) -> None:
        epochs = self.config.reduced_epochs
        drop = max(1, round(0.8 * epochs))
        overrides = [
            f"schedule.epochs={epochs}",
            f"schedule.drops=[{{epoch: {drop}, rate: 0.001}}]",
            f"checkpoint_every_epochs={epochs}",
        ]
        if self.config.pictures_per_class is not None:
            overrides.append(f"data.limit={self.config.pictures_per_class}")
        command = self._train("quick/reduced", overrides)
        (run_dir,) = self._runs("quick/reduced")
        store = self.stores["quick/reduced"]
        config = f"¼ of the kernels, 112 pixels, code145, batch 32, seed {self.config.seed}"
        classes = len(store.classes)
        reduced = experiments.read_run(run_dir, "code145, reduced", config, command, classes)
        reduced["note"] = (
            "Initial standard deviations are 1/√width times the recipe's (twice, at a quarter of "
            "the kernels; conv1, which reads the image, keeps its own; fc6 makes up for its "
            "smaller maps too), so that signals keep the full net's size."
        )
        self.found["runs"]["reduced"] = reduced
        evaluation = EvaluateConfig(checkpoint=str(run_dir))
        for views in (1, 10):
            evaluation.views = views
            errors = evaluate_checkpoints(evaluation)
            self.found["evaluation"].append(experiments.evaluation_row(errors, views, classes))
        caveat = self._caveat(f"a net of a quarter of the kernels on 112 pixels, {epochs} epochs")
        kernels = load_trained(run_dir, evaluation).model.layers()["conv1"].weight.detach()
        self.found["kernels"] = kernels
        self.found["kernels_caption"] = f"conv1 of the reduced net after {epochs} epochs."
        self.measurements += [
            experiments.views_measurement(self.found["evaluation"], caveat, command),
            experiments.colour_measurement(kernels, caveat, command),
        ]

    def relu(self) -> None:
        epochs = self.config.relu_epochs
        rates = ",".join(map(str, RELU_RATES))
        command = self._train(
            "quick/relu",
            [
                "model.activation=relu,tanh",
                f"schedule.rate={rates}",
                f"schedule.epochs={epochs}",
                f"eval_every_epochs={epochs}",
            ],
        )
        found = relu.read_runs(self._runs("quick/relu"))
        self.found["ablations"] = [relu.relu_ablation(found, command)]
        caveat = self._caveat("an eighth of AlexNet on 64 pixels instead of a four-layer net")
        self.measurements.append(relu.relu_measurement(found, Scale.reduced, caveat, command))

    def effects(self) -> None:
        command = self._train(
            "effects/quick", [f"ablation={','.join(ABLATIONS)}"], self._effect_seeds
        )
        runs = effects.read_sweep(self.out / "runs" / "effects/quick")
        found = effects.effects(runs)
        self.found["effects"], self.found["effects_caption"] = found, effects.described(runs)
        caveat = self._caveat(effects.described(runs), "two seeds")
        self.measurements += effects.effect_measurements(found, Scale.reduced, caveat, command)

    def provenance(self) -> Provenance:
        store = self.stores["quick/reduced"]
        sources, dirty = running_commit()
        return Provenance(
            commit=sources,
            dirty=dirty,
            python=platform.python_version(),
            torch=torch.__version__,
            dali=version("nvidia-dali-cuda130"),
            cpu=cpu_name(),
            cores=len(os.sched_getaffinity(0)),
            gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
            date=date.today().isoformat(),
            command=self.command,
            seeds=self._effect_seeds,
            data_description=store.description,
            data_caveat=self._data_caveat(),
            classes=list(store.classes),
            store_fingerprint=store.fingerprint,
            processes=2,
        )

    def _part(self, title: str, work: Callable[[], None], *, needed: bool = False) -> None:
        """One part, timed; what it fails of goes to the report unless nothing works without it."""
        self.console.rule(f"[bold]{title}", align="left")
        began = time.perf_counter()
        try:
            work()
        except (
            ConfigError,
            RunError,
            subprocess.CalledProcessError,
            OSError,
            LookupError,
        ) as error:
            if needed:
                raise
            self.found["warnings"].append(f"{title}: {error}")
            self.console.print(f"failed: {error}", style="red", markup=False)
        self.console.print(f"{time.perf_counter() - began:.0f} s", style="dim")

    def _train(
        self, experiment: str, overrides: Sequence[str], seeds: Sequence[int] | None = None
    ) -> str:
        """Run a Hydra sweep of an experiment in its own processes; returns what repeats it."""
        store = self.stores[experiment]
        arguments = [
            f"experiment={experiment}",
            f"seed={','.join(map(str, seeds or [self.config.seed]))}",
            *overrides,
        ]
        sweep(arguments, store.root, self.out / "runs" / experiment)
        if self.config.source != "photos":
            source = self.config.source
            shown = source if source in NAMED_SOURCES else f"PATH/{Path(source).name}"
            arguments += ["data=folder", f"data.source={shown}"]
        return f"python -m alexnet2012.train -m {shlex.join(arguments)}"

    def _runs(self, experiment: str) -> list[Path]:
        return runs_of(self.out / "runs" / experiment)

    @property
    def _effect_seeds(self) -> list[int]:
        return [self.config.seed, self.config.seed + 1]  # two: this shows the form

    def _caveat(self, what: str, seeds: str = "one seed") -> str:
        return f"Reduced scale: {what}; {seeds}. {self._data_caveat()}"

    def _data_caveat(self) -> str:
        return f"{self.stores['quick/reduced'].description} {self.config.caveat}".strip()


def run(config: ReproduceConfig, run_dir: Path) -> None:
    failed = Reproduce(config).run()
    if failed:
        raise RunError(f"{failed} part(s) failed; see the report's warnings")


def _command(config: ReproduceConfig) -> str:
    """What repeats this reproduction; without ``out``, which changes no number."""
    default = ReproduceConfig()
    shown = {
        **vars(config),
        "source": Path(config.source).name,
    }  # where it lies is nobody's concern
    given = [
        f"{key}={value}"
        for key, value in shown.items()
        if key not in ("out", "caveat") and value != getattr(default, key)
    ]
    return shlex.join(["python", "-m", "alexnet2012.reproduce", *given])


def _source_name(source: str) -> str:
    """A name for stores of a source: two folders of one name are still two sources."""
    if source in NAMED_SOURCES:
        return source
    path = Path(source).expanduser().resolve()
    return f"{path.name}-{hashlib.sha256(str(path).encode()).hexdigest()[:8]}"


def main() -> None:
    hydra_main("reproduce", ReproduceConfig, run)


if __name__ == "__main__":
    main()
