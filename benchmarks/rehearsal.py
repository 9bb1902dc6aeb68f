"""A rehearsal with the shape of ImageNet: a thousand classes, from tars to ten views.

    python benchmarks/rehearsal.py [train_per_class=10] [val=5000]

Makes archives with the exact structure of ILSVRC-2012's (tests/fakes.py) but few and small images,
and runs a user's commands on them: prepare, train on two processes, evaluate. Checks every count,
and that each stored image has the label that the development kit gives it. Prints the counts and
writes results/rehearsal.json.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from fakes import Contents, fake_ilsvrc2012
from record import given, keep, show

CLASSES = 1000
NET = ("recipe=code145", "model.width=0.125", "model.input_size=64", "schedule=constant")


def run(*words: str) -> float:
    """Run a command of the package; returns the seconds it took."""
    began = time.perf_counter()
    subprocess.run([sys.executable, "-m", *words], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - began


def mislabelled(store: Path, known: Contents) -> int:
    """Number of stored images whose class differs from that in the archives."""
    wnids = json.loads((store / "manifest.json").read_text(encoding="utf-8"))["classes"]
    of_picture = {name: wnid for wnid, names in known["train"].items() for name in names}
    of_picture |= dict(known["val"])
    rows = [
        line.split("\t")
        for split in ("train", "val")
        for line in (store / f"{split}.tsv").read_text(encoding="utf-8").splitlines()
    ]
    return sum(of_picture[json.loads(name)] != wnids[int(label)] for _, label, _, name in rows)


def rehearse(folder: Path, train_per_class: int, val: int) -> list[dict[str, Any]]:
    """Each count with its expected value."""
    known = fake_ilsvrc2012(
        folder / "tars", classes=CLASSES, train_per_class=train_per_class, val=val, oddities=True
    )
    store, run_dir, out = folder / "store", folder / "run", folder / "evaluation.json"
    train = CLASSES * train_per_class
    prepare_s = run("alexnet2012.prepare", f"source={folder / 'tars'}", f"store={store}", "size=72")
    manifest = json.loads((store / "manifest.json").read_text(encoding="utf-8"))
    stored = {split: sum(counts.values()) for split, counts in manifest["pictures"].items()}

    words = ("data=store", f"data.store={store}", "data.store_size=72", *NET)
    more = ("schedule.epochs=1", "tracking.wandb=disabled", f"hydra.run.dir={run_dir}")
    train_s = run("alexnet2012.train", *words, *more)
    summary = json.loads((run_dir / "summary.json").read_text(encoding="utf-8"))
    evaluate_s = run("alexnet2012.evaluate", f"checkpoint={run_dir}", "views=10", f"out={out}")
    ten_views = json.loads(out.read_text(encoding="utf-8"))
    print(f"prepare {prepare_s:.0f} s, train {train_s:.0f} s, evaluate {evaluate_s:.0f} s")
    rows = (
        ("classes", len(manifest["classes"]), CLASSES),
        ("training images stored", stored["train"], train),
        ("validation images stored", stored["val"], val),
        ("images rejected", sum(manifest["rejected"].values()), 0),
        ("images with a wrong label", mislabelled(store, known), 0),
        ("processes", summary["world_size"], 2),
        ("steps per epoch", summary["steps"], -(-train // 128)),
        ("complete epochs", summary["epochs"], 1),
        ("validated, 1 view", summary["pictures"], val),
        ("evaluated, 10 views", ten_views["pictures"], val),
    )
    return [{"what": what, "found": found, "expected": expected} for what, found, expected in rows]


def main() -> int:
    words, load_before = given(train_per_class=10, val=5000), os.getloadavg()[0]
    with tempfile.TemporaryDirectory() as scratch:
        rows = rehearse(Path(scratch), words.train_per_class, words.val)
    columns = {"": "{what}", "count": "{found:,}", "expected": "{expected:,}"}
    show("ILSVRC-2012's shape, from tars to ten views", columns, rows)
    question = "are the counts exact for a data set of ImageNet's shape"
    keep(question, ["torch"], load_before, **vars(words), rows=rows)
    return int(any(row["found"] != row["expected"] for row in rows))


if __name__ == "__main__":
    sys.exit(main())
