"""Interrupted sweeps: finished runs are kept if they were trained on the same data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from omegaconf import OmegaConf

from alexnet2012 import conf
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.checkpoint.run_dir import check_start, is_finished
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Budget
from alexnet2012.config.schema import ConfigError, ReproduceConfig, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.ledger import sweeps as sweeps_module
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.report.committed import committed_evidence
from alexnet2012.ledger.reproduction import (
    PARTS,
    QUICK_PARTS,
    Reproduce,
    command_of,
    default_parts,
)
from alexnet2012.ledger.sweeps import (
    CONTROLS,
    PRETRAINING_ARMS,
    Sweeps,
    arms_of,
    best_factor,
    seed_major,
    store_size,
)

ERRORS = {"none": 40.0, "no_lrn_cifar10": 42.0, "pool_2x2_cifar10": 41.0}


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

    def run(commands: Sequence[Sequence[str]], shares: object, log: Path) -> list[Sequence[str]]:
        for command in commands:
            given = dict(word.split("=", 1) for word in command if "=" in word)
            root, seed = Path(given["hydra.sweep.dir"].strip('"')), given["seed"]
            factor = float(given.get("schedule.rate_factor", 1))
            for arm in given["ablation"].split(","):
                run_dir = root / arm / seed
                if (run_dir / "summary.json").exists():
                    continue
                words = [f"experiment={given['experiment']}", f"ablation={arm}"]
                # The best factor of every arm is one half.
                error = ERRORS[arm] + int(seed) % 1000 + abs(factor - 0.5) - 0.5
                finish(run_dir, words, error, photos_store.fingerprint)
                done.append(f"{arm}/{seed}" + (f" x{factor:g}" if factor != 1 else ""))
        return []

    monkeypatch.setattr(sweeps_module, "run_all", run)
    return done


def rows(out: Path) -> str:
    """The ledger's rows of a reproduction of one part, as they are written."""
    config = ReproduceConfig(
        out=str(out),
        parts=["lrn_cifar10"],
        budget=Budget.reduced,
        seeds=3,
        control_seeds=3,
        rate_factors=[1.0],
    )
    assert Reproduce(config).run() == 0
    return json.dumps(json.loads((out / "ledger.json").read_text())["rows"])


def test_an_interrupted_sweep_repeats_no_run_and_gives_the_same_ledger(
    trained: list[str], tmp_path: Path, photos_store: Store
) -> None:
    first = rows(tmp_path)
    assert len(trained) == 9
    assert "no_lrn_cifar10: +2.00 (-0.3 to +4.3) points top-1: 43.00 against 41.00" in first
    root = tmp_path / "runs" / "lrn_cifar10" / "quick"
    shutil.rmtree(root / "none" / "2")
    for asked_for_by_none in ("no_lrn/0", "none/7"):
        words = ["experiment=lrn_cifar10/quick", "ablation=none"]
        finish(root / asked_for_by_none, words, 1.0, photos_store.fingerprint)
    assert rows(tmp_path) == first
    assert trained[9:] == ["none/2"]
    page = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert "The four-layer network and its ablations" in page
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
        sweeps.train_ablations(experiment, ["none"])
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


