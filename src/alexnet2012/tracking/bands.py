"""Reference bands: where the training loss and error of healthy runs lie, by progress.

A band is made of finished runs that differ in their seeds only. It applies to any run of the same
network on the same classes for as many epochs, whatever its learning rate, batch size and initial
spread: those are what a band can find fault with.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

from alexnet2012.checkpoint import manifest
from alexnet2012.checkpoint.run_dir import with_defaults
from alexnet2012.config.roles import Role, role_of
from alexnet2012.config.schema import ConfigError, RunError, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.tracking.run_index import METRICS, TIMINGS, DamagedRunError, load_settings
from alexnet2012.tracking.tracker import BEGUN, read_records
from alexnet2012.utils.files import naming
from alexnet2012.utils.untrusted import read_json_object, read_yaml

BINS = 40  # of a training
FORMAT = 2
FILE = "bands.json"  # in this package
MIN_RUNS = 3
RECIPE_BATCH = 128  # images, of all recipes
# Chance that a healthy run is outside in a bin. With 80 bins, which are correlated, one in fifty
# runs is outside somewhere; an alarm needs two bins in a row, or one far outside.
OUTSIDE = 0.001
FAR = 2.0  # half-widths
MIN_SPREAD = 0.005  # of the mean: a few runs may agree by chance
METRIC_KEYS = ("loss", "train_error_pct")
# Without a band a run is at chance if it is there after this part of it, and this many steps.
CHANCE_PROGRESS, CHANCE_STEPS, CHANCE_SHARE = 0.1, 500, 0.98
# Settings that a band does not depend on, as it finds them wrong.
_SUSPECTS = ("seed", "precision", "data.batch_size", "schedule.warmup_epochs")
_SUSPECT_GROUPS = ("schedule.rate", "schedule.bias_rate", "schedule.reference_batch")
_SUSPECT_END = "init_std"
_DROPS = "schedule.drops"  # their epochs shape a curve; their rates are suspects

Limits = tuple[float, float, float]  # lowest, mean, highest


class Classes(NamedTuple):
    """The classes of a data set: how many, and a digest of their names in order."""

    number: int
    digest: str

    @classmethod
    def of(cls, names: Sequence[str]) -> Classes:
        return cls(len(names), hashlib.sha256(json.dumps(list(names)).encode()).hexdigest()[:12])


class Reference(NamedTuple):
    """What healthy runs begin with."""

    rate_per_image: float | None  # initial learning rate of weights, divided by the batch size
    init_std: dict[str, float]  # by layer
    batch_size: int | None


UNKNOWN = Reference(None, {}, None)


@dataclass(frozen=True)
class Band:
    """Limits by bin of progress; None where the runs have no record."""

    name: str
    settings: dict[str, Any]  # of the runs, by full key: those that a learning curve depends on
    classes: Classes
    runs: int
    steps: int  # of a run of batch_size
    batch_size: int
    rate: float  # initial learning rate of weights
    init_std: dict[str, float]  # by layer
    limits: dict[str, list[Limits | None]]  # of METRIC_KEYS

    @cached_property
    def key(self) -> str:
        """Equal for bands of the same runs; settings that came later have their defaults."""
        return band_key(self.settings, self.classes)


@dataclass
class Curve:
    """Means of loss and error in each bin of progress, of records that arrive in order."""

    total_steps: int
    step: int = 0
    sums: list[list[float]] = field(default_factory=lambda: [[0.0] * 3 for _ in range(BINS)])

    def add(self, step: int, loss: float, train_error_pct: float) -> None:
        """Add a record of the steps since the last one; a bin gets whole records."""
        steps = step - self.step
        sums = self.sums[self.bin_of(step)]
        for index, value in enumerate((1.0, loss, train_error_pct)):
            sums[index] += steps * value
        self.step = step

    def bin_of(self, step: int) -> int:
        return min(BINS - 1, max(0, step - 1) * BINS // self.total_steps)

    def means(self, index: int) -> dict[str, float] | None:
        steps, *sums = self.sums[index]
        if not steps:
            return None
        return {key: total / steps for key, total in zip(METRIC_KEYS, sums, strict=True)}


@dataclass(frozen=True)
class Departure:
    """Where a run left its band, or that it is at chance."""

    step: int
    progress_pct: float
    metric: str
    value: float
    limits: Limits | None  # None: there is no band
    at_chance: bool

    def __str__(self) -> str:
        name = "training loss" if self.metric == "loss" else "training error"
        text = f"step {self.step} ({self.progress_pct:.0f}%): {name} is {self.value:.3f}"
        if self.limits is None:
            return f"{text}, which is chance level" if self.at_chance else text
        low, _, high = self.limits
        level = ", which is chance level" if self.at_chance else ""
        return f"{text}{level}; healthy runs have {low:.3f} to {high:.3f} here"


@dataclass
class BandWatch:
    """Compares a run with its band, bin by bin; reports once."""

    band: Band | None
    total_steps: int
    chance_loss: float
    reference: Reference = UNKNOWN
    departure: Departure | None = None

    def __post_init__(self) -> None:
        self._curve = Curve(self.total_steps)
        self._was_outside = False

    def add(self, step: int, loss: float, train_error_pct: float) -> Departure | None:
        """Add a record of training; the departure if it is found now."""
        curve = self._curve
        earlier, now = curve.bin_of(max(1, curve.step)), curve.bin_of(step)
        found = self._judge(earlier, step) if curve.step and now > earlier else None
        curve.add(step, loss, train_error_pct)
        if step >= self.total_steps:
            found = found or self._judge(now, step)
        return found

    def diverged(self, step: int, loss: float) -> Departure | None:
        """The departure of a loss that is not finite, unless the run had left its band before."""
        if self.departure is not None:
            return None
        progress_pct = 100 * step / self.total_steps
        self.departure = Departure(step, progress_pct, "loss", loss, None, at_chance=False)
        return self.departure

    def _judge(self, index: int, step: int) -> Departure | None:
        means = self._curve.means(index)
        if self.departure is not None or means is None:
            return None
        progress = self._curve.step / self.total_steps
        at_chance = means["loss"] >= CHANCE_SHARE * self.chance_loss > 0  # 0: of a single class
        place = (self._curve.step, 100 * progress)
        if self.band is None:
            long_enough = progress >= CHANCE_PROGRESS and self._curve.step >= CHANCE_STEPS
            if at_chance and long_enough:
                self.departure = Departure(*place, "loss", means["loss"], None, True)
            return self.departure
        outside = False
        for key in METRIC_KEYS:
            limits = self.band.limits[key][index]
            if limits is None:
                continue
            low, mean, high = limits
            value = means[key]
            widths = (value - mean) / (high - mean if value > mean else mean - low)
            if abs(widths) > FAR or (abs(widths) > 1 and self._was_outside):
                self.departure = Departure(*place, key, value, limits, at_chance)
                return self.departure
            outside |= abs(widths) > 1
        self._was_outside = outside
        return None


def watch_of(
    config: TrainConfig, settings: Mapping[str, Any], classes: Classes, per_epoch: int
) -> BandWatch:
    """The watch of a run of ``per_epoch`` steps an epoch, with the band for it if there is one."""
    bands = load_bands(None if config.tracking.bands is None else Path(config.tracking.bands))
    total = config.schedule.epochs * config.schedule.epochs_factor * per_epoch
    band = find_band(bands, settings, classes, total, config.data.batch_size)
    reference = _of_recipe(config.recipe.name)
    if band is not None:
        reference = Reference(band.rate / band.batch_size, band.init_std, band.batch_size)
    return BandWatch(band, total, math.log(classes.number), reference)


def _of_recipe(name: str) -> Reference:
    """What a recipe prescribes; nothing of one that is not in conf/."""
    schedule = resources.files("alexnet2012.conf") / "schedule" / f"{name}.yaml"
    try:
        recipe = load_recipe(name)
        rate = read_yaml(str(schedule))["rate"]
    except (ConfigError, OSError):
        return UNKNOWN
    layers = {layer: getattr(recipe, layer).init_std for layer in recipe.layers}
    return Reference(rate / RECIPE_BATCH, layers, None)  # of any batch size


def load_bands(file: Path | None = None) -> list[Band]:
    """The bands of a file, or those of the package.

    Raises:
        ConfigError: the file has no bands.
    """
    path = Path(str(resources.files("alexnet2012.tracking") / FILE)) if file is None else file
    try:
        values = read_json_object(path)
        if values["format"] != FORMAT or values["bins"] != BINS:
            raise ValueError("is of an incompatible version")
        return [_band(row) for row in values["bands"]]
    except (OSError, ValueError, LookupError, TypeError) as error:
        reason = manifest.first_line(error)
        remedy = f"has no reference bands ({reason}); `alexnet2012 runs bands` makes them"
        raise ConfigError("tracking.bands", path, remedy) from error


def _band(row: dict[str, Any]) -> Band:
    limits = {}
    for key in METRIC_KEYS:
        rows = row["limits"][key]
        if len(rows) != BINS:
            raise ValueError(f"{key} has {len(rows)} bins")
        limits[key] = [None if r is None else (float(r[0]), float(r[1]), float(r[2])) for r in rows]
    classes = Classes(*row["classes"])
    band = Band(**{**row, "classes": classes, "limits": limits})
    assert band.key  # an error here is one of this file
    return band


def save_bands(bands: Iterable[Band], file: Path) -> None:
    """Write bands to a file; those of other runs that it has are kept."""
    kept = {band.key: band for band in load_bands(file)} if file.exists() else {}
    kept |= {band.key: band for band in bands}
    rows = [_row(band) for band in sorted(kept.values(), key=lambda band: (band.name, band.key))]
    text = json.dumps({"format": FORMAT, "bins": BINS, "bands": rows})
    with naming(file):
        file.write_text(text.replace('{"name"', '\n{"name"') + "\n", encoding="utf-8")


def _row(band: Band) -> dict[str, Any]:
    limits = {
        key: [None if r is None else [round(value, 4) for value in r] for r in rows]
        for key, rows in band.limits.items()
    }
    return asdict(band) | {"limits": limits}


def find_band(
    bands: Iterable[Band],
    settings: Mapping[str, Any],
    classes: Classes,
    total_steps: int,
    batch_size: int,
) -> Band | None:
    """The band for runs of these settings and classes, on as many images."""
    key = band_key(settings, classes)
    for band in bands:
        images, others = total_steps * batch_size, band.steps * band.batch_size
        # An epoch has whole batches, so the number of images is known to one batch an epoch.
        if band.key == key and math.isclose(images, others, rel_tol=0.2):
            return band
    return None


def band_key(settings: Mapping[str, Any], classes: Classes) -> str:
    """A digest of what a learning curve depends on: the network, the training and the classes."""
    text = json.dumps([_curve_settings(settings), classes], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _curve_settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that a learning curve depends on, by full key, but those that a band finds wrong."""
    kept = {k: v for k, v in with_defaults(dict(settings)).items() if _shapes_curve(k)}
    return kept | {_DROPS: [{"epoch": drop["epoch"]} for drop in kept[_DROPS]]}


