"""Reference bands: healthy runs stay within them, faulty ones leave and name their cause."""

from __future__ import annotations

import json
import math
import random
import re
import sys
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from band_faults import FAULTS, nothing
from programs import TINY

from alexnet2012 import runs
from alexnet2012.checkpoint.manifest import to_plain
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.ledger.measurements.training_runs import read_run as read_for_report
from alexnet2012.ledger.report import charts
from alexnet2012.tracking import bands
from alexnet2012.tracking.bands import (
    BINS,
    METRIC_KEYS,
    Band,
    BandWatch,
    Classes,
    Departure,
    band_key,
    find_band,
    groups_of_seeds,
    load_bands,
    make_band,
    read_curve,
    save_bands,
)
from alexnet2012.tracking.likely_causes import Evidence, likely_causes
from alexnet2012.tracking.run_index import find_runs, read_run
from alexnet2012.training.trainer import Trainer

STEPS, EVERY, CLASSES = 800, 10, Classes.of([f"class {i}" for i in range(10)])
CHANCE = math.log(CLASSES.number)


def healthy_loss(step: int) -> float:
    return 0.5 + (CHANCE - 0.5) * math.exp(-4 * step / STEPS)


def records(seed: int, shift: float = 0.0) -> list[tuple[int, float, float]]:
    """Steps, losses and errors of a made run; seeds differ by 1%, records by 2%."""
    draw = random.Random(seed)
    of_seed = draw.gauss(0, 0.01)
    found = []
    for step in range(EVERY, STEPS + 1, EVERY):
        loss = healthy_loss(step) * (1 + of_seed + draw.gauss(0, 0.02)) + shift
        found.append((step, loss, min(100.0, 40 * loss)))
    return found


@cache
def composed(*words: str) -> TrainConfig:
    """A configuration, which no test changes."""
    return compose_config("train", TrainConfig, words)[0]


