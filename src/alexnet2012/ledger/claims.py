"""The ledger: every quantitative claim, what each source says of it, and what was measured here.

``claims.yaml`` holds the sources; an experiment hands in a :class:`Measurement`; :func:`ledger`
puts the two side by side. A verdict is never written by hand: it follows from the measurement.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

MIN_SEEDS = 3  # for a verdict: two that agree by chance make a narrow interval
SOURCES = ("paper", "code", "article")


class Kind(Enum):
    """What it takes to check a claim."""

    count = "count"  # arithmetic on the architecture
    method = "method"  # a procedure that is carried out or not
    error = "error"  # an error rate, or a difference of two, after training
    time = "time"
    observation = "observation"  # something seen in a trained net
    published = "published"  # other people's systems: quoted, never measured here


class Scale(Enum):
    """How much of the claim a measurement covers."""

    exact = "exact"  # the claimed quantity itself, to the last digit
    full = "full"  # the claim's own net, data and training length
    reduced = "reduced"  # a smaller net, other data or a shorter run


class Verdict(Enum):
    """The last word on a claim in this ledger."""

    exact = "exact"
    full = "measured at full scale"
    reduced = "measured at reduced scale"
    not_measured = "not measured here"


@dataclass(frozen=True)
class ClaimSource:
    """What one source says, and where in it."""

    value: str
    where: str


@dataclass(frozen=True)
class EffectClaim:
    """What a source says that leaving something out costs, and the ablations that leave it out."""

    arms: tuple[str, ...]  # of conf/ablation
    metric: str  # top1_error_pct or train_error_pct
    claimed_points: float | None  # None: that it costs, not how much
    source: str  # whose number it is
    sweep: str = "effects"  # of conf/experiment: what has these ablations


@dataclass(frozen=True)
class Claim:
    """One row of claims.yaml; a source is None where it says nothing."""

    id: str
    title: str
    sentence: str
    kind: Kind
    paper: ClaimSource | None
    code: ClaimSource | None
    article: ClaimSource | None
    disagreement: str | None  # where the sources contradict each other, or themselves
    needs: str | None  # what full scale takes
    command: str | None  # what would measure it at full scale
    effect: EffectClaim | None = None  # where the claim is that something lowers an error
    edition: int | None = None  # of ILSVRC, where the numbers are of one


@dataclass(frozen=True)
class SourceDifference:
    """One choice where the paper and the 2012 code part, and the settings that switch it."""

    item: str
    paper: str
    code: str
    settings: tuple[str, ...]


@dataclass(frozen=True)
class Measurement:
    """What was measured of one claim.

    Everything but ``timings`` and ``run_dirs`` must be the same in two runs with the same seed,
    so that two ledgers can be compared row by row: no times, rates, dates or output folders in
    ``value``, ``numbers``, ``agreement_note`` or ``command``.

    Raises:
        ValueError: a reduced measurement without a caveat, no seeds, or an unordered interval.
    """

    claim: str
    value: str  # for people: "60,965,224 parameters"
    scale: Scale
    command: str  # repeats the measurement
    numbers: dict[str, float | int | str | bool] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # unit in the name: images_per_s
    caveat: str | None = None  # what the measurement does not show
    run_dirs: list[str] = field(default_factory=list)
    n_seeds: int = 1
    interval: tuple[float, float] | None = None  # 95%, of the number that `value` opens with
    agrees: bool | None = None  # with the value or the direction claimed; None: cannot tell
    agreement_note: str | None = None

    def __post_init__(self) -> None:
        if self.scale is Scale.reduced and not self.caveat:
            raise ValueError(f"{self.claim}: a reduced measurement must carry a caveat")
        if self.n_seeds < 1:
            raise ValueError(f"{self.claim}: n_seeds={self.n_seeds}: must be 1 or more")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"{self.claim}: interval={self.interval}: must be (low, high)")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "scale": self.scale.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Measurement:
        interval = fields.get("interval")
        return cls(
            **{
                **fields,
                "scale": Scale(fields["scale"]),
                "interval": None if interval is None else (interval[0], interval[1]),
            }
        )


@cache
def load_claims() -> tuple[Claim, ...]:
    """The claims of claims.yaml, in its order.

    Raises:
        ValueError: an entry is incomplete, unknown or there twice.
    """
    claims = tuple(_claim(entry) for entry in _yaml()["claims"])
    ids = [claim.id for claim in claims]
    if len(set(ids)) != len(ids):
        twice = sorted({name for name in ids if ids.count(name) > 1})
        raise ValueError(f"claims.yaml: {', '.join(twice)}: there twice; ids must be unique")
    return claims


@cache
def load_differences() -> tuple[SourceDifference, ...]:
    """Where the paper's recipe and the 2012 code's part, in the order of a training run."""
    return tuple(
        SourceDifference(d["item"], d["paper"], d["code"], tuple(d["settings"]))
        for d in _yaml()["differences"]
    )


def arms_of(sweep: str) -> tuple[str, ...]:
    """The ablations that all claims take of a sweep."""
    effects = (claim.effect for claim in load_claims())
    return tuple(
        arm for effect in effects if effect and effect.sweep == sweep for arm in effect.arms
    )


def direction(interval: tuple[float, float] | None, n_seeds: int) -> bool | None:
    """Whether a difference lies above zero: True, False where below, None: cannot tell.

    Nothing is said of fewer seeds than ``MIN_SEEDS``, nor of a 95% interval that holds zero.
    """
    if interval is None or n_seeds < MIN_SEEDS or interval[0] <= 0 <= interval[1]:
        return None
    return interval[0] > 0


def support_word(agrees: bool | None) -> str:
    """What the data say of a claimed direction."""
    return {True: "supported", False: "contradicted", None: "neither shown nor refuted"}[agrees]


def verdict(claim: Claim, measurement: Measurement | None) -> Verdict:
    """What may be said of a claim.

    Raises:
        ValueError: the measurement says more than the claim's kind allows.
    """
    if measurement is None:
        return Verdict.not_measured
    if claim.kind is Kind.published:
        raise ValueError(f"{claim.id}: other people's published numbers are not measured here")
    if measurement.scale is Scale.exact and claim.kind not in (Kind.count, Kind.method):
        raise ValueError(
            f"{claim.id}: scale=exact: a claim of kind {claim.kind.value} is a measured quantity; "
            "use full or reduced"
        )
    return Verdict[measurement.scale.name]


def ledger(measurements: Iterable[Measurement], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """One row per claim. ``rows`` are the same in two runs with the same seed.

    Raises:
        ValueError: a measurement of no known claim, or two of one.
    """
    by_claim: dict[str, Measurement] = {}
    known = {claim.id for claim in load_claims()}
    for measurement in measurements:
        if measurement.claim not in known:
            raise ValueError(f"claim={measurement.claim}: not in claims.yaml; use one of its ids")
        if measurement.claim in by_claim:
            raise ValueError(f"claim={measurement.claim}: measured twice; merge the two")
        by_claim[measurement.claim] = measurement
    measured = [by_claim[claim.id] for claim in load_claims() if claim.id in by_claim]
    return {
        "schema": 1,
        "provenance": dict(provenance),
        "rows": [_row(claim, by_claim.get(claim.id)) for claim in load_claims()],
        "experiments": [
            {"claim": m.claim, "command": m.command, "n_seeds": m.n_seeds, "run_dirs": m.run_dirs}
            for m in measured
        ],
        "timings": {m.claim: m.timings for m in measured if m.timings},
    }


def write_json(content: object, path: Path) -> None:
    """Sorted keys, and null for what is not finite: any JSON reader can read it."""
    text = json.dumps(_finite(content), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _row(claim: Claim, measurement: Measurement | None) -> dict[str, Any]:
    row = {**asdict(claim), "kind": claim.kind.value, "measured": None}
    row["sources"] = {name: row.pop(name) for name in SOURCES}
    row["verdict"] = verdict(claim, measurement).value
    if measurement is not None:
        elsewhere = ("claim", "timings", "run_dirs")
        row["measured"] = {k: v for k, v in measurement.to_json().items() if k not in elsewhere}
    return row


def _claim(entry: dict[str, Any]) -> Claim:
    """A missing or unknown key of an entry is an error that names the entry."""
    sources = {
        name: None if entry[name] is None else ClaimSource(**entry[name]) for name in SOURCES
    }
    try:
        effect = entry.get("effect")
        if effect is not None:
            effect = EffectClaim(**{**effect, "arms": tuple(effect["arms"])})
        return Claim(**{**entry, **sources, "kind": Kind(entry["kind"]), "effect": effect})
    except TypeError as error:
        raise ValueError(f"claims.yaml: {entry.get('id')}: {error}") from error


@cache
def _yaml() -> dict[str, Any]:
    text = (resources.files("alexnet2012.ledger") / "claims.yaml").read_text(encoding="utf-8")
    content = OmegaConf.to_container(OmegaConf.create(text))
    assert isinstance(content, dict)
    return {str(key): value for key, value in content.items()}


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