def _shapes_curve(key: str) -> bool:
    is_suspect = key in _SUSPECTS or key.startswith(_SUSPECT_GROUPS) or key.endswith(_SUSPECT_END)
    changes_weights = role_of(TrainConfig, key) in (Role.variant, Role.identity)
    return key == "schedule.epochs" or (changes_weights and not is_suspect)


@dataclass(frozen=True)
class RunCurve:
    """The learning curve of a run, and what its band depends on."""

    folder: Path
    settings: dict[str, Any]  # by full key
    nested: dict[str, Any]
    classes: Classes
    steps: int  # of the whole schedule
    curve: Curve

    @property
    def is_finished(self) -> bool:
        return self.curve.step >= self.steps

    @property
    def key(self) -> str:
        return band_key(self.nested, self.classes)

    def band(self, bands: Iterable[Band]) -> Band | None:
        batch_size = self.settings["data.batch_size"]
        return find_band(bands, self.nested, self.classes, self.steps, batch_size)

    def departure(self, band: Band | None) -> Departure | None:
        """Where the run left a band."""
        watch = BandWatch(band, self.steps, math.log(self.classes.number))
        for record in train_records(self.folder):
            watch.add(record["step"], *(record[key] for key in METRIC_KEYS))
        return watch.departure


def train_records(folder: Path) -> list[dict[str, Any]]:
    return [r for r in read_records(folder / METRICS) if r["kind"] == "train"]


