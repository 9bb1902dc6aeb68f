"""How long does a command take to answer, and a training run to finish its first step, and on what?

    python benchmarks/startup.py [rounds=3] [batch=128]

Runs `python -m alexnet2012.train` with the full-size network on the embedded photos (prepared
beforehand), in one process and in two, timed on rank 0. The command records the time at which each
phase starts and is otherwise unchanged. The lower limit for any program that uses torch is `python
-c "import torch"`, which takes turns with the others.

Before that, it times what people wait for at the command line: `--help` and a misspelt setting of
each command, to the end, and the first output of `train`, `plan` and `evaluate`. Prints tables and
what took longer than its limit, and writes results/startup.json.
"""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# No imports of alexnet2012 or torch at the top: the timed command imports this file, too.
STAMPS = "STARTUP_STAMPS"  # environment variable with the file of time stamps
PARTS = {  # the phase that ends at each stamp
    "imports": "imports",
    "launch": "configuration",
    "worker": "processes",
    "group": "process group",
    "trainer": "import of DALI",
    "net": "model",
    "batch": "first batch",
    "step": "first step",
}
MESHES = {"1 process": "one_process", "2 processes": "two_towers"}
LIMIT = "import torch"
ANSWER_LIMIT_S, FIRST_WORD_LIMIT_S = 1.0, 1.5  # on a quiet machine
CLASSES = 16  # of the photos


def stamp(name: str) -> None:
    from alexnet2012.distributed.process_env import current_process

    if current_process().rank == 0:
        with open(os.environ[STAMPS], "a", encoding="utf-8") as file:
            file.write(f"{name} {time.time()}\n")


def then_stamp(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    def call(*args: Any, **kwargs: Any) -> Any:
        result = work(*args, **kwargs)
        stamp(name)
        return result

    return call


def train() -> None:
    """`python -m alexnet2012.train` with time stamps."""
    from alexnet2012 import train as command

    stamp("imports")
    launch = command.launch

    def stamped_launch(_: Any, *args: Any, **options: Any) -> None:
        stamp("launch")
        launch(worker, *args, **options)

    command.launch = stamped_launch
    command.main()


def worker(config: Any, run_dir: Path) -> None:
    stamp("worker")
    from alexnet2012.training import trainer
    from alexnet2012.training import worker as training

    stamp("trainer")
    mesh = training.join_mesh(config)
    stamp("group")
    trainer.AlexNet = then_stamp("net", trainer.AlexNet)  # type: ignore[assignment,misc]
    trainer.ThroughputMeter.waited = then_stamp("batch", trainer.ThroughputMeter.waited)  # type: ignore[method-assign]
    stamped = then_stamp("step", trainer.Trainer._after_step)
    trainer.Trainer._after_step = stamped  # type: ignore[method-assign]
    training.train(config, run_dir, mesh)


def run_words(folder: Path, mesh: str, batch: int, store: Path) -> list[str]:
    """The settings of a run of one step."""
    return [
        f"mesh={mesh}",
        "data=store",
        f"data.store={store}",
        f"data.limit={-(-batch // CLASSES)}",
        f"data.batch_size={batch}",
        "max_steps=1",
        "checkpoint={every_epochs: null, every_minutes: null}",
        "tracking.wandb=disabled",
        f"hydra.run.dir={folder / 'run'}",
    ]


def timed_run(folder: Path, mesh: str, batch: int, store: Path) -> dict[str, float]:
    """Seconds of each phase of a run of one step."""
    words = run_words(folder, mesh, batch, store)
    file, began = folder / "stamps", time.time()
    command = [sys.executable, __file__, "train", *words]
    environment = {**os.environ, STAMPS: str(file)}
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=environment)
    stamps = [line.split() for line in file.read_text(encoding="utf-8").splitlines()]
    at = {name: float(when) for name, when in stamps}
    starts = [began, *(at[name] for name in PARTS)]
    return {name: at[name] - start for name, start in zip(PARTS, starts, strict=False)}


