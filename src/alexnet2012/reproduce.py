"""The reproduction: ``make reproduce``, or ``python -m alexnet2012.reproduce [source=FOLDER] …``.

From pictures to ``report.html`` and ``ledger.json``. Every training is a Hydra run of its own
under ``OUT/runs``; a part that fails is named in the report and the others go on.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from rich.console import Console

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError, EvaluateConfig, ReproduceConfig, RunError
from alexnet2012.distributed.launch import launch
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger import (
    ablations as effects,
)
from alexnet2012.ledger import (
    exactness,
    pretraining,
    relu_sweep,
)
from alexnet2012.ledger import (
    measurements as experiments,
)
from alexnet2012.ledger.ablations import Sweep
from alexnet2012.ledger.claims import Measurement, Scale, arms_of
from alexnet2012.ledger.ensembles import seed_measurements
from alexnet2012.ledger.nearest_neighbours import look_alike
from alexnet2012.ledger.provenance import command_of, provenance
from alexnet2012.ledger.relu_vs_tanh import read_runs, relu_ablation, relu_measurement
from alexnet2012.ledger.report.render import write_report
from alexnet2012.ledger.results import Exactness, Reproduction, save_reproduction
from alexnet2012.ledger.sweeps import Sweeps

RECIPES = ("paper", "code145")
# By name: what is printed before it, and the method that does it.
PARTS = {
    "audit": "counting the architecture",
    "exactness": "two processes against one, float64, full size",
    "full_size": "the full-size net, a hundred steps of either recipe",
    "reduced": "a reduced net, until it has learnt something",
    "relu": "ReLU against tanh",
    "lrn_cifar10": "the four-layer net without normalisation",
    "effects": "without one thing at a time",
    "pretrain": "pretraining on more classes",
}
RELU_RATES = (0.002, 0.01)
NET_OF_CIFAR10 = (
    "a four-layer net named after 18%, on whole pictures; the nets of 13% and 11% have layers of "
    "unshared kernels and learn from crops"
)
EXACTNESS_STEPS = 3


class Reproduce:
    """The parts of a reproduction, in order; each fills in what the report shows of it."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self.out = Path(config.out).expanduser().absolute()
        self.console = Console()
        self.command = command_of(config)
        self.measurements: list[Measurement] = []
        self.found: Reproduction = {"warnings": [], "exactness": [], "evaluation": [], "runs": {}}
        self.found["ablations"] = []

    def run(self) -> int:
        """Everything; returns how many parts failed."""
        began = time.perf_counter()
        self._part("preparing the pictures", self.prepare, needed=True)
        sweeps = self.sweeps
        self.found["provenance"] = provenance(
            sweeps.pictures, self.command, sweeps.seeds, sweeps.data_caveat
        )
        for name in dict.fromkeys(self.config.parts or PARTS):
            self._part(PARTS[name], getattr(self, name))
        self.found["warnings"] += sweeps.warnings
        self.found["measurements"] = [m.to_json() for m in self.measurements]
        save_reproduction(self.found, self.out)
        report = write_report(self.found, self.out)
        self.console.print(f"ledger: {self.out / 'ledger.json'}", soft_wrap=True)
        self.console.print(f"report: {report}", soft_wrap=True)
        minutes = (time.perf_counter() - began) / 60
        self.console.print(f"took {minutes:.1f} minutes")
        return len(self.found["warnings"])

    def prepare(self) -> None:
        """The first store, so that a source that cannot be used is told before any work."""
        budget = self.config.budget
        reads = {
            "lrn_cifar10": f"lrn_cifar10/{budget}",
            "full_size": "quick/full_size",
            "relu": "quick/relu" if budget is Budget.quick else "relu_cifar10/rates",
            "effects": f"effects/{budget}",
            "pretrain": f"pretrain/{budget}",
        }
        first = (reads[part] for part in self.config.parts if part in reads)
        self.sweeps = Sweeps(self.config, self.out, next(first, "quick/reduced"))
        # Quick runs of an earlier reproduction would be mistaken for this one's. Those that take
        # hours are kept: a run that was finished with the same settings is recognised.
        runs = self.out / "runs"
        of_sweeps = runs.glob(f"*/{Budget.quick}") if budget is Budget.quick else ()
        for earlier in (runs / "quick", *of_sweeps):
            shutil.rmtree(earlier, ignore_errors=True)

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
        command = self.sweeps.train(
            "quick/full_size", [f"recipe={','.join(RECIPES)}", f"max_steps={steps}"]
        )
        classes = len(self.sweeps.pictures.classes)
        config = f"full-size net, 224 pixels, batch 32, rate .01, seed {self.config.seed}"
        paper, code = (
            experiments.read_run(
                self.sweeps.runs("quick/full_size")[i], recipe, config, command, classes
            )
            for i, recipe in enumerate(RECIPES)
        )
        for arm in (paper, code):
            arm["note"] = experiments.off_chance_note(arm)
        self.found["runs"]["full_paper"], self.found["runs"]["full_code145"] = paper, code
        summary = experiments.read_summary(self.sweeps.runs("quick/full_size")[1])
        self.found["exchanges"] = experiments.expected_exchanges(summary, classes)
        caveat = self.sweeps.caveat(f"{steps} steps of batch 32")
        machine = self.found["provenance"]
        on_gpu = summary["device"].startswith("cuda")
        hardware = machine["gpu"] if on_gpu and machine["gpu"] else machine["cpu"]
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
            f"checkpoint.every_epochs={epochs}",
        ]
        if self.config.pictures_per_class is not None:
            overrides.append(f"data.limit={self.config.pictures_per_class}")
        command = self.sweeps.train("quick/reduced", overrides)
        (run_dir,) = self.sweeps.runs("quick/reduced")
        store = self.sweeps.store("quick/reduced")
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
        caveat = self.sweeps.caveat(
            f"a net of a quarter of the kernels on 112 pixels, {epochs} epochs"
        )
        kernels = load_trained(run_dir).model.layers()["conv1"].weight.detach()
        self.found["kernels"] = kernels
        self.found["kernels_caption"] = f"conv1 of the reduced net after {epochs} epochs."
        self.found["lookalikes"], self.found["pictures"], likeness = look_alike(
            run_dir, Scale.reduced, caveat, command
        )
        self.measurements += [
            experiments.data_measurement(store, caveat, command),
            experiments.error_measurement(self.found["evaluation"][-1], caveat, command),
            likeness,
        ]

    def relu(self) -> None:
        if self.sweeps.has_cifar10:
            runs, published = relu_sweep.train(self.sweeps), self.config.source == "cifar10"
            scale = Scale.full if published else Scale.reduced
            caveat = None if published else self.sweeps.data_caveat
            self._compare_activations(runs, self.command, scale, caveat)
            return
        epochs = self.config.relu_epochs
        rates = ",".join(map(str, RELU_RATES))
        command = self.sweeps.train(
            "quick/relu",
            [
                "model.activation=relu,tanh",
                f"schedule.rate={rates}",
                f"schedule.epochs={epochs}",
                f"eval_every_epochs={epochs}",
            ],
        )
        caveat = self.sweeps.caveat("an eighth of AlexNet on 64 pixels instead of a four-layer net")
        self._compare_activations(self.sweeps.runs("quick/relu"), command, Scale.reduced, caveat)

    def _compare_activations(
        self, runs: Sequence[Path], command: str, scale: Scale, caveat: str | None
    ) -> None:
        found = read_runs(runs)
        self._ran_at(PARTS["relu"], (experiments.read_summary(run)["commit"] for run in runs))
        self.found["ablations"].append(relu_ablation(found, command))
        self.measurements.append(relu_measurement(found, scale, caveat, command))

    def lrn_cifar10(self) -> None:
        budget = self.config.budget if self.sweeps.has_cifar10 else Budget.quick
        runs, command = self._ablated("lrn_cifar10", budget)
        found = effects.effects(runs)
        self._ran_at("lrn-cifar10", (one.commit for arm in runs.values() for one in arm.values()))
        title = "The four-layer net with normalisation and without"
        self.found["cifar10_effects"] = found
        self.found["ablations"].append(effects.ablation(runs, "lrn-cifar10", title, command))
        what = f"{NET_OF_CIFAR10}; {effects.described(runs)}"
        caveat = self.sweeps.caveat(what, f"{len(self.sweeps.seeds)} seeds")
        self.measurements += effects.effect_measurements(found, Scale.reduced, caveat, command)

    def _ablated(self, sweep: str, budget: Budget) -> tuple[Sweep, str]:
        """The runs of every ablation that claims take of a sweep, and what repeats them."""
        experiment = f"{sweep}/{budget}"
        arms = (effects.BASE, *arms_of(sweep))
        command = self.sweeps.train(experiment, [f"ablation={','.join(arms)}"], self.sweeps.seeds)
        runs = effects.read_sweep(self.sweeps.directory(experiment), self.sweeps.seeds)
        return {arm: runs[arm] for arm in arms if arm in runs}, command

    def _ran_at(self, what: str, commits: Iterable[str]) -> None:
        """Sweeps are taken up again, by later code, too."""
        extra = self.found["provenance"].setdefault("extra", {})
        extra[f"{what} ran at"] = ", ".join(sorted(set(commits)))

    def effects(self) -> None:
        runs, command = self._ablated("effects", self.config.budget)
        directory = self.sweeps.directory(f"effects/{self.config.budget}")
        found = effects.effects(runs)
        self.found["effects"], self.found["effects_caption"] = found, effects.described(runs)
        self.found["learning_curves"] = effects.learning_curves(runs)
        self._ran_at("Effects", (one.commit for arm in runs.values() for one in arm.values()))
        how = (*self.sweeps.scale(effects.described(runs)), command)
        measured = effects.effect_measurements(found, *how)
        measured += seed_measurements(directory, *how, self.sweeps.seeds)
        self.measurements += map(self.sweeps.of_its_edition, measured)

    def pretrain(self) -> None:
        experiment = f"pretrain/{self.config.budget}"
        arms = f"ablation={pretraining.MORE},{pretraining.WITHOUT},{pretraining.WITH}"
        command = self.sweeps.train(experiment, [arms], self.sweeps.seeds)
        self.measurements += pretraining.pretrain_measurements(
            self.sweeps.directory(experiment),
            Scale.reduced,  # at every budget: neither source's classes are all there
            self.sweeps.caveat("five classes", f"{len(self.sweeps.seeds)} seeds"),
            command,
            self.sweeps.seeds,
        )

    def _part(self, title: str, work: Callable[[], None], *, needed: bool = False) -> None:
        """One part, timed; what it fails of goes to the report unless nothing works without it."""
        self.console.rule(f"[bold]{title}", align="left")
        began = time.perf_counter()
        try:
            work()
        except Exception as error:  # the other parts may have taken hours
            if needed:
                raise
            told = str(error)
            if not isinstance(error, (ConfigError, RunError, subprocess.CalledProcessError)):
                traceback.print_exc()
                told = f"{type(error).__name__}: {error}"
            self.found["warnings"].append(f"{title}: {told}")
            self.console.print(f"failed: {told}", style="red", markup=False)
        self.console.print(f"{time.perf_counter() - began:.0f} s", style="dim")


def run(config: ReproduceConfig, run_dir: Path) -> None:
    if unknown := [name for name in config.parts if name not in PARTS]:
        raise ConfigError("parts", unknown[0], f"must be some of {', '.join(PARTS)}")
    failed = Reproduce(config).run()
    if failed:
        raise RunError(f"{failed} part(s) failed; see the report's warnings")


def main() -> None:
    hydra_main("reproduce", ReproduceConfig, run)


if __name__ == "__main__":
    main()