def read_curve(folder: Path) -> RunCurve | None:
    """The curve of a run; None if it has not finished an epoch, or does not say its classes.

    Raises:
        DamagedRunError: the run cannot be read.
    """
    nested = load_settings(folder)
    try:
        settings, classes = with_defaults(nested), _classes(folder)
        records = read_records(folder / METRICS)
        ends = (r["step"] for r in records if r["kind"] == "epoch" and r.get("epoch") == 0)
        per_epoch = next(ends, None)
        if per_epoch is None or classes is None:
            return None
        steps = settings["schedule.epochs"] * settings["schedule.epochs_factor"] * per_epoch
        curve = Curve(steps)
        for record in records:
            if record["kind"] == "train":
                curve.add(record["step"], *(float(record[key]) for key in METRIC_KEYS))
    except (RunError, ConfigError, ValueError, LookupError, TypeError) as error:
        raise DamagedRunError(manifest.first_line(error)) from error
    return RunCurve(folder, settings, nested, classes, steps, curve)


def _classes(folder: Path) -> Classes | None:
    """The classes of a run, as its records or its newest checkpoint have them."""
    for record in read_records(folder / TIMINGS):
        if record["kind"] == BEGUN and "classes_digest" in record:
            return Classes(record["classes"], record["classes_digest"])
    newest = manifest.latest(folder)
    return None if newest is None else Classes.of(manifest.read_progress(newest).classes)


