"""Interrupted sweeps: finished runs are kept if they were trained on the same data."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.checkpoint.run_dir import check_start, is_finished
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError, ReproduceConfig, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.ledger import sweeps as sweeps_module
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.reproduction import Reproduce
from alexnet2012.ledger.sweeps import Sweeps, store_size

ERRORS = {"none": 40.0, "no_lrn_cifar10": 42.0}


@cache
def composed(*overrides: str) -> TrainConfig:
    return compose_config("train", TrainConfig, overrides)[0]


def finish(run_dir: Path, overrides: Sequence[str], error: float, store: str) -> TrainConfig:
    """Leave what a run leaves at its end; returns its configuration."""
    config = replace(composed(*overrides), seed=int(run_dir.name))
    run_dir.mkdir(parents=True)
    OmegaConf.save(OmegaConf.create(to_plain(config)), run_dir / "config.yaml")
    summary = {"top1_error_pct": error, "top5_error_pct": 5.0, "store_fingerprint": store}
    (run_dir / "summary.json").write_text(json.dumps(summary))
    record = {"kind": "epoch", "step": 9, "epoch": 0, "loss": 1.0, "train_error_pct": error}
    (run_dir / "metrics.jsonl").write_text(json.dumps(record) + "\n")
    return config


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch, photos_store: Store) -> list[str]:
    """Records runs, as ABLATION/SEED, which end at once; finished runs are kept."""
    monkeypatch.setattr(Sweeps, "store", lambda sweeps, experiment: photos_store)
    done: list[str] = []

    def run(command: Sequence[str]) -> None:
        given = dict(word.split("=", 1) for word in command if "=" in word)
        root = Path(given["hydra.sweep.dir"].strip('"'))
        for seed in given["seed"].split(","):
            for arm in given["ablation"].split(","):
                run_dir = root / arm / seed
                if (run_dir / "summary.json").exists():
                    continue
                words = [f"experiment={given['experiment']}", f"ablation={arm}"]
                error = ERRORS[arm] + int(seed)
                finish(run_dir, words, error, photos_store.fingerprint)
                done.append(f"{arm}/{seed}")

    monkeypatch.setattr(sweeps_module, "_run_child", run)
    return done


def rows(out: Path) -> str:
    """The ledger's rows of a reproduction of one part, as they are written."""
    config = ReproduceConfig(out=str(out), parts=["lrn_cifar10"], budget=Budget.reduced, seeds=3)
    assert Reproduce(config).run() == 0
    return json.dumps(json.loads((out / "ledger.json").read_text())["rows"])


