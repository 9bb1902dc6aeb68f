"""``alexnet2012 verify``: a healthy run is proven, and a changed one is not."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from programs import TINY

from alexnet2012 import verify
from alexnet2012.checkpoint import manifest
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, TrainConfig, VerifyConfig
from alexnet2012.data.store import Store, fingerprint, manifest_digest
from alexnet2012.diagnostics.run_files import check_files
from alexnet2012.diagnostics.verify_run import (
    Proof,
    choose_stretches,
    flips,
    stretches_between,
    verify_run,
)
from alexnet2012.distributed.mesh import single_process
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.files import replace_text

Change = Callable[["Copy"], None]
STEPS = 6  # two epochs of three


def train(store: Store, folder: Path, *more: str) -> Path:
    words = [*TINY, f"data.store={store.root}", "mesh=one_process", "schedule.epochs=2", *more]
    config, _ = compose_config("train", TrainConfig, [*words, f"hydra.run.dir={folder}"])
    folder.mkdir(exist_ok=True)
    Trainer(config, single_process(Device.cpu), folder).run()
    return folder


@pytest.fixture(scope="module")
def finished(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a checkpoint every two steps, and after each epoch."""
    folder = tmp_path_factory.mktemp("verified") / "run"
    every = ("checkpoint.every_steps=2", "checkpoint.keep_last=null")
    return train(photos_store, folder, *every)


class Copy:
    """A copy of a run and of its store, and ways to change them so that checksums still fit."""

    def __init__(self, run_dir: Path, store: Store, folder: Path) -> None:
        self.run, self.store = folder / "run", folder / "store"
        shutil.copytree(run_dir, self.run)
        shutil.copytree(store.root, self.store, copy_function=link_images)

    def verify(self, **more: Any) -> Proof:
        asked = {"segments": 9, "steps": STEPS, "seed": 0} | more
        return verify_run(VerifyConfig(run=str(self.run), store=str(self.store), **asked))

    @property
    def checkpoints(self) -> list[Path]:
        return list(reversed(manifest.list_checkpoints(self.run)))

    def records(self, change: Callable[[list[dict[str, Any]]], Any]) -> None:
        path = self.run / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        change(records)
        path.write_text("".join(json.dumps(record) + "\n" for record in records))

    def config(self, change: Callable[[dict[str, Any]], Any]) -> None:
        path = self.run / "config.yaml"
        values = yaml.safe_load(path.read_text())
        change(values)
        path.write_text(yaml.safe_dump(values))

    def saved(self, change: Callable[[dict[str, Any]], Any], *which: Path) -> None:
        for folder in which or self.checkpoints:
            path = folder / manifest.METADATA
            values = json.loads(path.read_text())
            change(values)
            path.write_text(json.dumps(values))
            fix_checksums(folder)

    def settings(self, change: Callable[[dict[str, Any]], Any]) -> None:
        """Everywhere that they are recorded."""
        self.config(change)
        self.saved(lambda values: change(values["settings"]))

    def summary(self, change: Callable[[dict[str, Any]], Any]) -> None:
        path = self.run / "summary.json"
        values = json.loads(path.read_text())
        change(values)
        path.write_text(json.dumps(values))

    def refit_store(self) -> None:
        """Make checksums of the store, and all records of it, those of its files."""
        path = self.store / "manifest.json"
        values = json.loads(path.read_text())
        values["fingerprint"] = fingerprint(self.store)
        values["sha256"] = manifest_digest(values, self.store)
        path.write_text(json.dumps(values))
        self.saved(lambda saved: saved.update(store_fingerprint=values["fingerprint"]))
        self.summary(lambda summary: summary.update(store_fingerprint=values["fingerprint"]))
        with_summary = [f for f in self.checkpoints if manifest.read_progress(f).summary]
        self.saved(
            lambda saved: saved["summary"].update(store_fingerprint=values["fingerprint"]),
            *with_summary,
        )

    def tensor_bit(self, name: str, folder: Path) -> None:
        """Change the last bit of a tensor's first number."""
        (path,) = folder.glob("*.safetensors")
        data = bytearray(path.read_bytes())
        length = int.from_bytes(data[:8], "little")
        start, _ = json.loads(data[8 : 8 + length])[name]["data_offsets"]
        data[8 + length + start] ^= 1
        path.write_bytes(data)
        fix_checksums(folder)


