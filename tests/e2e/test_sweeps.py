"""A sweep of ablations as a person runs it: one command, again after it was ended."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from programs import module, run, succeed

from alexnet2012.data.store import Store
from alexnet2012.effects import effects, read_sweep

ARMS = ("none", "no_lrn", "one_gpu")


def command(store: Store, root: Path, *more: str) -> list[str]:
    words = [
        "-m",
        "experiment=effects/quick",
        "data=store",
        f"data.store={store.root}",
        f"hydra.sweep.dir={root}",
        "model.width=0.04",
        "schedule.epochs=2",
        "schedule.drops=[]",
        "mesh.device=cpu",
    ]
    return module("train", *words, *more)


def results(root: Path) -> dict[str, str]:
    return {
        str(file.relative_to(root)): file.read_text()
        for name in ("metrics.jsonl", "summary.json")
        for file in sorted(root.glob(f"*/*/{name}"))
    }


@pytest.fixture(scope="module")
def swept(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("swept") / "runs"
    arms = f"ablation={','.join(ARMS)}"
    succeed(command(photos_store, root, arms, "seed=0,1"), root.parent)
    return root


def test_every_ablation_and_seed_has_a_place_of_its_own(swept: Path) -> None:
    assert {str(p.parent.relative_to(swept)) for p in swept.glob("*/*/summary.json")} == {
        f"{arm}/{seed}" for arm in ARMS for seed in (0, 1)
    }
    found = effects(read_sweep(swept))
    assert {effect["arm"] for effect in found} == {"no_lrn", "one_gpu"}
    assert all(effect["seeds"] == [0, 1] for effect in found)


def test_the_same_command_repeats_no_finished_run_and_adds_what_is_new(
    photos_store: Store, swept: Path, tmp_path: Path
) -> None:
    before = results(swept)
    when = {file: file.stat().st_mtime_ns for file in swept.rglob("metrics.jsonl")}
    again = succeed(command(photos_store, swept, "ablation=none,no_lrn", "seed=0,1,2"), tmp_path)
    assert again.out.count("finished before, kept") == 4
    assert {file: file.stat().st_mtime_ns for file in when} == when
    after = results(swept)
    assert before.items() <= after.items()
    assert len(after) == len(before) + 4


def test_a_run_that_was_cut_off_is_done_again_to_the_same_end(
    photos_store: Store, swept: Path, tmp_path: Path
) -> None:
    before = results(swept)
    victim = swept / "no_lrn" / "1"
    (victim / "summary.json").unlink()
    lines = (victim / "metrics.jsonl").read_text().splitlines(keepends=True)
    (victim / "metrics.jsonl").write_text("".join(lines[:2]))
    for checkpoint in (victim / "checkpoints").iterdir():
        checkpoint.rename(tmp_path / checkpoint.name)
    succeed(command(photos_store, swept, "ablation=no_lrn", "seed=0,1"), tmp_path)
    after = results(swept)
    name = "no_lrn/1/metrics.jsonl"
    assert after[name] == before[name]
    mine, theirs = (json.loads(text["no_lrn/1/summary.json"]) for text in (after, before))
    assert mine["top1_error_pct"] == theirs["top1_error_pct"]


def test_a_failed_run_is_reported_and_the_others_go_on(photos_store: Store, tmp_path: Path) -> None:
    ended = run(command(photos_store, tmp_path / "runs", "seed=-1,0"), tmp_path)
    assert ended.code == 2
    assert "seed=-1" in ended.err
    assert (tmp_path / "runs" / "none" / "0" / "summary.json").is_file()