def write_run(folder: Path, seed: int, *words: str, shift: float = 0.0) -> Path:
    """A finished run on made records, as a run directory has them."""
    config = composed("data.store=x", *words)
    config = replace(config, seed=seed, schedule=replace(config.schedule, epochs=8))
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(to_plain(config)))
    begun = {"kind": "begun", "step": 0, "unix_s": 1, "total_steps": STEPS}
    begun |= {"classes": CLASSES.number, "classes_digest": CLASSES.digest}
    (folder / "timings.jsonl").write_text(json.dumps(begun) + "\n")
    lines: list[dict[str, Any]] = []
    for step, loss, error in records(seed, shift):
        lines.append({"kind": "train", "step": step, "loss": loss, "train_error_pct": error})
        if step % (STEPS // 8) == 0:
            lines.append({"kind": "epoch", "step": step, "epoch": step // (STEPS // 8) - 1})
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (folder / "summary.json").write_text(json.dumps({"steps": STEPS, "images_per_s": 1.0}))
    return folder


@pytest.fixture(scope="module")
def healthy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bands")
    for seed in range(8):
        write_run(folder / "runs" / str(seed), seed)
    return folder / "runs"


@pytest.fixture(scope="module")
def band(healthy: Path) -> Band:
    curves = [read_curve(folder) for folder in find_runs(healthy)[0]]
    (group,) = groups_of_seeds([curve for curve in curves if curve is not None])
    made = make_band(group)
    assert made is not None
    return made


def watched(band: Band | None, seed: int, shift: float = 0.0) -> Departure | None:
    watch = BandWatch(band, STEPS, CHANCE)
    for record in records(seed, shift):
        watch.add(*record)
    return watch.departure


def test_a_band_covers_healthy_seeds_that_it_was_not_made_of(band: Band) -> None:
    assert band.name == "paper, width 1, 224 pixels, 10 classes, 8 epochs"
    assert (band.runs, band.steps, band.batch_size, band.rate) == (8, STEPS, 128, 0.01)
    assert sum(watched(band, seed) is not None for seed in range(100, 200)) <= 5


@pytest.mark.parametrize("shift", [0.5, -0.5])
def test_a_run_above_or_below_its_band_departs_within_a_tenth(band: Band, shift: float) -> None:
    departure = watched(band, 100, shift)
    assert departure is not None
    assert departure.progress_pct <= 10
    assert departure.limits is not None
    said = r"step \d+ \(\d+%\): training (loss|error) is .*; healthy runs have"
    assert re.match(said, str(departure))


def test_one_bin_slightly_outside_is_no_departure_and_two_in_a_row_are(band: Band) -> None:
    def departure(outside: set[int]) -> Departure | None:
        watch = BandWatch(band, STEPS, CHANCE)
        for index in range(BINS):
            limits = band.limits["loss"][index]
            assert limits is not None
            _, mean, high = limits
            loss = mean + 1.5 * (high - mean) * (index in outside)
            error = band.limits["train_error_pct"][index]
            assert error is not None
            watch.add((index + 1) * STEPS // BINS, loss, error[1])
        return watch.departure

    assert departure({5, 9}) is None
    found = departure({5, 6})
    assert found is not None
    assert (found.step, found.metric) == (7 * STEPS // BINS, "loss")


def test_without_a_band_only_chance_after_a_while_is_reported() -> None:
    assert watched(None, 1) is None
    watch = BandWatch(None, 10_000, CHANCE)
    told = [step for step in range(10, 3000, 10) if watch.add(step, CHANCE, 90.0) is not None]
    assert told == [1010]  # once: after a tenth, at the end of a bin
    assert str(watch.departure) == "step 1000 (10%): training loss is 2.303, which is chance level"


def test_a_band_applies_whatever_can_be_wrong_and_to_nothing_else() -> None:
    config = composed("data.store=x")

    def key(path: str = "seed", value: object = 0) -> str:
        settings = to_plain(config)
        *groups, name = path.split(".")
        group = settings
        for part in groups:
            group = group[part]
        assert name in group
        group[name] = value
        return band_key(settings, CLASSES)

    for path in (
        *("seed", "schedule.rate", "schedule.bias_rate", "schedule.rate_factor", "data.batch_size"),
        *("recipe.conv1.init_std", "recipe.fc8.init_std", "schedule.warmup_epochs"),
        *("tracking.log_every_steps", "mesh.processes", "checkpoint.keep_last", "precision"),
    ):
        assert key(path, 3) == key(), path
    for path in ("recipe.name", "model.width", "recipe.lrn.k", "schedule.epochs", "data.limit"):
        assert key(path, 3) != key(), path
    assert band_key(to_plain(config), Classes.of(["a", "b"])) != key()


def test_a_band_needs_as_many_images(band: Band, healthy: Path) -> None:
    curve = read_curve(healthy / "0")
    assert curve is not None
    for steps, batch_size, found in ((STEPS, 128, band), (8 * STEPS, 16, band), (80, 128, None)):
        assert find_band([band], curve.nested, CLASSES, steps, batch_size) is found


def test_bands_are_kept_in_a_file_with_those_of_other_runs(band: Band, tmp_path: Path) -> None:
    other = replace(band, settings={**band.settings, "model.width": 0.5}, name="another")
    save_bands([other], tmp_path / "bands.json")
    save_bands([band], tmp_path / "bands.json")
    read = {found.key: found for found in load_bands(tmp_path / "bands.json")}
    assert set(read) == {band.key, other.key}
    limits, made = read[band.key].limits["loss"][3], band.limits["loss"][3]
    assert limits == pytest.approx(made, abs=1e-4)
    (tmp_path / "bands.json").write_text('{"format": 0}')
    with pytest.raises(ConfigError, match=r"has no reference bands .*`alexnet2012 runs bands` mak"):
        load_bands(tmp_path / "bands.json")


SHIPPED = {  # bands of the package: the words that train such a run
    "code145, width 0.125, 64 pixels, 16 classes, 6 epochs": ("ablations/quick", "code145"),
    "code145, width 0.25, 112 pixels, 16 classes, 14 epochs": ("reduced/quick", "code145"),
    "code145, width 0.25, 128 pixels, 10 classes, 30 epochs": ("ablations/reduced", "code145"),
    "paper, width 0.125, 64 pixels, 16 classes, 6 epochs": ("ablations/quick", "paper"),
}


def test_the_bands_of_the_package_are_those_of_its_presets(photos_store: Store) -> None:
    bands = {band.name: band for band in load_bands()}
    assert bands.keys() == SHIPPED.keys()
    for name, (experiment, recipe) in SHIPPED.items():
        words = [f"experiment={experiment}", f"recipe={recipe}", "data.source=photos"]
        settings = to_plain(compose_config("train", TrainConfig, words)[0])
        assert band_key(settings, bands[name].classes) == bands[name].key, name
        photos = bands[name].classes == Classes.of(photos_store.classes)
        assert photos == ("16 classes" in name)


def test_a_setting_that_came_later_has_its_default_in_a_band(band: Band) -> None:
    earlier = {key: value for key, value in band.settings.items() if "conv_dropout" not in key}
    assert len(earlier) < len(band.settings)
    assert replace(band, settings=earlier).key == band.key
    assert replace(band, settings={**earlier, "recipe.conv_dropout_rate": 0.2}).key != band.key


def command(monkeypatch: pytest.MonkeyPatch, *words: str | Path) -> None:
    monkeypatch.setattr(sys, "argv", ["runs", *map(str, words)])
    runs.main()


def test_the_command_makes_bands_and_counts_runs_that_leave_them(
    healthy: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    write_run(tmp_path / "far", 9, shift=0.7)
    write_run(tmp_path / "other-rate", 3, "schedule.rate_factor=2")
    out = tmp_path / "made.json"
    command(monkeypatch, "bands", healthy, tmp_path, "--hold-out", "3", "--out", out)
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "paper, width 1, 224 pixels, 10 classes, 8 epochs: 6 runs"
    assert said[1].startswith(f"  {tmp_path / 'far'}: step 20 (2%): ")
    assert said[2:] == ["  1 of 3 other runs leave it"]
    assert [found.runs for found in load_bands(out)] == [6]
    with pytest.raises(SystemExit) as ended:
        command(monkeypatch, "bands", tmp_path)
    assert ended.value.code == 2
    assert "it takes at least 3 finished runs that differ in their seed" in capsys.readouterr().err


def test_a_run_is_drawn_with_its_band_behind_it(
    healthy: Path,
    band: Band,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("alexnet2012.runs.load_bands", lambda: [band])
    command(monkeypatch, healthy / "0")
    drawn = capsys.readouterr().out
    assert drawn.count("●") == BINS + 1  # and the legend
    assert "░ 8 healthy runs (paper, width 1" in drawn
    name = "alexnet2012.ledger.measurements.training_runs"
    monkeypatch.setattr(f"{name}.load_bands", lambda: [band])
    run = read_for_report(healthy / "0", "loss", "", "", CLASSES.number)
    assert run["band"]["runs"] == 8
    (chart,) = charts.training({"reduced": run})
    assert "8 healthy runs" in chart["svg"]
    del run["band"]
    (plain,) = charts.training({"reduced": run})
    assert "healthy runs" not in plain["svg"]


def test_causes_are_ordered_by_their_evidence() -> None:
    def causes(evidence: Evidence, *, at_chance: bool) -> list[str]:
        return [cause.text for cause in likely_causes(evidence, at_chance=at_chance)]

    usual = Evidence(1.0, 58.0, spread={"conv1": 1.01}, rate_ratio=1.0, batch_ratio=1.0)
    assert all(cause.strength < 0 for cause in likely_causes(usual, at_chance=False))
    assert all(":" not in cause for cause in causes(usual, at_chance=False))
    assert causes(usual, at_chance=True)[0].startswith("labels do not belong")
    both = replace(usual, pixel_mean=0.01, pixel_std=0.23, rate_ratio=4.0)
    first, second, third = causes(both, at_chance=True)
    assert first.startswith("pixels are not on the scale of 0 to 255: the standard deviation")
    assert second == (
        "the learning rate does not fit the batch size: for each image of a batch it is 4 times "
        "that of healthy runs"
    )
    assert third.startswith("labels")
    assert len(causes(Evidence(), at_chance=False)) == 3
    # Four times the batch, at the right rate, or at that of the small one.
    scaled = causes(replace(usual, batch_ratio=4.0), at_chance=False)
    assert scaled[0].endswith("number of updates: it is 4 times that of healthy runs")
    unscaled = causes(replace(usual, rate_ratio=0.25, batch_ratio=4.0), at_chance=False)
    assert unscaled[0].startswith("the learning rate does not fit the batch size: ")


def low_band(config: TrainConfig, store: Store) -> Band:
    """A band that every run leaves at once."""
    limits: list[bands.Limits | None] = [(0.0, 0.001, 0.002)] * BINS
    layers = {name: getattr(config.recipe, name).init_std for name in config.recipe.layers}
    of = to_plain(config), Classes.of(store.classes)
    return Band("low", *of, 3, 120, 32, 0.01, layers, dict.fromkeys(METRIC_KEYS, limits))


def watched_config(store: Store, file: Path, *words: str) -> TrainConfig:
    """Of a run that leaves its band, which is written to a file."""
    where = (f"data.store={store.root}", "mesh=one_process", "recipe=code145")
    own = (*TINY, *where, "schedule.epochs=40")
    save_bands([low_band(composed(*own), store)], file)
    config = composed(*own, *words)
    return replace(config, tracking=replace(config.tracking, bands=str(file)))


@pytest.mark.parametrize("fault", ["healthy", *FAULTS])
def test_each_fault_alone_is_told_from_the_others_by_what_the_run_measures(
    fault: str, photos_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = watched_config(photos_store, tmp_path / "bands.json")
    plant, more, cause = FAULTS.get(fault, (nothing, lambda _: [], ""))
    faulty = watched_config(photos_store, tmp_path / "bands.json", *more(config))
    run_dir = tmp_path / "run"
    with plant():
        summary = Trainer(replace(faulty, max_steps=6), single_process(Device.cpu), run_dir).run()
    left = summary["band"]["left"]
    assert (summary["band"]["name"], left["metric"]) == ("low", "loss")
    causes = left["likeliest_causes"]
    with_evidence = [text for text in causes if ":" in text and not text.startswith("labels")]
    if fault in ("healthy", "labels shuffled"):
        assert with_evidence == []
        assert cause in causes[0]
    else:
        assert cause in causes[0]
        assert len(with_evidence) == 1
    (line,) = (r.getMessage() for r in caplog.records if " causes: 1. " in r.getMessage())
    assert ("nothing that the first step measured is unusual" in line) == (":" not in causes[0])
    assert causes[0] in line
    info = read_run(run_dir)
    assert info.left_band == left


def test_a_resumed_run_does_not_repeat_what_it_said(
    photos_store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = watched_config(photos_store, tmp_path / "bands.json")
    found = []
    for steps in (8, 12):
        config = replace(config, max_steps=steps)
        summary = Trainer(config, single_process(Device.cpu), tmp_path / "run").run()
        found.append(summary["band"]["left"])
    assert found[0] == found[1]
    assert sum(" causes: 1. " in r.getMessage() for r in caplog.records) == 1
    kinds = [json.loads(line)["kind"] for line in (tmp_path / "run" / "timings.jsonl").open()]
    assert (kinds.count("observed"), kinds.count("left_band")) == (1, 1)