def link_images(source: str, target: str) -> None:
    copy = os.link if source.endswith(".jpg") else shutil.copyfile
    copy(source, target)


def fix_checksums(folder: Path) -> None:
    replace_text(folder / "SHA256SUMS", manifest.checksums(folder, single_process(Device.cpu)))


def test_a_healthy_run_is_proven_bit_for_bit(finished: Path) -> None:
    proof = verify_run(VerifyConfig(run=str(finished), segments=9, steps=STEPS))
    assert proof.findings == []
    assert [(s["first"], s["last"]) for s in proof.replayed] == [(0, 2), (2, 3), (3, 4), (4, 6)]
    assert {s["weights"] for s in proof.replayed} == {"equal bit for bit"}
    assert (proof.steps_replayed, proof.records, proof.checkpoints) == (STEPS, 8, 4)
    assert proof.not_compared == []
    assert proof.images == 16 * 9
    assert proof.train_s > 0


def test_a_part_of_a_run_is_replayed_and_the_rest_is_named(finished: Path) -> None:
    proof = verify_run(VerifyConfig(run=str(finished), segments=1, seed=0, steps=2))
    assert [(s["first"], s["last"]) for s in proof.replayed] == [(4, 6)]
    assert proof.not_compared == [
        "4 of 6 steps: only their records, against each other",
        "the weights of 2 of 4 checkpoints",
    ]


def loss_and_mean(records: list[dict[str, Any]]) -> None:
    """A lower loss, and the mean of the epoch that it gives: two thirds of the images."""
    records[5]["loss"] -= 0.3
    records[6]["loss"] -= 0.2


def better_errors(copy: Copy) -> None:
    better = {"top1_error_pct": 12.5, "top1_errors": 6.0}

    def change(saved: dict[str, Any]) -> None:
        saved["top1_error_pct"] = saved["validation_errors"][-1] = 12.5
        saved["summary"].update(better)

    copy.summary(lambda summary: summary.update(better))
    copy.saved(change, copy.checkpoints[-1])
    copy.records(lambda records: records[-1].update(top1_error_pct=12.5))
    (copy.run / "image_errors.npz").unlink()


def other_rates(copy: Copy) -> None:
    copy.settings(lambda settings: settings["schedule"].update(rate=0.005))

    def change(records: list[dict[str, Any]]) -> None:
        for record in records:
            record.update({"rate": 0.005} if "rate" in record else {})

    copy.records(change)


def swapped_labels(copy: Copy, *, refit: bool) -> None:
    path = copy.store / "train.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    lines[0][1], lines[-1][1] = lines[-1][1], lines[0][1]
    path.write_text("".join("\t".join(line) + "\n" for line in lines))
    if refit:
        copy.refit_store()


def replaced_image(copy: Copy, *, refit: bool) -> None:
    path = copy.store / "train.tsv"
    lines = [line.split("\t") for line in path.read_text().splitlines()]
    (copy.store / lines[0][0]).unlink()  # it is a link
    shutil.copyfile(copy.store / lines[-1][0], copy.store / lines[0][0])
    if refit:
        lines[0][2] = lines[-1][2]
        path.write_text("".join("\t".join(line) + "\n" for line in lines))
        copy.refit_store()


def other_mean_image(copy: Copy, *, in_store: bool) -> None:
    mean = np.load(copy.store / "mean_image.npy") + np.float32(1)
    for folder in copy.checkpoints:
        np.save(folder / "mean_image.npy", mean)
        fix_checksums(folder)
    if in_store:
        np.save(copy.store / "mean_image.npy", mean)
        copy.refit_store()


def renumbered(copy: Copy, *, inside: bool) -> None:
    old = copy.checkpoints[0]
    new = old.with_name("step-0000001")
    old.rename(new)
    if inside:
        copy.saved(lambda saved: saved.update(step=1), new)


