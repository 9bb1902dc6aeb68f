"""The parts of a reproduction: which experiments they train, and what they add to the report.

Each training is a Hydra run in a process of its own, under ``OUT/runs``. A part that fails becomes
a warning in the report, and the other parts still run.
"""

from __future__ import annotations

import json
import os
import platform
import shlex
import shutil
import subprocess
import time
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import date
from importlib import resources
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console

from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError, EvaluateConfig, ReproduceConfig, RunError
from alexnet2012.distributed.launch import launch
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.evidence import Evidence, Sweep, save_evidence
from alexnet2012.ledger.measurements import (
    ablations,
    architecture,
    ensembles,
    exactness,
    pretraining,
    relu_vs_tanh,
    training_runs,
)
from alexnet2012.ledger.measurements.nearest_neighbours import figure4
from alexnet2012.ledger.registry import measure
from alexnet2012.ledger.report.committed import committed_evidence
from alexnet2012.ledger.report.render import write_report
from alexnet2012.ledger.results import Exactness, Provenance, Reproduction, save_reproduction
from alexnet2012.ledger.sweeps import PRETRAINING_ARMS, Sweeps, arms_of
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import count_layers
from alexnet2012.utils.environment import cpu_name, dali_package, running_commit
from alexnet2012.utils.files import os_error_line
from alexnet2012.utils.text import printable_lines, say


class Part(NamedTuple):
    title: str  # printed before it
    experiments: Mapping[Budget, Sequence[str]] = {}  # that it trains


def _each_budget(name: str) -> dict[Budget, Sequence[str]]:
    return {budget: [f"{name}/{budget}"] for budget in Budget}


RELU = {budget: [relu_vs_tanh.TRAINING] for budget in Budget}
RELU[Budget.quick] = ["relu/quick"]
LRN_CIFAR10 = _each_budget("lrn_cifar10")
LRN_CIFAR10[Budget.gpu] = LRN_CIFAR10[Budget.full]
PARTS = {  # in order; each is a method of Reproduce
    "audit": Part("parameters and neurons"),
    "exactness": Part("two processes compared with one, float64, full size"),
    "full_size": Part(
        "full-size network, a few steps with each recipe",
        dict.fromkeys(Budget, ("full_size/quick",)),
    ),
    "reduced": Part(
        "reduced network, trained until it has learnt", dict.fromkeys(Budget, ("reduced/quick",))
    ),
    "relu": Part("ReLU against tanh", RELU),
    "lrn_cifar10": Part("four-layer network without normalisation", LRN_CIFAR10),
    "ablations": Part("ablations", _each_budget("ablations")),
    "pretrain": Part("pretraining on other classes", _each_budget("pretrain")),
}
# Sweeps measure differences, which need seeds; a quick reproduction has none to spare.
QUICK_PARTS = ("audit", "exactness", "full_size", "reduced")
CIFAR10_PARTS = ("relu", "lrn_cifar10")  # the paper's experiments with a four-layer network
FORMER_PARTS = {"effects": "ablations"}
RECIPES = ("paper", "code145")
QUICK_RELU_RATES = "0.002,0.01"
CIFAR10_NETWORK = (
    "the four-layer network of cuda-convnet's 18% error, on whole images; its networks of 13% and "
    "11% have locally connected layers and train on crops"
)