def groups_of_seeds(curves: Sequence[RunCurve]) -> list[list[RunCurve]]:
    """Groups of runs that differ in nothing but their seed, by seed.

    Of groups that share a key, as the learning rates of a search, only the largest is kept.
    """
    by_key: dict[str, dict[str, list[RunCurve]]] = defaultdict(lambda: defaultdict(list))
    for run in sorted(curves, key=lambda run: run.settings["seed"]):
        by_key[run.key][_without_seed(run.settings)].append(run)
    return [max(groups.values(), key=len) for groups in by_key.values()]


def _without_seed(settings: Mapping[str, Any]) -> str:
    kept = {
        key: value
        for key, value in settings.items()
        if role_of(TrainConfig, key) in (Role.variant, Role.identity) and key != "seed"
    }
    return json.dumps(kept, sort_keys=True)


def make_band(runs: Sequence[RunCurve]) -> Band | None:
    """The band of runs that differ in their seed; None of too few."""
    if len(runs) < MIN_RUNS:
        return None
    first = runs[0]
    settings = first.settings
    name = (
        f"{settings['recipe.name']}, width {settings['model.width']:g}, "
        f"{settings['model.input_size']} pixels, {first.classes.number} classes, "
        f"{settings['schedule.epochs'] * settings['schedule.epochs_factor']} epochs"
    )
    factor = settings["schedule.rate_factor"]
    if (reference := settings["schedule.reference_batch"]) is not None:
        factor *= settings["data.batch_size"] / reference
    init_std = {
        key.split(".")[1]: value
        for key, value in settings.items()
        if key.startswith("recipe.") and key.endswith(".init_std")
    }
    return Band(
        name=name,
        settings=_curve_settings(first.nested),
        classes=first.classes,
        runs=len(runs),
        steps=first.steps,
        batch_size=settings["data.batch_size"],
        rate=factor * settings["schedule.rate"],
        init_std=init_std,
        limits={key: _limits([run.curve for run in runs], key) for key in METRIC_KEYS},
    )


def _limits(curves: Sequence[Curve], key: str) -> list[Limits | None]:
    """The prediction interval for one more run in each bin, of normally distributed means.

    A few runs estimate a variance badly, so it is pooled over five neighbouring bins. Those are
    correlated: together they count as two.
    """
    from scipy.special import stdtrit

    count = len(curves)
    moments: list[tuple[float, float] | None] = []
    for index in range(BINS):
        means = [curve.means(index) for curve in curves]
        values = [mean[key] for mean in means if mean is not None]
        if len(values) < count:
            moments.append(None)
            continue
        mean = sum(values) / count
        moments.append((mean, sum((value - mean) ** 2 for value in values) / (count - 1)))
    quantile = float(stdtrit(2 * (count - 1), 1 - OUTSIDE / 2))
    limits: list[Limits | None] = []
    for index, moment in enumerate(moments):
        if moment is None:
            limits.append(None)
            continue
        near = [m[1] for m in moments[max(0, index - 2) : index + 3] if m is not None]
        spread = math.sqrt(max(moment[1], sum(near) / len(near)))
        spread = max(spread, MIN_SPREAD * abs(moment[0]), 1e-6)
        half = quantile * spread * math.sqrt(1 + 1 / count)
        limits.append((moment[0] - half, moment[0], moment[0] + half))
    return limits
