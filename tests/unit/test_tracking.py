"""metrics.jsonl and timings.jsonl: what is written, and what a resumed run keeps of it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from alexnet2012.choices import WandbMode
from alexnet2012.config import TrackingConfig
from alexnet2012.tracking import Tracker, read_records

NO_WANDB = TrackingConfig(wandb=WandbMode.disabled)


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_metrics_and_timings_are_kept_apart(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker.metrics("train", 1, loss=2.5)
        tracker.timings("throughput", 1, images_per_s=100.0)
        tracker.metrics("validation", 2, top1_error_pct=50.0)
    assert read_records(tmp_path / "metrics.jsonl") == [
        {"kind": "train", "step": 1, "loss": 2.5},
        {"kind": "validation", "step": 2, "top1_error_pct": 50.0},
    ]
    assert read_records(tmp_path / "timings.jsonl") == [
        {"kind": "throughput", "step": 1, "images_per_s": 100.0}
    ]


def test_a_record_is_on_disk_before_the_next_step(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker.metrics("train", 1, loss=2.5)
        assert steps(tmp_path / "metrics.jsonl") == [1]


def test_a_resumed_run_forgets_what_came_after_its_checkpoint(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        for step in (1, 2, 3, 4):
            tracker.metrics("train", step, loss=0.1 * step)
            tracker.timings("throughput", step, images_per_s=1.0)
            if step == 2:
                saved = tracker.sync()
                tracker.metrics("epoch", step, loss=0.1)  # of the same step, but later
    with Tracker(NO_WANDB, tmp_path, {}, resumed=saved) as tracker:
        tracker.metrics("train", 3, loss=0.0)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2, 3]
    assert read_records(tmp_path / "metrics.jsonl")[-1]["loss"] == 0.0
    assert steps(tmp_path / "timings.jsonl") == [1, 2]


def test_what_a_resumed_run_keeps_does_not_change_by_a_bit(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker.metrics("train", 1, loss=1 / 3, rate=1e-05)
        tracker.metrics("train", 2, loss=2 / 3)
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    with Tracker(NO_WANDB, tmp_path, {}, resumed={"metrics.jsonl": 1}):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == first + "\n"


def test_records_that_were_lost_or_torn_are_told_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    with Tracker(NO_WANDB, tmp_path, {}, resumed={"metrics.jsonl": 2}) as tracker:
        tracker.metrics("train", 3, loss=0.0)
    assert steps(tmp_path / "metrics.jsonl") == [1, 3]
    assert "1 of 2 records are lost" in caplog.text


def test_a_new_run_starts_with_empty_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with Tracker(NO_WANDB, tmp_path, {}):
        pass
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_records_of_a_file_that_is_not_there_are_none(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_wandb_is_not_even_imported_where_it_is_disabled(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from alexnet2012.config import TrackingConfig, WandbMode\n"
        "from alexnet2012.tracking import Tracker\n"
        "with Tracker(TrackingConfig(wandb=WandbMode.disabled), pathlib.Path(sys.argv[1]), {}):\n"
        "    assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_an_offline_wandb_run_lies_in_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with Tracker(TrackingConfig(wandb=WandbMode.offline), tmp_path, {"seed": 1}) as tracker:
        tracker.metrics("train", 1, loss=2.5)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.5


def test_a_run_that_goes_on_is_the_same_run_for_wandb_and_a_new_one_is_not(tmp_path: Path) -> None:
    offline, ids = TrackingConfig(wandb=WandbMode.offline), []
    for resumed in (None, {"metrics.jsonl": 1}, None):
        with Tracker(offline, tmp_path, {}, resumed=resumed) as tracker:
            tracker.metrics("train", 1, loss=2.5)
        ids.append((tmp_path / "wandb_id.txt").read_text())
        assert list(tmp_path.glob(f"wandb/offline-run-*-{ids[-1]}/run-{ids[-1]}.wandb"))
    assert ids[0] == ids[1] != ids[2]
