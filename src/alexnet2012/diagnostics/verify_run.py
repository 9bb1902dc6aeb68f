"""Proof of a run without training it again: random stretches are replayed and compared.

A replay from a checkpoint takes the same images in the same order with the same augmentation and
dropout masks, so on the same processor with the same code its records and weights are equal bit for
bit. Elsewhere sums are rounded in another order, and differences grow with every step in a way that
no constant bounds. So the stretch is replayed once more with smaller micro-batches, which changes
nothing but the order of the sums: what that changes is the measure of rounding, and a run is
accepted within ``ROUNDING_FACTOR`` times of it.
"""

from __future__ import annotations

import json
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.manifest import Progress, config_of
from alexnet2012.checkpoint.run_dir import SUMMARY
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import TrainConfig, VerifyConfig
from alexnet2012.diagnostics.run_files import Finding, RunFiles, check_files, epoch_size
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.mesh import single_process
from alexnet2012.tracking.run_index import METRICS, TIMINGS
from alexnet2012.tracking.tracker import Record, read_records
from alexnet2012.training import image_errors, replay
from alexnet2012.training.replay import Job, Target, replay_config

SHARE = 20  # by default a twentieth of the run's steps is replayed
NEWEST_SHARE = 12  # or a twelfth, if the newest checkpoint is so far from the one before it
ROUNDING_FACTOR = 16  # how much more another processor may round than another order of sums
RECORD_ROUNDING = 1e-6  # relative, of a loss in float32
PROGRESS = ("train_errors", "validation_errors", "top1_error_pct", "epoch_sums", "sums")


@dataclass(frozen=True)
class Stretch:
    """Steps after ``first`` up to ``last``; ``end`` is a checkpoint there, or None.

    ``by``: the checkpoint that says with which settings, and on which processor, they were
    computed; None if no checkpoint does.
    """

    first: int
    last: int
    start: Path | None  # a checkpoint; None: the initial weights
    end: Path | None
    by: Path | None

    def __str__(self) -> str:
        return steps_text(self.first, self.last) if self.last > self.first else "evaluation"


def steps_text(first: int, last: int) -> str:
    """The steps after ``first`` up to ``last``."""
    return f"steps {first + 1} to {last}" if last > first + 1 else f"step {last}"


@dataclass
class Proof:
    """What was compared, and what differs."""

    run: str
    steps: int
    records: int
    images: int
    checkpoints: int
    replayed: list[dict[str, Any]] = field(default_factory=list)  # by stretch
    evaluated: bool = False  # the weights at the end, on the validation images
    findings: list[Finding] = field(default_factory=list)
    not_compared: list[str] = field(default_factory=list)
    train_s: float = 0.0
    seconds: float = 0.0
    seed: int = 0

    @property
    def steps_replayed(self) -> int:
        return sum(stretch["last"] - stretch["first"] for stretch in self.replayed)

    @property
    def proven(self) -> bool:
        """Whether anything was computed again, and nothing differs."""
        return not self.findings and (bool(self.replayed) or self.evaluated)

    def as_json(self) -> dict[str, Any]:
        findings = [str(finding) for finding in self.findings]
        shown = asdict(self) | {"findings": findings, "steps_replayed": self.steps_replayed}
        return {"proven": self.proven, **shown}


def verify_run(config: VerifyConfig) -> Proof:
    """Compare the files of a run with each other and with replays of some of its steps.

    Raises:
        ConfigError: the folder is no run, or its store is not where it was.
    """
    began = time.perf_counter()
    seed = random.SystemRandom().randrange(2**32) if config.seed is None else config.seed
    run = check_files(Path(config.run), config.store, single_process(Device.cpu))
    counts = run.steps, len(run.records), run.images, len(run.checkpoints)
    proof = Proof(config.run, *counts, findings=run.findings, seed=seed)
    proof.train_s = _train_seconds(run)
    if proof.findings or run.store is None:
        proof.not_compared.append("training: nothing is replayed, as the files already disagree")
    else:
        stretches = choose_stretches(run, config.segments, config.steps, random.Random(seed))
        with tempfile.TemporaryDirectory(prefix="alexnet2012-") as scratch:
            _replay_all(run, stretches, Path(scratch), proof)
        proof.not_compared += _not_compared(run, stretches, proof.evaluated)
    proof.seconds = time.perf_counter() - began
    return proof