def test_an_interrupted_sweep_repeats_no_run_and_gives_the_same_ledger(
    trained: list[str], tmp_path: Path, photos_store: Store
) -> None:
    first = rows(tmp_path)
    assert len(trained) == 6
    assert "no_lrn_cifar10: +2.00 (-0.3 to +4.3) points top-1: 43.00 against 41.00" in first
    root = tmp_path / "runs" / "lrn_cifar10" / "quick"
    shutil.rmtree(root / "none" / "2")
    for asked_for_by_none in ("no_lrn/0", "none/7"):
        words = ["experiment=lrn_cifar10/quick", "ablation=none"]
        finish(root / asked_for_by_none, words, 1.0, photos_store.fingerprint)
    assert rows(tmp_path) == first
    assert trained[6:] == ["none/2"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The four-layer network with and without normalisation" in page
    assert "41.0%" in page


def test_runs_on_other_data_are_refused(
    trained: list[str], tmp_path: Path, photos_store: Store
) -> None:
    experiment = "lrn_cifar10/quick"
    sweeps = Sweeps(ReproduceConfig(out=str(tmp_path)), tmp_path, experiment)
    other = sweeps.directory(experiment) / "none" / "0"
    words = [f"experiment={experiment}", "data=store", f"data.store={photos_store.root}"]
    config = finish(other, words, 40.0, "of others")
    with pytest.raises(ConfigError, match=rf"out=.*{other} was trained on other images"):
        sweeps.train(experiment, ["ablation=none"], [0])
    assert trained == []
    assert not is_finished(config, other)
    with pytest.raises(ConfigError, match="contains a finished run without checkpoints"):
        check_start(config, other)
    shutil.rmtree(other)
    assert is_finished(finish(other, words, 40.0, photos_store.fingerprint), other)


def test_no_run_starts_from_an_unfinished_run(saved_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(saved_run, run)
    (run / "config.yaml").write_text("seed: 0\n")
    config = replace(composed(), init_from=str(run))
    with pytest.raises(ConfigError, match=r"init_from=.*is an unfinished run"):
        check_start(config, tmp_path / "new")
    (run / "summary.json").write_text("{}")
    check_start(config, tmp_path / "new")
    config.init_from = str(manifest.latest(run))
    (run / "summary.json").unlink()
    check_start(config, tmp_path / "new")


def test_a_training_ends_with_the_reproduction_that_is_killed(tmp_path: Path) -> None:
    file = tmp_path / "pid"
    reproduction = os.fork()
    if reproduction == 0:
        sweeps_module._run_child(
            ["sh", "-c", f"echo $$ > {file}.new; mv {file}.new {file}; sleep 60"]
        )
        os._exit(0)
    while not file.exists():
        time.sleep(0.01)
    os.kill(reproduction, signal.SIGKILL)
    os.waitpid(reproduction, 0)
    training = Path("/proc", file.read_text().strip())
    give_up_s = time.monotonic() + 10
    while training.exists() and time.monotonic() < give_up_s:
        time.sleep(0.01)
    assert not training.exists()


def test_a_part_that_fails_is_reported_and_the_others_run(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(self: Reproduce) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(Reproduce, "audit", without_memory)
    parts = ["audit", "lrn_cifar10"]
    assert Reproduce(ReproduceConfig(out=str(tmp_path), parts=parts, seeds=1)).run() == 1
    found = json.loads((tmp_path / "reproduction.json").read_text())
    assert found["warnings"] == ["parameters and neurons: RuntimeError: not enough memory"]
    assert trained == ["none/0", "no_lrn_cifar10/0"]


def test_a_quick_reproduction_removes_only_quick_runs(trained: list[str], tmp_path: Path) -> None:
    quick, others = (
        ("quick/reduced/0", "full_size/quick/0", "ablations/quick/none/0"),
        ("ablations/reduced/none/0", "2026/a"),
    )
    for name in (*quick, *others):
        (tmp_path / "runs" / name).mkdir(parents=True)
    parts = ["audit", "audit"]  # a part named twice is one
    assert Reproduce(ReproduceConfig(out=str(tmp_path), parts=parts)).run() == 0
    assert not any((tmp_path / "runs" / name).exists() for name in quick)
    assert all((tmp_path / "runs" / name).is_dir() for name in others)


@pytest.mark.parametrize(
    ("classes", "pictures", "scale"),
    [
        ("n{:08}", 1_281_167, "full"),
        ("n{:08}", 50_000, "reduced"),
        ("pet {}", 1_300_000, "reduced"),
    ],
)
def test_full_scale_needs_the_data_of_the_challenge(
    classes: str, pictures: int, scale: str, photos_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = replace(photos_store.split("val"), labels=np.zeros(pictures, np.int64))
    monkeypatch.setattr(Store, "split", lambda *_: split)
    names = tuple(classes.format(index) for index in range(1000))
    monkeypatch.setattr(sweeps_module, "prepare", lambda _: replace(photos_store, classes=names))
    sweeps = Sweeps(ReproduceConfig(budget=Budget.full), Path("out"), "ablations/full")
    assert sweeps.scale("a net")[0].value == scale


@pytest.mark.parametrize(
    ("pictures", "claim", "scale"),
    [
        (1_281_167, "lrn", "full"),
        (1_281_167, "two-gpu", "reduced"),
        (1_261_406, "two-gpu", "full"),
        (1_261_406, "table2", "reduced"),
        (1_261_406, "dropout", "full"),  # of no edition
    ],
)
def test_a_claim_about_one_edition_is_not_measured_at_full_scale_on_the_other(
    pictures: int, claim: str, scale: str, photos_store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    split = replace(photos_store.split("val"), labels=np.zeros(pictures, np.int64))
    monkeypatch.setattr(Store, "split", lambda *_: split)
    names = tuple(f"n{index:08}" for index in range(1000))
    monkeypatch.setattr(sweeps_module, "prepare", lambda _: replace(photos_store, classes=names))
    sweeps = Sweeps(ReproduceConfig(budget=Budget.full), Path("out"), "ablations/full")
    found = sweeps.for_edition(Measurement(claim, "1", Scale.full, "…"))
    assert found.scale.value == scale
    assert (found.caveat is None) == (scale == "full")


@pytest.mark.parametrize(
    ("experiment", "size"),
    [
        ("full_size/quick", 256),
        ("reduced/quick", 128),
        ("relu/quick", 72),
        ("lrn_cifar10/quick", 72),
        ("relu_cifar10_lr/full", 32),
        ("lrn_cifar10/full", 32),
        ("ablations/reduced", 72),
        ("ablations/full", 256),
        ("pretrain/quick", 72),
        ("pretrain/full", 256),
    ],
)
def test_an_experiment_reads_images_of_the_size_that_its_file_sets(
    experiment: str, size: int
) -> None:
    assert store_size(experiment) == size


def test_former_names_of_a_part_and_a_directory_are_read(
    trained: list[str], tmp_path: Path
) -> None:
    assert Reproduce(ReproduceConfig(out=str(tmp_path), parts=["effects"])).parts == ["ablations"]
    sweeps = Sweeps(ReproduceConfig(out=str(tmp_path)), tmp_path, "ablations/reduced")
    assert sweeps.directory("ablations/reduced") == tmp_path / "runs" / "ablations" / "reduced"
    (tmp_path / "runs" / "effects" / "reduced").mkdir(parents=True)
    assert sweeps.directory("ablations/reduced") == tmp_path / "runs" / "effects" / "reduced"


def test_a_part_that_does_not_exist_is_answered_with_those_that_do() -> None:
    with pytest.raises(ConfigError, match="parts=fig9: must be some of audit, exactness"):
        Reproduce(ReproduceConfig(parts=["fig9"]))
