"""Records of a run, what a resumed run keeps of them, and what the loggers receive."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from alexnet2012.config.enums import WandbMode
from alexnet2012.config.schema import ConfigError, RunError, TrackingConfig
from alexnet2012.tracking.backends import check_backends, set_home, wandb_mode
from alexnet2012.tracking.tracker import Tracker, read_records

NO_WANDB = TrackingConfig(wandb=WandbMode.disabled)


def steps(path: Path) -> list[int]:
    return [record["step"] for record in read_records(path)]


def test_metrics_and_timings_go_to_separate_files(tmp_path: Path) -> None:
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


def test_a_resumed_run_drops_records_after_its_checkpoint(tmp_path: Path) -> None:
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


def test_records_kept_by_a_resumed_run_are_unchanged(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker.metrics("train", 1, loss=1 / 3, rate=1e-05)
        tracker.metrics("train", 2, loss=2 / 3)
    first = (tmp_path / "metrics.jsonl").read_text().splitlines()[0]
    with Tracker(NO_WANDB, tmp_path, {}, resumed={"metrics.jsonl": 1}):
        pass
    assert (tmp_path / "metrics.jsonl").read_text() == first + "\n"


def test_lost_or_truncated_records_are_reported_and_the_others_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n{"kind": "tr')
    with Tracker(NO_WANDB, tmp_path, {}, resumed={"metrics.jsonl": 2}) as tracker:
        tracker.metrics("train", 3, loss=0.0)
    assert steps(tmp_path / "metrics.jsonl") == [1, 3]
    assert "1 of 2 records were lost" in caplog.text


def test_a_new_run_starts_with_empty_files(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"kind": "train", "step": 1}\n')
    with Tracker(NO_WANDB, tmp_path, {}):
        pass
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_a_missing_file_has_no_records(tmp_path: Path) -> None:
    assert read_records(tmp_path / "metrics.jsonl") == []


def test_wandb_is_not_imported_if_disabled(tmp_path: Path) -> None:
    code = (
        "import sys, pathlib\n"
        "from alexnet2012.config.schema import TrackingConfig, WandbMode\n"
        "from alexnet2012.tracking.tracker import Tracker\n"
        "with Tracker(TrackingConfig(wandb=WandbMode.disabled), pathlib.Path(sys.argv[1]), {}):\n"
        "    assert 'wandb' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True, timeout=60)


def test_an_offline_wandb_run_is_in_the_run_directory(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with Tracker(TrackingConfig(wandb=WandbMode.offline), tmp_path, {"seed": 1}) as tracker:
        tracker.metrics("train", 1, loss=2.5)
    assert list(tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert json.loads((tmp_path / "metrics.jsonl").read_text())["loss"] == 2.5


def test_a_user_without_a_home_directory_gets_one_for_wandb(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/someone")
    set_home(tmp_path)
    assert os.environ["HOME"] == "/home/someone"
    monkeypatch.delenv("HOME")
    known = str(Path.home())  # to the system, which is asked for it
    set_home(tmp_path)
    assert os.environ["HOME"] == known
    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", {}.__getitem__)  # as in a container without users
    set_home(tmp_path)
    assert os.environ["HOME"] == str(tmp_path)


def test_a_resumed_run_keeps_its_wandb_id_and_a_new_one_gets_another(tmp_path: Path) -> None:
    offline, ids = TrackingConfig(wandb=WandbMode.offline), []
    for resumed in (None, {"metrics.jsonl": 1}, None):
        with Tracker(offline, tmp_path, {}, resumed=resumed) as tracker:
            tracker.metrics("train", 1, loss=2.5)
        ids.append((tmp_path / "wandb_id.txt").read_text())
        assert list(tmp_path.glob(f"wandb/offline-run-*-{ids[-1]}/run-{ids[-1]}.wandb"))
    assert ids[0] == ids[1] != ids[2]


def settings(**values: Any) -> TrackingConfig:
    return TrackingConfig(**({"wandb": WandbMode.disabled} | values))


def shown_by_tensorboard(run_dir: Path) -> tuple[dict[str, list[tuple[int, float]]], Any]:
    """Step and value by name, in the order in which a reader meets them; and the pictures."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(run_dir / "tensorboard"), {"scalars": 0, "images": 0})
    events.Reload()
    found = events.Tags()
    scalars = {name: [(e.step, e.value) for e in events.Scalars(name)] for name in found["scalars"]}
    return scalars, {name: [e.step for e in events.Images(name)] for name in found["images"]}