def test_a_part_that_fails_is_reported_and_the_others_run(
    trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_memory(self: Reproduce) -> None:
        raise RuntimeError("not enough memory")

    monkeypatch.setattr(Reproduce, "audit", without_memory)
    parts = ["audit", "lrn_cifar10"]
    config = ReproduceConfig(out=str(tmp_path), parts=parts, arms=["no_lrn_cifar10"], seeds=1)
    assert Reproduce(config).run() == 1
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
        ("relu_cifar10/full", 32),
        ("lrn_cifar10/full", 32),
        ("ablations/reduced", 146),
        ("ablations/gpu", 256),
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


def test_runs_are_ordered_by_seed_and_the_controls_other_seeds_come_last() -> None:
    assert seed_major(["none", "a", "b"], [0, 1], [0, 1, 2, 3]) == [
        *(("none", 0), ("a", 0), ("b", 0)),
        *(("none", 1), ("a", 1), ("b", 1)),
        *(("none", 2), ("none", 3)),
    ]


def small_sweeps(out: Path, **settings: object) -> Sweeps:
    config = ReproduceConfig(out=str(out), **settings)  # type: ignore[arg-type]
    return Sweeps(config, out, "lrn_cifar10/quick")


def test_the_control_has_more_seeds_than_each_arm(trained: list[str], tmp_path: Path) -> None:
    assert len(small_sweeps(tmp_path, seeds=10).control_seeds(9)) == 30  # √k times
    sweeps = small_sweeps(tmp_path, seeds=2, control_seeds=4)
    sweeps.train_ablations("lrn_cifar10/quick", ["none", "no_lrn_cifar10"])
    assert trained == [
        *("none/0", "no_lrn_cifar10/0", "none/1", "no_lrn_cifar10/1", "none/2", "none/3")
    ]


def test_the_rate_of_every_arm_is_chosen_on_seeds_of_its_own(
    trained: list[str], tmp_path: Path
) -> None:
    sweeps = small_sweeps(tmp_path, seeds=1, rate_factors=[0.5, 1.0, 2.0], rate_seeds=2)
    sweeps.train_ablations("lrn_cifar10/quick", ["none", "no_lrn_cifar10"])
    pilots, runs = trained[:12], trained[12:]
    assert {name.split("/")[1].split()[0] for name in pilots} == {"1000", "1001"}
    assert runs == ["none/0 x0.5", "no_lrn_cifar10/0 x0.5"]
    kept = sorted(path.name for path in (tmp_path / "runs/lrn_cifar10/quick-rates").iterdir())
    assert kept == ["0.5", "1", "2"]
    sweeps.train_ablations("lrn_cifar10/quick", ["none", "no_lrn_cifar10"])
    assert len(trained) == 14  # nothing is trained again


def test_the_best_factor_has_the_lowest_error_and_of_equals_is_nearest_to_one() -> None:
    assert best_factor({0.5: 30.0, 1.0: 31.0, 2.0: 32.0}) == 0.5
    assert best_factor({0.5: 30.0, 1.0: 30.0, 2.0: 30.0}) == 1.0
    assert best_factor({0.5: 31.0, 1.0: 30.5, 2.0: float("inf")}) == 1.0


@pytest.mark.parametrize(
    ("budget", "classes", "parts"),
    [
        (Budget.quick, "n{:08}", QUICK_PARTS),
        (Budget.reduced, "n{:08}", (*QUICK_PARTS, "ablations", "pretrain")),
        (Budget.reduced, "cifar10", (*QUICK_PARTS, "relu", "lrn_cifar10")),
        (Budget.gpu, "n{:08}", (*QUICK_PARTS, "ablations", "pretrain")),
    ],
)
def test_sweeps_run_only_on_the_data_that_they_are_for_and_never_by_default_if_quick(
    budget: Budget,
    classes: str,
    parts: tuple[str, ...],
    photos_store: Store,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = [classes.format(n) for n in range(10)]
    if classes == "cifar10":
        names = sorted(sweeps_module.CIFAR10_CLASSES)
    monkeypatch.setattr(
        sweeps_module, "prepare", lambda _: replace(photos_store, classes=tuple(names))
    )
    sweeps = Sweeps(ReproduceConfig(budget=budget), Path("out"), "reduced/quick")
    assert default_parts(budget, sweeps) == parts
    assert set(parts) <= PARTS.keys()


def test_every_arm_is_trained_once_and_has_a_file() -> None:
    files = {file.stem for file in Path(conf.__path__[0], "ablation").iterdir()}
    for sweep, controls in CONTROLS.items():
        arms = arms_of(sweep)
        assert len(arms) == len(set(arms))
        assert set(controls) <= set(arms)
        assert files.issuperset(arms)
    assert files.issuperset(",".join(PRETRAINING_ARMS).split(","))


def test_an_arm_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigError, match="arms=no_such: must be names of files in conf/ablation"):
        Reproduce(ReproduceConfig(arms=["no_lrn", "no_such"]))


def test_the_printed_command_repeats_every_setting_that_may_change_a_number() -> None:
    config = ReproduceConfig(
        source="/private/pictures", out="elsewhere", parts=["ablations"], rate_factors=[0.5, 1.0]
    )
    assert command_of(config) == (
        "python -m alexnet2012.reproduce source=pictures 'parts=[ablations]' "
        "'rate_factors=[0.5,1.0]'"
    )


def test_committed_evidence_is_of_real_data_with_seeds(tmp_path: Path) -> None:
    assert committed_evidence(tmp_path / "of an installed package") == []
    for name, data, n_seeds in (
        ("imagenette", "ten classes of ImageNet", 5),
        ("photos", "16 photographs", 5),
        ("single", "ten classes of ImageNet", 1),
    ):
        row = {"id": "dropout", "title": "Dropout", "verdict": "supported"}
        row["measured"] = {"value": "+1.0", "n_seeds": n_seeds}
        made = {"data_description": data, "commit": "abc", "date": "2026-01-31"}
        content = {"provenance": made, "rows": [row, {"title": "Depth", "measured": None}]}
        (tmp_path / name).mkdir()
        (tmp_path / name / "ledger.json").write_text(json.dumps(content))
    (found,) = committed_evidence(tmp_path)
    assert (found["name"], found["commit"]) == ("imagenette", "abc")
    assert [row["claim"] for row in found["rows"]] == ["dropout"]