def import_torch() -> dict[str, float]:
    began = time.time()
    subprocess.run([sys.executable, "-c", "import torch"], check=True)
    return {"imports": time.time() - began}


def answer_s(words: Sequence[str], folder: Path, *, first: bool = False) -> float:
    """Seconds until a command ends, or until its first output, after which it is interrupted."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "alexnet2012", *words]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, cwd=folder, stdout=pipe, stderr=subprocess.STDOUT) as program:
        assert program.stdout is not None
        program.stdout.read(1 if first else -1)
        if not first:
            program.wait()
        seconds = time.perf_counter() - began
        program.terminate()
    return seconds


def time_answers(rounds: int, folder: Path, batch: int, store: Path) -> list[dict[str, Any]]:
    """Rows of a table of what people wait for at the command line: medians and limits."""
    from alexnet2012.cli.registry import COMMANDS

    run_dir = folder / "first"
    run_dir.mkdir()
    train = ["train", *run_words(run_dir, "two_towers", batch, store)]
    cases = [(f"{name} --help", [name, "--help"], False) for name in COMMANDS]
    cases += [(f"{c.name} seeed=1", [c.name, "seeed=1"], False) for c in COMMANDS.values()]
    cases += [("first word of train", train, True), ("first word of plan", ["plan"], True)]
    evaluation = ["evaluate", f"checkpoint={folder}"]  # says so before it finds no checkpoint
    cases += [("first word of evaluate", evaluation, True)]
    rows = []
    for name, words, first in cases:
        limit_s = FIRST_WORD_LIMIT_S if first else ANSWER_LIMIT_S
        seconds = statistics.median(answer_s(words, folder, first=first) for _ in range(rounds))
        rows.append({"command": name, "seconds": seconds, "limit_s": limit_s})
    return rows


def main() -> None:
    from record import given, keep, show

    from alexnet2012.config.schema import PrepareConfig
    from alexnet2012.data.preparation.prepare import prepare

    words, load_before = given(rounds=3, batch=128), os.getloadavg()[0]
    found: dict[str, list[dict[str, float]]] = {name: [] for name in (LIMIT, *MESHES)}
    with tempfile.TemporaryDirectory() as scratch:
        store = Path(scratch, "store")
        prepare(PrepareConfig("photos", str(store)), progress=False)
        answers = time_answers(words.rounds, Path(scratch), words.batch, store)
        for number in range(words.rounds):
            found[LIMIT].append(import_torch())
            for name, mesh in MESHES.items():
                folder = Path(scratch, f"{mesh}-{number}")
                folder.mkdir()
                found[name].append(timed_run(folder, mesh, words.batch, store))
    limit = statistics.median(sum(one.values()) for one in found[LIMIT])
    rows = []
    for name, rounds in found.items():
        together = statistics.median(sum(one.values()) for one in rounds)
        parts = {p: statistics.median(one.get(p, 0.0) for one in rounds) for p in PARTS}
        row = {"arm": name, **parts, "together": together, "of_limit": 100 * limit / together}
        rows.append(row)
    columns = {"seconds": "{arm}"}
    columns |= {label: f"{{{part}:.2f}}" for part, label in PARTS.items()}
    columns |= {"total": "{together:.2f}", "% of limit": "{of_limit:.0f}%"}
    title = "From the command to the first step of the full-size network"
    show(f"{title}, batch {words.batch}, median of {words.rounds}", columns, rows)
    columns = {"": "{command}", "seconds": "{seconds:.2f}", "limit": "{limit_s:.1f}"}
    show(f"Until a command answers, median of {words.rounds}", columns, answers)
    for row in answers:
        if row["seconds"] > row["limit_s"]:
            print(f"{row['command']}: {row['seconds']:.2f} s, limit {row['limit_s']} s")
    packages = ["torch", "nvidia-dali-cuda130", "hydra-core"]
    question = "start-up time of a training run"
    keep(question, packages, load_before, **vars(words), rows=rows, answers=answers)


if __name__ == "__main__":
    if sys.argv[1:2] == ["train"]:
        del sys.argv[1]
        train()
    else:
        main()