def wandb_records(run_dir: Path) -> list[Any]:
    """The records of the offline run, of which there is one."""
    from wandb.proto import wandb_internal_pb2

    (file,) = run_dir.glob("wandb/offline-run-*/*.wandb")
    records: list[Any] = []
    until = time.monotonic() + 20  # its own process may write for a moment longer
    while not any(r.WhichOneof("record_type") == "exit" for r in records):
        assert time.monotonic() < until, "wandb does not end its file"
        records = [
            wandb_internal_pb2.Record.FromString(data)
            for data in log_entries(file.read_bytes()[7:], at=7)  # after wandb's header
        ]
    return records


def shown_by_wandb(run_dir: Path) -> dict[str, list[tuple[int, Any]]]:
    """The same as by TensorBoard, of the offline run."""
    found: dict[str, list[tuple[int, Any]]] = {}
    for record in wandb_records(run_dir):
        for item in record.history.item:
            name = item.key or "/".join(item.nested_key)
            value = json.loads(item.value_json)
            found.setdefault(name, []).append((record.history.step.num, value))
    return found


def log_entries(log: bytes, at: int) -> Iterator[bytes]:
    """Of LevelDB's log format; ``at`` is the place of its first byte in the file."""
    block, head, parts, place = 32768, 7, b"", 0
    while place + head <= len(log):
        if (left := block - (at + place) % block) < head:
            place += left
            continue
        _, length, kind = struct.unpack_from("<IHB", log, place)
        parts += log[place + head : place + head + length]
        place += head + length
        if kind in (1, 4):  # whole, or the last part
            yield parts
            parts = b""


def watched_run(tracker: Tracker, steps: range) -> None:
    """A record of each kind, a validation with its picture every other step."""
    for step in steps:
        tracker.metrics("train", step, loss=1 / step)
        tracker.timings("pace", step, step_time_ms=2.0 * step)
        tracker.watched("update_ratio", step, conv1=step / 1024)
        if step % 2 == 0:
            tracker.metrics("validation", step, top1_error_pct=50.0)
            for name in ("kernels-tower0", "wrong-guesses"):
                picture = Image.new("RGB", (8, 8), (step, 0, 0))
                tracker.image(name, step, picture, last_only=name == "wrong-guesses")


# Where a run is cut, and whether its last validation came before the checkpoint or after.
@pytest.mark.parametrize("validated_after", [False, True])
def test_both_loggers_of_a_resumed_run_have_no_gap_and_no_repeated_record(
    tmp_path: Path, validated_after: bool
) -> None:
    both = settings(wandb=WandbMode.offline, tensorboard=True)
    with Tracker(both, tmp_path, {}) as tracker:
        tracker.started(0, unix_s=1.0, total_steps=6)
        watched_run(tracker, range(1, 4))
        if validated_after:
            tracker.metrics("train", 4, loss=1 / 4)
            tracker.timings("pace", 4, step_time_ms=8.0)
            tracker.watched("update_ratio", 4, conv1=4 / 1024)
            saved = tracker.sync()
            tracker.metrics("validation", 4, top1_error_pct=99.0)
            tracker.image("kernels-tower0", 4, Image.new("RGB", (8, 8)), last_only=False)
        else:
            watched_run(tracker, range(4, 5))
            saved = tracker.sync()
        watched_run(tracker, range(5, 7))  # all of it forgotten
    with Tracker(both, tmp_path, {}, resumed=saved) as tracker:
        tracker.started(4, unix_s=2.0, total_steps=6)
        if validated_after:
            tracker.metrics("validation", 4, top1_error_pct=50.0)
            tracker.image("kernels-tower0", 4, Image.new("RGB", (8, 8)), last_only=False)
        watched_run(tracker, range(5, 7))
    steps = range(1, 7)
    scalars, pictures = shown_by_tensorboard(tmp_path)
    by_wandb = shown_by_wandb(tmp_path)
    for shown in (scalars, by_wandb):
        assert shown["train/loss"] == [(s, pytest.approx(1 / s)) for s in steps]
        assert shown["pace/step_time_ms"] == [(s, 2.0 * s) for s in steps]
        assert shown["update_ratio/conv1"] == [(s, s / 1024) for s in steps]
        assert shown["validation/top1_error_pct"] == [(s, 50.0) for s in (2, 4, 6)]
        assert not any(name.startswith("begun") for name in shown)
    assert pictures["kernels-tower0"] == [2, 4, 6]
    by_name = {path.name for path in (tmp_path / "pictures").iterdir()}
    kernels = {f"kernels-tower0-{step:07d}.png" for step in (2, 4, 6)}
    assert by_name == kernels | {"wrong-guesses-0000006.png"}
    shown_pictures = {name.split("/")[0] for name in by_wandb if "kernels" in name}
    assert shown_pictures == {"kernels-tower0"}