def of_another_run(copy: Copy, other: Path, *, disguised: bool) -> None:
    """The newest checkpoint is that of a run with another seed."""
    newest = copy.checkpoints[-1]
    own = (newest / manifest.METADATA).read_text()
    shutil.rmtree(newest)
    shutil.copytree(other / "checkpoints" / newest.name, newest)
    if disguised:
        (newest / manifest.METADATA).write_text(own)
        fix_checksums(newest)


@pytest.fixture(scope="module")
def other_seed(photos_store: Store, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(photos_store, tmp_path_factory.mktemp("other") / "run", "seed=1")


@pytest.fixture
def copy(finished: Path, photos_store: Store, tmp_path: Path) -> Copy:
    return Copy(finished, photos_store, tmp_path)


# Changes that leave the files in disagreement, and what is said.
NAIVE: dict[str, tuple[Change, str]] = {
    "a loss": (
        lambda c: c.records(lambda r: r[0].update(loss=1.0)),
        r"metrics.jsonl, line 3: loss is .*, and the records of the epoch give",
    ),
    "a record is removed": (
        lambda c: c.records(lambda r: r.pop(1)),
        r"metrics.jsonl, line 2: is epoch at step 3, and train at step 3 was to follow",
    ),
    "a record is repeated": (
        lambda c: c.records(lambda r: r.insert(1, r[0])),
        r"metrics.jsonl, line 2: is train at step 2, and train at step 3 was to follow",
    ),
    "the last records are removed": (
        lambda c: c.records(lambda r: r.__delitem__(slice(-2, None))),
        r"metrics.jsonl: ends before epoch at step 6, but the run has a summary",
    ),
    "a recorded rate": (
        lambda c: c.records(lambda r: r[0].update(rate=0.02)),
        r"metrics.jsonl, line 1: rate is 0.02, and the schedule gives 0.01",
    ),
    "a validation error": (
        lambda c: c.records(lambda r: r[3].update(top1_error_pct=10.0)),
        r"step-0000003: its validation error is not that of metrics.jsonl",
    ),
    "the seed of the settings": (
        lambda c: c.config(lambda s: s.update(seed=7)),
        r"step-0000002: has seed=0, and config.yaml 7",
    ),
    "the rate of the settings": (
        lambda c: c.config(lambda s: s["schedule"].update(rate=0.005)),
        r"step-0000002: has schedule.rate=0.01, and config.yaml 0.005",
    ),
    "the summary": (
        lambda c: c.summary(lambda s: s.update(top1_error_pct=1.0)),
        r"summary.json: top1_error_pct is 1.0, and .* in metrics.jsonl",
    ),
    "an image": (lambda c: replaced_image(c, refit=False), r"store: .*jpg is missing or was chang"),
    "two labels": (lambda c: swapped_labels(c, refit=False), r"store: .* is damaged"),
    "the mean image of a checkpoint": (
        lambda c: other_mean_image(c, in_store=False),
        r"step-0000002: its mean image is not that of the store",
    ),
    "a checkpoint's folder": (
        lambda c: renumbered(c, inside=False),
        r"step-0000001: is of step 2, and named for another",
    ),
    "a checkpoint's step": (
        lambda c: renumbered(c, inside=True),
        r"step-0000001: is of step 1, and its 1 records end at step 2",
    ),
    "a weight": (
        lambda c: (c.checkpoints[1] / "SHA256SUMS").write_text("0" * 64 + "  x\n"),
        r"step-0000003: is damaged \(checksum of .* does not match\)",
    ),
}

# Changes after which all files agree: only a replay tells.
CAREFUL: dict[str, tuple[Change, str]] = {
    "a loss and its mean": (
        lambda c: c.records(loss_and_mean),
        r"metrics.jsonl, line 6: loss is .*, and the replay gives",
    ),
    "a bit of a weight": (
        lambda c: c.tensor_bit("model.conv1.weight", c.checkpoints[-1]),
        r"step-0000006: model.conv1.weight differ from the replay of steps 5 to 6",
    ),
    "a bit of a velocity": (
        lambda c: c.tensor_bit("velocity.fc6.bias", c.checkpoints[-1]),
        r"step-0000006: velocity.fc6.bias differ from the replay of steps 5 to 6",
    ),
    "the seed, everywhere": (
        lambda c: c.settings(lambda s: s.update(seed=7)),
        r"line 6: loss is .*, and the replay gives",
    ),
    "the rate, everywhere": (other_rates, r"step-0000006: .* differ from the replay"),
    "two labels and all checksums": (
        lambda c: swapped_labels(c, refit=True),
        r"line 6: loss is .*, and the replay gives",
    ),
    "an image and all checksums": (
        lambda c: replaced_image(c, refit=True),
        r"line 6: loss is .*, and the replay gives",
    ),
    "the mean image, everywhere": (
        lambda c: other_mean_image(c, in_store=True),
        r"line 6: loss is .*, and the replay gives",
    ),
    "the errors, everywhere": (
        better_errors,
        r"top1_error_pct is 12.5, and the (replay|newest checkpoint) gives",
    ),
}


@pytest.mark.parametrize("name", NAIVE)
def test_a_change_in_one_place_is_found_without_training(name: str, copy: Copy) -> None:
    change, said = NAIVE[name]
    change(copy)
    proof = copy.verify()
    assert any(re.search(said, str(finding)) for finding in proof.findings), proof.findings
    assert proof.replayed == []


@pytest.mark.parametrize("name", CAREFUL)
def test_a_change_that_the_files_agree_on_is_found_by_a_replay(name: str, copy: Copy) -> None:
    change, said = CAREFUL[name]
    change(copy)
    proof = copy.verify(segments=1, steps=2)
    assert any(re.search(said, str(finding)) for finding in proof.findings), proof.findings
    told = [str(finding) for finding in proof.findings]
    assert [line for line in told if "replay" not in line and "newest checkpoint" not in line] == []


@pytest.mark.parametrize("disguised", [False, True])
def test_a_checkpoint_of_another_run_is_found(
    disguised: bool, copy: Copy, other_seed: Path
) -> None:
    of_another_run(copy, other_seed, disguised=disguised)
    said = "differ from the replay" if disguised else "has seed=1, and config.yaml 0"
    proof = copy.verify(segments=1, steps=2)
    assert any(said in str(finding) for finding in proof.findings), proof.findings


def elsewhere(saved: dict[str, Any]) -> None:
    saved["machine"] = "another processor"


def test_on_another_processor_rounding_is_told_from_a_change(copy: Copy) -> None:
    copy.saved(elsewhere)
    newest = copy.checkpoints[-1]
    copy.tensor_bit("model.conv1.weight", newest)  # as rounding would
    proof = copy.verify(segments=1, steps=2)
    assert proof.findings == []
    assert [s["weights"] for s in proof.replayed] == ["equal within rounding"]
    (path,) = newest.glob("*.safetensors")
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[:8], "little")
    start, _ = json.loads(data[8 : 8 + length])["model.conv1.weight"]["data_offsets"]
    data[8 + length + start + 2] ^= 0x40  # by half
    path.write_bytes(data)
    fix_checksums(newest)
    (finding,) = copy.verify(segments=1, steps=2).findings
    assert "by more than rounding explains" in str(finding)


