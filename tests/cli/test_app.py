"""How a command starts: run directories, jobs of a sweep, and relative paths."""

from __future__ import annotations

import errno
import json
import logging
import math
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra.experimental.callback import Callback

from alexnet2012 import train
from alexnet2012.cli.app import hydra_main
from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import PrepareConfig, RunError, TrainConfig

LABELS = ("WANDB_RUN_GROUP", "WANDB_NAME")
Start = Callable[..., None]
returned: list[object] = []  # by the jobs of a test


class Returned(Callback):
    """What Hydra's sweepers see of each job."""

    def on_job_end(self, config: Any, job_return: Any, **_: Any) -> None:
        returned.append(job_return.return_value)


@pytest.fixture
def start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Start:
    """Start `prepare` with other work, in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(logging.root, "handlers", [])  # those of other commands' sweeps in here
    for key in LABELS:
        monkeypatch.delenv(key, raising=False)

    def started(work: Callable[[PrepareConfig, Path], object], *words: str) -> None:
        monkeypatch.setattr("sys.argv", ["prepare", "store=s", *words])
        hydra_main("prepare", PrepareConfig, work)

    return started


def test_a_sweeper_gets_the_result_of_each_job_and_infinity_for_a_failed_one(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    def work(config: PrepareConfig, _: Path) -> float:
        if config.seed == 1:
            raise RunError("the loss is nan")
        return 10.0 * config.seed

    returned.clear()
    with pytest.raises(SystemExit) as ending:
        start(work, "-m", "seed=0,1,2", "+hydra.callbacks.c._target_=test_app.Returned")
    assert returned == [0.0, math.inf, 20.0]
    assert ending.value.code == 1
    assert capsys.readouterr().err == "alexnet2012: the loss is nan\n"


def test_training_returns_the_validation_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "summary.json").write_text(json.dumps({"top1_error_pct": 37.5}))
    monkeypatch.setattr(train, "_check_and_prepare", lambda *_: None)
    monkeypatch.setattr(train, "launch", lambda *_: None)
    assert train.run(compose_config("train", TrainConfig, ["resume=null"])[0], tmp_path) == 37.5


def test_optuna_minimises_what_a_job_returns(start: Start, tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="alexnet2012[optuna]")
    words = ("hydra/sweeper=optuna", "hydra.sweeper.n_trials=12", "hydra.sweeper.n_jobs=1")
    tried: list[float] = []

    def work(config: PrepareConfig, _: Path) -> float:
        tried.append(config.val_percent)
        if len(tried) == 2:
            raise RunError("the loss is nan")
        return abs(config.val_percent - 80)

    with pytest.raises(SystemExit):
        start(work, "-m", *words, "val_percent=interval(1,99)", "hydra.sweep.dir=tuned")
    assert len(tried) == 12
    del tried[1]
    best = min(tried, key=lambda percent: abs(percent - 80))
    assert f"val_percent: {best}" in (tmp_path / "tuned/optimization_results.yaml").read_text()


@pytest.mark.parametrize(
    ("setting", "package"),
    [
        ("hydra/sweeper=optuna", "'alexnet2012[optuna]'"),
        ("hydra/sweeper=ax", "hydra-ax-sweeper"),
        ("hydra/sweeper=nevergrad", "hydra-nevergrad-sweeper"),
        ("hydra/launcher=joblib", "hydra-joblib-launcher"),
        ("hydra/launcher=ray", "ray cloudpickle && pip install --no-deps hydra-ray-launcher"),
        ("hydra/launcher=rq", "hydra-rq-launcher"),
    ],
)
def test_a_missing_plugin_of_hydra_is_reported_with_its_package(
    setting: str, package: str, start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    kind, _, name = setting.removeprefix("hydra/").partition("=")
    if find_spec(f"hydra_plugins.hydra_{name}_{kind}"):
        pytest.skip(f"{package} is installed")
    with pytest.raises(SystemExit) as ending:
        start(lambda *_: None, "-m", setting, "seed=0,1")
    assert ending.value.code == 2
    remedy = f"needs an extra package: pip install {package}"
    assert capsys.readouterr().err == f"alexnet2012: {setting}: {remedy}\n"


def test_a_misspelt_sweeper_is_not_taken_for_a_missing_package(
    start: Start, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        start(lambda *_: None, "-m", "hydra/sweeper=optna")
    assert "no such hydra/sweeper; use" in capsys.readouterr().err


def labels_of(start: Start, *words: str) -> list[tuple[str | None, ...]]:
    seen: list[tuple[str | None, ...]] = []
    start(lambda *_: seen.append(tuple(map(os.environ.get, LABELS))), *words)
    return seen


def test_jobs_of_a_sweep_share_a_group_and_are_named_by_what_differs(start: Start) -> None:
    seen = labels_of(start, "-m", "seed=0,1", "source=a#b", "hydra.sweep.dir=runs/tests")
    assert seen == [("runs/tests", f"seed={seed}") for seed in (0, 1)]
    assert not set(LABELS) & set(os.environ)


def test_a_sweep_of_one_job_is_named_by_its_subdirectory(start: Start) -> None:
    words = ("hydra.sweep.dir=out/ablations/quick", "hydra.sweep.subdir=none/${seed}", "seed=3")
    assert labels_of(start, "-m", *words) == [("ablations/quick", "none/3")]


def test_the_users_group_and_name_stay(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    for key in LABELS:
        monkeypatch.setenv(key, "mine")
    assert labels_of(start, "-m", "seed=0,1") == [("mine", "mine")] * 2
    monkeypatch.delenv("WANDB_NAME")
    assert [name for _, name in labels_of(start, "-m", "seed=0,1")] == ["seed=0", "seed=1"]


def test_a_single_run_has_no_group(start: Start) -> None:
    assert labels_of(start, "seed=1") == [(None, None)]


@pytest.mark.parametrize("flags", [[], ["-m"]])
def test_relative_paths_are_those_of_where_the_command_was_given(
    flags: list[str], start: Start, tmp_path: Path
) -> None:
    seen = []
    words = ("hydra.job.chdir=true", "hydra.run.dir=elsewhere", "hydra.sweep.dir=elsewhere")
    start(lambda config, run_dir: seen.append((Path.cwd(), run_dir)), *flags, *words)
    run_dir = tmp_path / "elsewhere" / "0" if flags else tmp_path / "elsewhere"
    assert seen == [(tmp_path, run_dir)]


def test_runs_and_sweeps_that_begin_in_one_second_have_directories_of_their_own() -> None:
    directories = [compose_config("train", TrainConfig, [])[1] for _ in range(5)]
    assert len(set(directories)) == 5
    text = (Path(train.__file__).parents[2] / "conf" / "run_dirs.yaml").read_text()
    assert text.count("%H-%M-%S-%f") == text.count("%H-%M-%S") == 2  # the sweep's, too


def test_a_full_disk_at_the_start_of_a_run_is_reported_with_its_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("hydra.core.utils._save_config", full)
    monkeypatch.setattr("sys.argv", ["train", f"hydra.run.dir={tmp_path}/run"])
    with pytest.raises(SystemExit) as ending:
        train.main()
    assert ending.value.code == 2
    line = f"alexnet2012: {tmp_path}/run: No space left on device; free disk space, or choose"
    assert capsys.readouterr().err.startswith(line)