def test_a_tensorboard_that_was_open_during_a_resume_shows_no_step_twice(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    wanted = settings(tensorboard=True)
    with Tracker(wanted, tmp_path, {}) as tracker:
        watched_run(tracker, range(1, 3))
        saved = tracker.sync()
        watched_run(tracker, range(3, 6))
    looking = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    looking.Reload()
    assert [event.step for event in looking.Scalars("train/loss")] == [1, 2, 3, 4, 5]
    time.sleep(1.01)  # event files are sorted by the second in their names
    with Tracker(wanted, tmp_path, {}, resumed=saved) as tracker:
        watched_run(tracker, range(3, 7))
    looking.Reload()
    assert [event.step for event in looking.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_wandb_online_sends_only_steps_that_the_server_does_not_have(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Run:
        starting_step, sent = 3, list[int]()

        def log(self, values: object, step: int) -> None:
            self.sent.append(step)

        def finish(self, exit_code: int) -> None:
            assert exit_code == 0

    given: dict[str, Any] = {}
    monkeypatch.setattr("wandb.init", lambda **words: given.update(words) or Run())
    monkeypatch.setenv("WANDB_MODE", "online")
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        watched_run(tracker, range(1, 6))
        saved = tracker.sync()
    with Tracker(TrackingConfig(), tmp_path, {}, resumed=saved) as tracker:
        tracker.metrics("train", 6, loss=0.0)
    assert (given["mode"], given["resume"]) == ("online", "allow")
    assert sorted(set(Run.sent)) == [3, 4, 5, 6]
    assert Run.sent == sorted(Run.sent)


def test_a_logger_turned_on_at_resume_gets_the_earlier_records(tmp_path: Path) -> None:
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        watched_run(tracker, range(1, 4))
        saved = tracker.sync()
    with Tracker(settings(tensorboard=True), tmp_path, {}, resumed=saved) as tracker:
        watched_run(tracker, range(4, 5))
    scalars, pictures = shown_by_tensorboard(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == [1, 2, 3, 4]
    assert pictures["kernels-tower0"] == [2, 4]


def test_a_new_run_shows_nothing_of_an_earlier_run_in_the_directory(tmp_path: Path) -> None:
    for last in (6, 3):
        with Tracker(settings(tensorboard=True), tmp_path, {}) as tracker:
            watched_run(tracker, range(1, last))
    scalars, pictures = shown_by_tensorboard(tmp_path)
    assert [step for step, _ in scalars["train/loss"]] == [1, 2]
    assert pictures["kernels-tower0"] == [2]
    assert [path.name[-8:] for path in (tmp_path / "pictures").iterdir()] == ["0002.png"] * 2


def test_a_logger_that_fails_is_dropped_and_records_are_still_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing:
        name = "a view"

        def values(self, step: int, values: object) -> None:
            raise BrokenPipeError("the service is gone")

    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker._backends.append(Failing())  # type: ignore[arg-type]
        tracker.metrics("train", 1, loss=2.0)
        tracker.metrics("train", 2, loss=1.0)
    assert steps(tmp_path / "metrics.jsonl") == [1, 2]
    assert caplog.text.count("a view failed and is off") == 1


def test_an_image_that_cannot_be_written_is_reported_and_records_are_still_written(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "pictures").write_text("in the way")
    with Tracker(NO_WANDB, tmp_path, {}) as tracker:
        tracker.image("kernels-tower0", 1, Image.new("RGB", (8, 8)), last_only=False)
        tracker.metrics("train", 1, loss=2.0)
    assert steps(tmp_path / "metrics.jsonl") == [1]
    assert "cannot be written" in caplog.text


@pytest.mark.parametrize(
    ("setting", "said", "mode"),
    [
        (WandbMode.offline, None, WandbMode.offline),
        (WandbMode.offline, "", WandbMode.offline),
        (WandbMode.offline, "online", WandbMode.online),
        (WandbMode.online, "dryrun", WandbMode.offline),  # wandb's former names
        (WandbMode.offline, "run", WandbMode.online),
        (WandbMode.online, "offline", WandbMode.offline),
        (WandbMode.online, "disabled", WandbMode.disabled),
        (WandbMode.disabled, "online", WandbMode.disabled),
    ],
)
def test_the_environment_variable_overrides_the_setting_unless_it_is_disabled(
    monkeypatch: pytest.MonkeyPatch, setting: WandbMode, said: str | None, mode: WandbMode
) -> None:
    monkeypatch.delenv("WANDB_MODE")
    if said is not None:
        monkeypatch.setenv("WANDB_MODE", said)
    assert wandb_mode(TrackingConfig(wandb=setting)) is mode


WITH_WANDB = """
import pathlib, sys
from alexnet2012.config.schema import TrackingConfig
from alexnet2012.tracking.tracker import Tracker
Tracker(TrackingConfig(), pathlib.Path(sys.argv[1]), {}).__exit__(None, None, None)
"""


def test_wandbs_variables_are_heeded(tmp_path: Path) -> None:
    """In a process of its own, because wandb reads them once."""
    given = {
        "WANDB_MODE": "dryrun",
        "WANDB_PROJECT": "birds",
        "WANDB_ENTITY": "a-team",
        "WANDB_NAME": "first",
        "WANDB_RUN_GROUP": "sweep",
        "WANDB_TAGS": "paper,two towers",
        "WANDB_NOTES": "a note",
        "WANDB_JOB_TYPE": "train",
        "WANDB_DIR": str(tmp_path / "elsewhere"),
        "WANDB_RUN_ID": "notours",
    }
    words = [sys.executable, "-c", WITH_WANDB, str(tmp_path / "run")]
    subprocess.run(words, check=True, timeout=60, env=os.environ | given)
    (run,) = (
        r.run for r in wandb_records(tmp_path / "run") if r.WhichOneof("record_type") == "run"
    )
    assert (run.project, run.entity, run.display_name) == ("birds", "a-team", "first")
    assert (run.run_group, [*run.tags]) == ("sweep", ["paper", "two towers"])
    assert (run.notes, run.job_type) == ("a note", "train")
    assert run.run_id == (tmp_path / "run" / "wandb_id.txt").read_text()  # resumes by it


def test_a_project_that_wandb_refuses_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_PROJECT", "a/b")
    with pytest.raises(ConfigError, match=r"cannot start \(Invalid project name 'a/b'.*\)$"):
        Tracker(TrackingConfig(), tmp_path, {})


def test_an_unknown_mode_is_refused_with_the_valid_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "onlin")
    with pytest.raises(ConfigError, match=r"WANDB_MODE=onlin: use one of offline, online, dis"):
        check_backends(TrackingConfig())


def test_wandb_online_without_an_account_is_refused_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("HOME", str(tmp_path))  # where a key would lie
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wanted = r"tracking.wandb=online: cannot start \(No API key.*\); log in, or use offline"
    with pytest.raises(ConfigError, match=wanted):
        Tracker(TrackingConfig(), tmp_path / "run", {})


def test_a_missing_tensorboard_is_reported_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("alexnet2012.tracking.backends.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"pip install 'alexnet2012\[tensorboard\]'"):
        check_backends(settings(tensorboard=True))


def test_records_of_a_run_directory_that_was_removed_are_not_written_elsewhere(
    tmp_path: Path,
) -> None:
    run_dir = tmp_path / "run"
    tracker = Tracker(NO_WANDB, run_dir, {})
    shutil.rmtree(run_dir)
    with pytest.raises(RunError, match="was removed during the run"):
        tracker.metrics("train", 1, loss=1.0)
    assert not run_dir.exists()
