"""Does a run survive being killed at any moment?

    python benchmarks/chaos.py [kills=20] [epochs=250] [most_s=4] [seed=0]

Trains a small network in two processes, kills rank 0, rank 1 or the launcher with SIGKILL at random
moments, and runs the same command again each time. At the end, weights, momenta, random streams and
metrics must equal those of an undisturbed run to the bit. Prints a table of the kills and writes
results/chaos.json.
"""

from __future__ import annotations

import os
import random
import sys
import tempfile
from collections import Counter
from dataclasses import asdict
from pathlib import Path

from record import given, keep, show

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from killed_runs import KILLABLE, METRICS, state_of, train_through_kills
from programs import TINY, module, succeed

from alexnet2012.config.schema import PrepareConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.data.sources.photos import make_photos


def main() -> None:
    words, load_before = given(kills=20, epochs=250, most_s=4.0, seed=0), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        make_photos(
            folder / "photos", train_per_class=6, val_per_class=24
        )  # long enough to be killed
        prepare(PrepareConfig(str(folder / "photos"), str(folder / "store"), size=72))
        command = (
            *TINY,
            f"data.store={folder / 'store'}",
            f"schedule.epochs={words.epochs}",
            "checkpoint.every_steps=10",
            "checkpoint.every_minutes=0.01",
        )
        whole, killed = folder / "whole", folder / "killed"
        succeed(module("train", *command, f"hydra.run.dir={whole}"), folder)
        draw = random.Random(words.seed)
        targets = [draw.choice(KILLABLE) for _ in range(words.kills)]
        arguments = (*command, f"hydra.run.dir={killed}")
        kills = train_through_kills(arguments, killed, targets, words.seed, words.most_s)
        alike = {
            "weights, momenta and streams": state_of(whole) == state_of(killed),
            "metrics": (whole / METRICS).read_bytes() == (killed / METRICS).read_bytes(),
        }
    rows = [{"number": number, **asdict(kill)} for number, kill in enumerate(kills, start=1)]
    columns = {
        "kill": "{number}",
        "killed": "{target}",
        "during": "{during}",
        "at step": "{step}",
        "processes left": "{left}",
    }
    title = f"{len(kills)} kills; identical at the end: " + ", ".join(
        k for k, v in alike.items() if v
    )
    show(title, columns, rows)
    counts = {key: dict(Counter(row[key] for row in rows)) for key in ("target", "during")}
    question = "does a run survive being killed at any moment"
    keep(question, ["torch"], load_before, **vars(words), alike=alike, counts=counts, rows=rows)
    if not all(alike.values()) or any(kill.left for kill in kills):
        sys.exit("the run differs from the undisturbed one, or left processes running")


if __name__ == "__main__":
    main()