def choose_stretches(
    run: RunFiles, segments: int, most: int | None, draw: random.Random
) -> list[Stretch]:
    """Random stretches of at most ``most`` steps in all, by default a twentieth of the run's.

    The last one comes first: its weights and errors are those that people use. Where checkpoints
    are too far apart, the first steps after one are compared by their records.
    """
    all_stretches = stretches_between(run)
    left = -(-run.steps // SHARE) if most is None else most
    order = [*all_stretches[-1:], *draw.sample(all_stretches[:-1], max(0, len(all_stretches) - 1))]
    if most is None and order and order[0].last - order[0].first <= run.steps // NEWEST_SHARE:
        left = max(left, order[0].last - order[0].first)
    chosen: list[Stretch] = []
    for stretch in order:
        if len(chosen) < segments and stretch.last - stretch.first <= left:
            chosen.append(stretch)
            left -= stretch.last - stretch.first
    recorded = [record["step"] for record in run.records if record["kind"] == "train"]
    others = [stretch for stretch in order if stretch not in chosen]
    draw.shuffle(others)
    for stretch in others:
        share = left // max(1, segments - len(chosen))
        steps = [s for s in recorded if stretch.first < s < stretch.last + (stretch.end is None)]
        within = [s for s in steps if s <= stretch.first + share]
        if not chosen and steps:
            within = within or steps[:1]  # at least one record
        if len(chosen) < segments and within:
            chosen.append(replace(stretch, last=within[-1], end=None))
            left -= within[-1] - stretch.first
    return sorted(chosen, key=lambda stretch: stretch.first)


def stretches_between(run: RunFiles) -> list[Stretch]:
    """The stretches between checkpoints, before the first one and after the last one.

    Not those within which the run was resumed: what computed their first part is not known.
    """
    starts = [part.step for part in run.parts]
    states: list[tuple[int, Path | None]] = [(0, None)] if _initial_weights_known(run) else []
    states += [(saved.step, path) for path, saved in run.checkpoints.items() if saved.step > 0]
    if states and states[-1][0] < run.steps:
        states.append((run.steps, None))
    stretches = []
    for (first, start), (last, end) in pairwise(states):
        by = start if end is None and max(starts) < first else end
        if not any(first < step < last for step in starts):
            stretches.append(Stretch(first, last, start, end, by))
    return stretches


def _initial_weights_known(run: RunFiles) -> bool:
    source = run.config.init_from
    return run.from_start and (source is None or Path(source).exists())


def _replay_all(run: RunFiles, stretches: Sequence[Stretch], scratch: Path, proof: Proof) -> None:
    newest = run.newest
    if newest is not None and all(stretch.last < run.steps for stretch in stretches):
        last = run.checkpoints[newest]
        if last.summary is not None and last.step == run.steps:
            stretches = [*stretches, Stretch(run.steps, run.steps, newest, newest, newest)]
    _launch(run, stretches, scratch, proof)
    unequal: list[tuple[Stretch, list[Finding]]] = []
    for stretch in stretches:
        folder = scratch / _name(stretch)
        outcome = _outcome(folder)
        if outcome is None:
            continue
        findings = list(_compare(run, stretch, folder, outcome))
        saved = None if stretch.by is None else run.checkpoints[stretch.by]
        recorded = ("", "") if saved is None else (saved.machine, saved.code)
        same = recorded == (outcome.get("machine"), outcome.get("code"))
        if findings and not same and "error" not in outcome:
            unequal.append((stretch, findings))
            continue
        _add(proof, run, stretch, findings, "equal bit for bit")
    again = [stretch for stretch, _ in unequal]
    _launch(run, again, scratch / "again", proof, halve=True)
    for stretch, findings in unequal:
        folders = scratch / _name(stretch), scratch / "again" / _name(stretch)
        beyond = list(_beyond_rounding(run, stretch, *folders, findings))
        _add(proof, run, stretch, beyond, "equal within rounding")


def _add(
    proof: Proof, run: RunFiles, stretch: Stretch, findings: Sequence[Finding], how: str
) -> None:
    """Add the outcome of a replay to the proof; ``how`` says in what way it is equal."""
    proof.findings += findings
    if findings:
        return
    proof.evaluated |= _ends_the_run(run, stretch)
    if stretch.first == stretch.last:
        return
    weights = None if stretch.end is None else how
    proof.replayed.append(
        {"first": stretch.first, "last": stretch.last, "records": how, "weights": weights}
    )


def _name(stretch: Stretch) -> str:
    return f"{stretch.first}-{stretch.last}"


def _outcome(folder: Path) -> dict[str, Any] | None:
    file = folder / replay.OUTCOME
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None


def _ends_the_run(run: RunFiles, stretch: Stretch) -> bool:
    """Whether it ends with the evaluation that the summary has."""
    saved = None if stretch.end is None else run.checkpoints[stretch.end]
    finished = bool(run.summary) and (saved is None or saved.summary is not None)
    return finished and stretch.last == run.steps


def _launch(
    run: RunFiles, stretches: Sequence[Stretch], scratch: Path, proof: Proof, *, halve: bool = False
) -> None:
    """Replay the stretches, on as many processes as the run had."""
    by_processes: dict[int, list[Job]] = {}
    for stretch in stretches:
        saved = None if stretch.by is None else run.checkpoints[stretch.by]
        try:
            config = run.config if saved is None else config_of(saved)
        except ValueError as error:
            proof.findings.append(Finding(str(stretch), f"its settings cannot be read ({error})"))
            continue
        job = _job(run, stretch, config, scratch / _name(stretch), saved, halve)
        job.folder.mkdir(parents=True)
        by_processes.setdefault(config.mesh.processes, []).append(job)
    for processes, jobs in by_processes.items():
        launch(replay.worker, processes, jobs)


def _job(
    run: RunFiles,
    stretch: Stretch,
    config: TrainConfig,
    folder: Path,
    saved: Progress | None,
    halve: bool,
) -> Job:
    assert run.store is not None
    micro_batch = None
    if halve:
        micro_batch = -(-(config.data.micro_batch or config.data.batch_size) // 2)
    target = None
    if stretch.last > stretch.first:
        at_end = None if stretch.end is None else run.checkpoints[stretch.end]
        epoch = (stretch.last - 1) // epoch_size(config, run.store)[1]
        finished = _ends_the_run(run, stretch)
        if at_end is not None:
            epoch, finished = at_end.epoch, at_end.summary is not None
        target = Target(stretch.last, epoch, finished, save=at_end is not None)
    store = str(run.store.root)
    replayed = replay_config(config, store, stretch.start, micro_batch)
    return Job(replayed, folder, target, 0 if saved is None else saved.threads)


def _compare(
    run: RunFiles, stretch: Stretch, folder: Path, outcome: dict[str, Any]
) -> Iterator[Finding]:
    """Every difference between a stretch and its replay."""
    if "error" in outcome:
        yield Finding(str(stretch), f"cannot be replayed: {outcome['error']}")
        return
    for key, value in outcome.get("evaluation", {}).items():
        if run.summary.get(key) != value:
            what = f"{key} is {run.summary.get(key)}, and the newest checkpoint gives {value}"
            yield Finding(SUMMARY, what)
    if _ends_the_run(run, stretch):
        yield from _of_images(run, folder)
    for number, recorded, replayed in _records(run, stretch, folder):
        for key in sorted(recorded.keys() | replayed.keys()):
            if recorded.get(key) != replayed.get(key):
                what = f"{key} is {recorded.get(key)}, and the replay gives {replayed.get(key)}"
                yield Finding(f"{METRICS}, line {number}", what)
    if stretch.end is None or stretch.first == stretch.last:
        return
    ours = manifest.latest(folder)
    if ours is None or manifest.checkpoint_step(ours) != stretch.last:
        yield Finding(str(stretch), "the replay ends at another step")
        return
    where, saved, again = (
        stretch.end.name,
        run.checkpoints[stretch.end],
        manifest.read_progress(ours),
    )
    for key in PROGRESS:
        if getattr(saved, key) != getattr(again, key):
            yield Finding(where, f"{key} is not that of the replay of {stretch}")
    tensors, replayed_tensors = checkpoint.read_tensors(stretch.end), checkpoint.read_tensors(ours)
    changed = [
        name
        for name in sorted(tensors.keys() | replayed_tensors.keys())
        if not _same_bits(tensors.get(name), replayed_tensors.get(name))
    ]
    if changed:
        others = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
        yield Finding(where, f"{changed[0]}{others} differ from the replay of {stretch}")


def _records(run: RunFiles, stretch: Stretch, folder: Path) -> Iterator[tuple[int, Record, Record]]:
    """Line numbers, recorded and replayed records of a stretch; a missing record is empty."""
    start = 0 if stretch.start is None else run.checkpoints[stretch.start].records.get(METRICS, 0)
    replayed = read_records(folder / METRICS)
    stop = start + len(replayed)
    if stretch.end is not None:
        stop = max(stop, run.checkpoints[stretch.end].records.get(METRICS, 0))
    for index in range(start, stop):
        recorded = run.records[index] if index < len(run.records) else {}
        ours = replayed[index - start] if index - start < len(replayed) else {}
        yield index + 1, recorded, ours


def _of_images(run: RunFiles, folder: Path) -> Iterator[Finding]:
    """The errors of each image, of a replay that ended as the run did."""
    files = run.folder / image_errors.FILE, folder / image_errors.FILE
    if not all(file.is_file() for file in files):
        return
    with (
        np.load(files[0], allow_pickle=False) as recorded,
        np.load(files[1], allow_pickle=False) as replayed,
    ):
        for key in replayed.files:
            if key not in recorded or not np.array_equal(recorded[key], replayed[key]):
                yield Finding(image_errors.FILE, f"{key} is not that of the newest checkpoint")


def _same_bits(a: Tensor | None, b: Tensor | None) -> bool:
    if a is None or b is None or a.dtype != b.dtype or a.shape != b.shape:
        return False
    return torch.equal(a.reshape(-1).view(torch.uint8), b.reshape(-1).view(torch.uint8))


def _beyond_rounding(
    run: RunFiles, stretch: Stretch, folder: Path, again: Path, findings: Sequence[Finding]
) -> Iterator[Finding]:
    """Differences that another order of the sums does not explain."""
    outcome = _outcome(again)
    if outcome is None or "error" in outcome:
        yield from findings
        return
    for key, value in outcome.get("evaluation", {}).items():
        recorded = run.summary.get(key)
        slack = 1e-4 * value if key == "loss" else flips(run, run.summary, key)
        if not isinstance(recorded, int | float) or abs(recorded - value) > slack:
            yield Finding(SUMMARY, f"{key} is {recorded}, and the newest checkpoint gives {value}")
    others = {number: ours for number, _, ours in _records(run, stretch, again)}
    for number, recorded, replayed in _records(run, stretch, folder):
        for key in sorted(recorded.keys() | replayed.keys()):
            a, b, c = (r.get(key) for r in (recorded, replayed, others.get(number, {})))
            explained = a == b
            if isinstance(a, float) and isinstance(b, float) and isinstance(c, float):
                slack = RECORD_ROUNDING * abs(b)
                if key.endswith("_pct"):
                    slack = flips(run, replayed, key)
                explained = abs(a - b) <= ROUNDING_FACTOR * abs(b - c) + slack
            if not explained:
                what = f"{key} is {a}, and the replay gives {b}, on another processor"
                yield Finding(f"{METRICS}, line {number}", what)
    ours, other = manifest.latest(folder), manifest.latest(again)
    if stretch.end is None or stretch.first == stretch.last or ours is None or other is None:
        return
    recorded_t, replayed_t, other_t = map(checkpoint.read_tensors, (stretch.end, ours, other))
    for name in sorted(recorded_t.keys() | replayed_t.keys()):
        found, expected = recorded_t.get(name), replayed_t.get(name)
        if found is None or expected is None or found.shape != expected.shape:
            yield Finding(stretch.end.name, f"{name} is not a tensor of this network")
        elif not _within(found, expected, other_t[name]):
            what = f"{name} differs from the replay of {stretch} by more than rounding explains"
            yield Finding(stretch.end.name, what)


def flips(run: RunFiles, record: Record, key: str) -> float:
    """Errors, or per cent, that differ if some images are on the other side.

    One of each batch of a training, one and a thousandth of those of an evaluation: images whose
    two best classes all but tie.
    """
    images = int(record.get("pictures", 0))
    if not images:
        return 100 / run.config.data.batch_size
    errors = 1 + 0.001 * images
    return 100 * errors / images if key.endswith("_pct") else errors


def _within(recorded: Tensor, replayed: Tensor, other: Tensor) -> bool:
    """‖recorded - replayed‖ ≤ 16·‖other - replayed‖ + 4·2^-24·‖replayed‖; equal if not real."""
    if not replayed.is_floating_point():
        return torch.equal(recorded, replayed)
    a, b, c = (tensor.double() for tensor in (recorded, replayed, other))
    bound = ROUNDING_FACTOR * (c - b).norm() + 4 * 2.0**-24 * b.norm()
    return bool((a - b).norm() <= bound)


def _not_compared(run: RunFiles, stretches: Sequence[Stretch], evaluated: bool) -> list[str]:
    """What a change in would not have been found."""
    lines = []
    replayed = sum(stretch.last - stretch.first for stretch in stretches)
    if replayed < run.steps:
        how = "only their records, against each other"
        if not run.from_start:
            how = f"not even their records, as the run began with {run.config.resume}"
        lines.append(f"{run.steps - replayed} of {run.steps} steps: {how}")
    compared = {path for stretch in stretches for path in (stretch.start, stretch.end)}
    if others := set(run.checkpoints) - compared:
        newest = ", the newest among them" if run.newest in others else ""
        lines.append(f"the weights of {len(others)} of {len(run.checkpoints)} checkpoints{newest}")
    after = 0 if run.newest is None else run.checkpoints[run.newest].step
    if run.summary and not evaluated and after < run.steps:
        lines.append(
            f"the errors in {SUMMARY}: no checkpoint is from the end of the run; "
            f"steps={run.steps - after} replays up to it"
        )
    between = [stretch for stretch in stretches_between(run) if stretch.end is not None]
    shortest = min((stretch.last - stretch.first for stretch in between), default=None)
    if all(stretch.end is None for stretch in stretches):
        every = max(1, run.steps // (2 * SHARE))
        remedy = f"train with checkpoint.every_steps={every} checkpoint.keep_last=null"
        if shortest is None:
            kept = "no checkpoint" if run.newest is None else "no two checkpoints of one process"
            lines.append(f"any weights: the run kept {kept}; {remedy}")
        else:
            lines.append(
                f"weights after training: the nearest checkpoints are {shortest} steps apart; "
                f"set steps={shortest}, or {remedy}"
            )
    return lines


def _train_seconds(run: RunFiles) -> float:
    """Seconds of training without validation, from the records of its pace."""
    seconds, before = 0.0, 0
    for record in read_records(run.folder / TIMINGS):
        if record["kind"] == "pace":
            seconds += record["step_time_ms"] / 1000 * max(0, record["step"] - before)
        before = record["step"]
    return seconds