class Reproduce:
    """Runs the parts of a reproduction in order; each adds its results to the report."""

    def __init__(self, config: ReproduceConfig) -> None:
        self.config = config
        self.parts = list(dict.fromkeys(FORMER_PARTS.get(name, name) for name in config.parts))
        if unknown := [name for name in self.parts if name not in PARTS]:
            raise ConfigError("parts", unknown[0], f"must be some of {', '.join(PARTS)}")
        folder = resources.files("alexnet2012.conf") / "ablation"
        if missing := [arm for arm in config.arms if not (folder / f"{arm}.yaml").is_file()]:
            raise ConfigError("arms", missing[0], "must be names of files in conf/ablation")
        self.out = Path(config.out).absolute()
        self.console = Console()
        self.command = command_of(config)
        self.measurements: list[Measurement] = []
        self.evidence: dict[str, Sweep] = {}  # by the name that a measuring function reads
        self.results: Reproduction = {"warnings": [], "exactness": [], "evaluation": [], "runs": {}}
        self.results["ablations"] = []

    def run(self) -> int:
        """Run all parts and write the report; returns the number of warnings."""
        start = time.perf_counter()
        self._part("preparing the data", self.prepare, needed=True)
        self.results["provenance"] = provenance(self.sweeps, self.command)
        for name in self.parts or default_parts(self.config.budget, self.sweeps):
            self._part(PARTS[name].title, getattr(self, name))
        self.results["warnings"] += self.sweeps.warnings
        # What a sweep measures replaces what a single run did: fig. 3 and 4.
        self.measurements = [*{m.claim: m for m in self.measurements}.values()]
        if self.config.source == "photos":
            self.measurements = [m.on_stand_in() for m in self.measurements]
        self.results["measurements"] = [m.to_json() for m in self.measurements]
        if self.config.budget is Budget.quick:
            self.results["committed"] = committed_evidence()
        runs = [
            r for sweep in self.evidence.values() for arm in sweep.values() for r in arm.values()
        ]
        if any(run.dirty is not None for run in runs):  # of the code that trained, not this one's
            self.results["provenance"]["dirty"] = any(run.dirty for run in runs)
        save_reproduction(self.results, self.out)
        samples = {m.claim: m.sample for m in self.measurements if m.sample}
        save_evidence(Evidence(self.evidence, samples), self.out)
        report = write_report(self.results, self.out)
        say(f"ledger: {self.out / 'ledger.json'}")
        say(f"report: {report}")
        self.console.print(f"took {(time.perf_counter() - start) / 60:.1f} minutes")
        return len(self.results["warnings"])

    def prepare(self) -> None:
        """Prepare the first store, so that an unusable source fails before any training."""
        budget = self.config.budget
        trained = [e for name in self.parts for e in PARTS[name].experiments.get(budget, ())]
        self.sweeps = Sweeps(self.config, self.out, [*trained, "reduced/quick"][0])
        # Runs without a seed of their own, and at budget=quick all runs, are trained anew.
        # Sweeps that take hours are kept: finished runs with the same settings are recognised.
        runs = self.out / "runs"
        quick = runs.glob(f"*/{Budget.quick}") if budget is Budget.quick else ()
        unseeded = ("quick", "full_size/quick", "reduced/quick", "relu/quick")
        for directory in (*(runs / name for name in unseeded), *quick):
            shutil.rmtree(directory, ignore_errors=True)

    def audit(self) -> None:
        counts = count_layers(AlexNet("paper"))
        self.results["audit"] = architecture.audit_of(counts)
        self.measurements += measure("audit", counts, Scale.exact, self.command, None)

    def exactness(self) -> None:
        for recipe in RECIPES:
            answer = self.out / f"exactness-{recipe}.json"
            launch(exactness.worker, 2, recipe, self.config.seed, answer)
            self.results["exactness"] += [
                Exactness(
                    quantity=quantity,
                    recipe=recipe,
                    dtype="float64",
                    worst_relative_difference=difference,
                    bound=exactness.BOUND,
                )
                for quantity, difference in json.loads(answer.read_text(encoding="utf-8")).items()
            ]
            answer.unlink()

    def full_size(self) -> None:
        experiment, steps = "full_size/quick", self.config.full_size_steps
        overrides = [f"recipe={','.join(RECIPES)}", f"max_steps={steps}"]
        command = self.sweeps.train(experiment, overrides)
        classes = len(self.sweeps.store_of_report.classes)
        training = f"batch size 32, learning rate 0.01, seed {self.config.seed}"
        config = f"full-size network, 224 pixels, {training}"
        run_dirs = self.sweeps.runs(experiment)
        paper, code145 = (
            training_runs.read_run(run_dir, recipe, config, command, classes)
            for run_dir, recipe in zip(run_dirs, RECIPES, strict=True)
        )
        for run in (paper, code145):
            run["note"] = training_runs.below_chance_note(run)
        self.results["runs"]["full_paper"], self.results["runs"]["full_code145"] = paper, code145
        summary = training_runs.read_summary(run_dirs[1])
        self.results["exchanges"] = architecture.expected_exchanges(summary, classes)
        machine = self.results["provenance"]
        on_gpu = summary["device"].startswith("cuda")
        hardware = machine["gpu"] if on_gpu and machine["gpu"] else machine["cpu"]
        wait_pct = summary["input_wait_pct"]
        runs = training_runs.FullSizeRuns(paper, code145, hardware, wait_pct)
        caveat = self.sweeps.caveat(f"{steps} steps with batch size 32")
        self.measurements += measure("full_size", runs, Scale.reduced, command, caveat)

    def reduced(self) -> None:
        experiment, epochs = "reduced/quick", self.config.reduced_epochs
        milestone = max(1, round(0.8 * epochs))
        overrides = [
            f"schedule.epochs={epochs}",
            f"schedule.drops=[{{epoch: {milestone}, rate: 0.001}}]",
            f"checkpoint.every_epochs={epochs}",
        ]
        if self.config.pictures_per_class is not None:
            overrides.append(f"data.limit={self.config.pictures_per_class}")
        command = self.sweeps.train(experiment, overrides)
        (run_dir,) = self.sweeps.runs(experiment)
        store = self.sweeps.store(experiment)
        config = f"¼ of the kernels, 112 pixels, code145, batch size 32, seed {self.config.seed}"
        classes = len(store.classes)
        run = training_runs.read_run(run_dir, "code145, reduced", config, command, classes)
        run["note"] = (
            "Initial standard deviations are those of the recipe times 1/√width (that is, doubled "
            "at a quarter of the kernels), which keeps activations at the scale of the full "
            "network. conv1, which reads the image, is unchanged; fc6 also compensates for its "
            "smaller maps."
        )
        self.results["runs"]["reduced"] = run
        evaluation = EvaluateConfig(checkpoint=str(run_dir))
        for views in (1, 10):
            evaluation.views = views
            errors = evaluate_checkpoints(evaluation)
            self.results["evaluation"].append(training_runs.evaluation_row(errors, views, classes))
        conv1 = load_trained(run_dir).model.layers()["conv1"].weight.detach()
        self.results["kernels"] = conv1
        self.results["kernels_caption"] = f"conv1 of the reduced network after {epochs} epochs."
        figure = figure4(run_dir)
        self.results["lookalikes"], self.results["pictures"] = figure.lookalikes, figure.images
        ten_views = self.results["evaluation"][-1]
        evidence = training_runs.ReducedRun(store, ten_views, figure.neighbours, conv1)
        network = "a network with a quarter of the kernels on 112 pixels"
        caveat = self.sweeps.caveat(f"{network}, {epochs} epochs")
        self.measurements += measure("reduced", evidence, Scale.reduced, command, caveat)

    def relu(self) -> None:
        if self.sweeps.runs_cifar10:
            run_dirs, command = relu_vs_tanh.train(self.sweeps), self._command_of("relu")
            is_papers_data = self.config.source == "cifar10"
            scale = Scale.full if is_papers_data else Scale.reduced
            caveat = None if is_papers_data else self.sweeps.data_caveat
        else:
            experiment, epochs = "relu/quick", self.config.relu_epochs
            overrides = [
                "model.activation=relu,tanh",
                f"schedule.rate={QUICK_RELU_RATES}",
                f"schedule.epochs={epochs}",
                f"eval_every_epochs={epochs}",
            ]
            command = self.sweeps.train(experiment, overrides)
            setup = "an eighth of AlexNet on 64 pixels instead of a four-layer network"
            run_dirs = self.sweeps.runs(experiment)
            scale, caveat = Scale.reduced, self.sweeps.caveat(setup)
        commits = (training_runs.read_summary(run)["commit"] for run in run_dirs)
        self._record_commits(PARTS["relu"].title, commits)
        runs = relu_vs_tanh.read_runs(run_dirs)
        self.results["ablations"].append(relu_vs_tanh.relu_chart(runs, command))
        self.results["relu_ratios"] = relu_vs_tanh.ratios(runs)
        self.measurements += measure("relu", runs, scale, command, caveat)

    def lrn_cifar10(self) -> None:
        budget = self.config.budget if self.sweeps.runs_cifar10 else Budget.quick
        (experiment,) = LRN_CIFAR10[budget]
        runs, directory, seeds = self._train_ablations("lrn_cifar10", experiment)
        command = self._command_of("lrn_cifar10")
        title = "The four-layer network and its ablations"
        self.results["cifar10_effects"] = ablations.effects(runs)
        chart = ablations.ablation_chart(runs, "lrn-cifar10", title, command)
        self.results["ablations"].append(chart)
        setup = f"{CIFAR10_NETWORK}; {ablations.describe(runs)}"
        how = Scale.reduced, command, self.sweeps.caveat(setup, f"{len(self.sweeps.seeds)} seeds")
        self.evidence["lrn_cifar10"] = runs
        self.measurements += measure("lrn_cifar10", directory, *how, only=seeds)

    def ablations(self) -> None:
        experiment = f"ablations/{self.config.budget}"
        runs, directory, seeds = self._train_ablations("ablations", experiment)
        description = ablations.describe(runs)
        self.results["effects"] = ablations.effects(runs)
        self.results["effects_caption"] = description
        self.results["learning_curves"] = ablations.learning_curves(runs)
        self.results["gap"] = ablations.errors_of_baseline(runs)
        scale, caveat = self.sweeps.scale(description)
        command = self._command_of("ablations")
        measurements = measure("ablations", directory, scale, command, caveat, only=seeds)
        self.measurements += map(self.sweeps.for_edition, measurements)
        self.evidence |= {"ablations": runs, "views": ensembles.evaluate_seeds(directory, seeds)}

    def pretrain(self) -> None:
        experiment = f"pretrain/{self.config.budget}"
        self.sweeps.train_ablations(experiment, PRETRAINING_ARMS)
        caveat = self.sweeps.caveat("five classes", f"{len(self.sweeps.seeds)} seeds")
        # At every budget: the paper pretrains on other data.
        how = Scale.reduced, self._command_of("pretrain"), caveat
        seeds = self.sweeps.control_seeds(len(PRETRAINING_ARMS) - 1)
        directory = self.sweeps.directory(experiment)
        self.evidence["pretrain"] = pretraining.read_pretraining(directory, seeds)
        self.measurements += measure("pretrain", directory, *how, only=seeds)

    def _train_ablations(self, sweep: str, experiment: str) -> tuple[Sweep, Path, list[int]]:
        """Train a sweep; returns the runs that its claims need, their directory and all seeds."""
        arms = self.config.arms or arms_of(sweep)
        self.sweeps.train_ablations(experiment, [ablations.BASELINE, *arms])
        directory, seeds = self.sweeps.directory(experiment), self.sweeps.control_seeds(len(arms))
        runs = ablations.read_claimed(directory, sweep, seeds)
        self._record_commits(
            sweep, (r.commit for by_seed in runs.values() for r in by_seed.values())
        )
        return runs, directory, seeds

    def _command_of(self, part: str) -> str:
        """The command that repeats one part alone."""
        return command_of(replace(self.config, parts=[part]))

    def _record_commits(self, name: str, commits: Iterable[str]) -> None:
        """Add a sweep's commits to the provenance: later code may have continued it."""
        extra = self.results["provenance"].setdefault("extra", {})
        extra[f"Commits of {name}"] = ", ".join(sorted(set(commits)))

    def _part(self, title: str, work: Callable[[], None], *, needed: bool = False) -> None:
        """Run one part; an error becomes a warning unless the other parts need this one."""
        self.console.rule(f"[bold]{title}", align="left")
        start = time.perf_counter()
        try:
            work()
        except Exception as error:  # the other parts may have taken hours
            if needed:
                raise
            message = str(error)
            if isinstance(error, OSError) and (line := os_error_line(error)):
                message = line
            elif not isinstance(error, (ConfigError, RunError, subprocess.CalledProcessError)):
                traceback.print_exc()
                message = f"{type(error).__name__}: {error}"
            self.results["warnings"].append(f"{title}: {message}")
            text = f"failed: {printable_lines(message)}"
            self.console.print(text, style="red", markup=False)
        self.console.print(f"{time.perf_counter() - start:.0f} s", style="dim")