def test_a_run_with_its_last_checkpoint_only_is_told_what_would_help(
    copy: Copy,
) -> None:
    for folder in copy.checkpoints[:-1]:
        shutil.rmtree(folder)
    proof = copy.verify(steps=None)
    assert proof.findings == []
    assert [(s["first"], s["last"], s["weights"]) for s in proof.replayed] == [(0, 2, None)]
    assert proof.evaluated
    assert proof.not_compared[-1] == (
        "weights after training: the nearest checkpoints are 6 steps apart; set steps=6, or "
        "train with checkpoint.every_steps=1 checkpoint.keep_last=null"
    )
    assert copy.verify(steps=6).replayed[0]["weights"] == "equal bit for bit"


def test_a_run_that_was_extended_with_other_intervals_is_proven(
    copy: Copy, photos_store: Store
) -> None:
    more = ("schedule.epochs=3", "tracking.log_every_steps=3", "eval_every_epochs=2")
    train(photos_store, copy.run, *more, "checkpoint.keep_last=null", "resume=auto")
    proof = copy.verify(segments=2, steps=5)
    assert proof.findings == []
    assert [(s["first"], s["last"]) for s in proof.replayed] == [(4, 6), (6, 9)]
    assert proof.evaluated
    # What computed steps 5 and 6 is not known without the checkpoint between them and step 9.
    shutil.rmtree(copy.checkpoints[-2])
    stretches = stretches_between(check_files(copy.run, None, single_process(Device.cpu)))
    assert [(s.first, s.last) for s in stretches] == [(0, 2), (2, 3), (3, 4)]


def test_steps_after_the_last_checkpoint_are_replayed_or_named(copy: Copy) -> None:
    shutil.rmtree(copy.checkpoints[-1])
    proof = copy.verify(segments=1, steps=2)
    assert proof.findings == []
    assert [(s["first"], s["last"], s["weights"]) for s in proof.replayed] == [(4, 6, None)]
    assert proof.evaluated
    assert copy.verify(segments=1, steps=1).not_compared[2] == (
        "the errors in summary.json: no checkpoint is from the end of the run; steps=2 replays up "
        "to it"
    )

    def better(records: list[dict[str, Any]]) -> None:
        records[-1]["top1_error_pct"] = 12.5

    copy.records(better)
    copy.summary(lambda summary: summary.update(top1_error_pct=12.5, top1_errors=6.0))
    (copy.run / "image_errors.npz").unlink()
    (finding,) = copy.verify(segments=1, steps=2).findings
    assert str(finding).startswith("metrics.jsonl, line 8: top1_error_pct is 12.5, and the replay")


def test_without_anything_to_replay_nothing_is_proven(copy: Copy) -> None:
    shutil.rmtree(copy.run / "checkpoints")
    for name in ("metrics.jsonl", "summary.json"):
        (copy.run / name).unlink()
    proof = copy.verify()
    assert (proof.findings, proof.replayed, proof.proven) == ([], [], False)


def test_elsewhere_an_image_of_an_evaluation_may_be_on_the_other_side(copy: Copy) -> None:
    run = check_files(copy.run, None, single_process(Device.cpu))
    evaluation = {"pictures": 48}
    assert flips(run, evaluation, "top1_errors") == pytest.approx(1.048)
    assert flips(run, evaluation, "top1_error_pct") == pytest.approx(100 * 1.048 / 48)
    assert flips(run, {}, "train_error_pct") == 100 / 32


def test_choices_are_random_and_repeatable(finished: Path) -> None:
    run = check_files(finished, None, single_process(Device.cpu))

    def chosen(seed: int) -> tuple[int, ...]:
        stretches = choose_stretches(run, 2, STEPS, random.Random(seed))
        return tuple(stretch.first for stretch in stretches)

    assert chosen(1) == chosen(1)
    assert {chosen(seed) for seed in range(20)} == {(0, 4), (2, 4), (3, 4)}


def test_a_mistake_is_one_line(finished: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"has no config\.yaml; give the directory of a run"):
        verify_run(VerifyConfig(run=str(tmp_path)))
    with pytest.raises(ConfigError, match=r"holds no store; store=… names where"):
        verify_run(VerifyConfig(run=str(finished), store=str(tmp_path)))
    (tmp_path / "ledger.json").write_text("{}")
    with pytest.raises(ConfigError, match=r"`alexnet2012 ledger verify .*` recomputes"):
        verify_run(VerifyConfig(run=str(tmp_path)))


def test_the_command_prints_what_was_proven_and_fails_otherwise(
    copy: Copy, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def command(*more: str) -> None:
        words = ("segments=1", "steps=2", f"store={copy.store}", *more)
        monkeypatch.setattr(sys, "argv", ["verify", str(copy.run), *words])
        verify.main()

    command("seed=3")
    lines = capsys.readouterr().out.splitlines()
    assert "replayed: steps 5 to 6: records equal bit for bit, weights equal bit for bit" in lines
    assert lines[-1] == "proven: nothing that was compared differs (seed=3)"
    copy.summary(lambda summary: summary.update(loss=0.1))
    with pytest.raises(SystemExit) as ended:
        command("--json")
    out, err = capsys.readouterr()
    assert ended.value.code == 1
    assert not json.loads(out)["proven"]
    assert err.endswith("run: not proven: 2 differences\n")