def default_parts(budget: Budget, sweeps: Sweeps) -> tuple[str, ...]:
    """The parts that a budget and the images are for."""
    if budget is Budget.quick:
        return QUICK_PARTS
    sweeping = CIFAR10_PARTS if sweeps.runs_cifar10 else ("ablations", "pretrain")
    return (*QUICK_PARTS, *sweeping)


def provenance(sweeps: Sweeps, command: str) -> Provenance:
    """The code, machine, data and date of this process."""
    store, (commit, dirty) = sweeps.store_of_report, running_commit()
    return Provenance(
        commit=commit,
        dirty=dirty,
        python=platform.python_version(),
        torch=torch.__version__,
        dali=version(dali_package()),
        cpu=cpu_name(),
        cores=len(os.sched_getaffinity(0)),
        gpu=torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        date=date.today().isoformat(),
        command=command,
        seeds=sweeps.seeds,
        data_description=store.description,
        data_caveat=sweeps.data_caveat,
        classes=list(store.classes),
        store_fingerprint=store.fingerprint,
        processes=2,
    )


def command_of(config: ReproduceConfig) -> str:
    """The command that repeats a reproduction, without ``out``, which changes no number."""
    default = ReproduceConfig()
    # The full path of the data is private.
    settings = {**vars(config), "source": Path(config.source).name}
    overrides = []
    for key, value in settings.items():
        if key not in ("out", "caveat") and value != getattr(default, key):
            text = f"[{','.join(map(str, value))}]" if isinstance(value, list) else value
            overrides.append(f"{key}={text}")
    return shlex.join(["python", "-m", "alexnet2012.reproduce", *overrides])
