"""The ledger: every quantitative claim, what each source reports, and what was measured.

``claims.yaml`` holds the sources, experiments return :class:`Measurement` objects, and
:func:`ledger` sets the two side by side. Verdicts are computed from the measurements.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

MIN_SEEDS = 3  # for a verdict: the interval of two seeds that agree by chance is too narrow
SOURCES = ("paper", "code", "article")


class Kind(Enum):
    """What it takes to check a claim."""

    count = "count"  # arithmetic on the architecture
    method = "method"  # a procedure
    error = "error"  # an error rate after training, or a difference of two
    time = "time"
    observation = "observation"  # a property of a trained network
    published = "published"  # results of other systems: quoted, never measured


class Scale(Enum):
    """How much of the claim a measurement covers."""

    exact = "exact"  # the claimed quantity itself, exactly
    full = "full"  # the network, data and training length of the claim
    reduced = "reduced"  # a smaller network, other data or shorter training


class Verdict(Enum):
    """How a claim was measured."""

    exact = "exact"
    full = "measured at full scale"
    reduced = "measured at reduced scale"
    not_measured = "not measured here"


@dataclass(frozen=True)
class ClaimSource:
    value: str
    where: str


@dataclass(frozen=True)
class EffectClaim:
    """The effect of removing something that a source reports, and the ablations that remove it."""

    arms: tuple[str, ...]  # of conf/ablation
    metric: str  # top1_error_pct or train_error_pct
    claimed_points: float | None  # None: the source gives no size
    source: str  # who reports the number
    sweep: str = "ablations"  # the part of the reproduction that runs these ablations


@dataclass(frozen=True)
class Claim:
    """One entry of claims.yaml; a source that does not mention the claim is None."""

    id: str
    title: str
    sentence: str
    kind: Kind
    paper: ClaimSource | None
    code: ClaimSource | None
    article: ClaimSource | None
    disagreement: str | None  # where the sources contradict each other or themselves
    needs: str | None  # data and hardware for full scale
    command: str | None  # measures it at full scale
    effect: EffectClaim | None = None  # of claims that something lowers an error
    edition: int | None = None  # the edition of ILSVRC that the numbers refer to


@dataclass(frozen=True)
class SourceDifference:
    item: str
    paper: str
    code: str
    settings: list[str]  # that control it


How = tuple[Scale, str, str | None]  # scale, command and caveat of a measurement


@dataclass(frozen=True)
class Measurement:
    """The measurement of one claim.

    Everything but ``timings`` and ``run_dirs`` must be identical in two runs with the same seed,
    so that ledgers can be compared row by row: no times, throughputs, dates or output directories
    in ``value``, ``numbers``, ``agreement_note`` or ``command``.
    """

    claim: str
    value: str  # for readers: "60,965,224 parameters"
    scale: Scale
    command: str  # reproduces the measurement
    caveat: str | None = None  # limits of the measurement
    numbers: dict[str, float | int | str | bool] = field(default_factory=dict)
    timings: dict[str, float] = field(default_factory=dict)  # units in the keys: images_per_s
    run_dirs: list[str] = field(default_factory=list)
    n_seeds: int = 1
    interval: tuple[float, float] | None = None  # 95%, of the first number of `value`
    agrees: bool | None = None  # with the claimed value or direction; None: inconclusive
    agreement_note: str | None = None
    p_value: float | None = None  # of a test of another kind, such as a permutation test
    # What a test of another kind was computed from; kept with the evidence, not in the ledger.
    sample: Mapping[str, npt.NDArray[np.generic]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.scale is Scale.reduced and not self.caveat:
            raise ValueError(f"{self.claim}: a reduced measurement must carry a caveat")
        if self.n_seeds < 1:
            raise ValueError(f"{self.claim}: n_seeds={self.n_seeds}: must be 1 or more")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"{self.claim}: interval={self.interval}: must be (low, high)")

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "sample"}
        return {**fields, "scale": self.scale.value}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Measurement:
        interval = tuple(fields["interval"]) if fields.get("interval") else None
        return cls(**{**fields, "scale": Scale(fields["scale"]), "interval": interval})


@cache
def load_claims() -> tuple[Claim, ...]:
    """The claims of claims.yaml, in file order."""
    claims = tuple(_claim(entry) for entry in _yaml()["claims"])
    ids = [claim.id for claim in claims]
    if duplicates := sorted({name for name in ids if ids.count(name) > 1}):
        raise ValueError(f"claims.yaml: {', '.join(duplicates)}: not unique; rename one")
    return claims


@cache
def load_differences() -> tuple[SourceDifference, ...]:
    """Differences between the recipes of the paper and of the 2012 code."""
    return tuple(SourceDifference(**entry) for entry in _yaml()["differences"])


def effect_claims(sweep: str) -> tuple[Claim, ...]:
    """The claims that the ablations of a sweep measure."""
    return tuple(c for c in load_claims() if c.effect is not None and c.effect.sweep == sweep)


def ablations_of(sweep: str) -> tuple[str, ...]:
    """The ablations that the claims of a sweep need."""
    return tuple(arm for c in effect_claims(sweep) if c.effect for arm in c.effect.arms)


def direction(interval: tuple[float, float] | None, n_seeds: int) -> bool | None:
    """Whether a difference is above zero; None: too few seeds, or its interval contains zero."""
    if interval is None or n_seeds < MIN_SEEDS or interval[0] <= 0 <= interval[1]:
        return None
    return interval[0] > 0


def support_word(agrees: bool | None) -> str:
    """The verdict on a claimed direction, in words."""
    return {True: "supported", False: "contradicted", None: "neither shown nor refuted"}[agrees]


def verdict(claim: Claim, measurement: Measurement | None) -> Verdict:
    """How a claim was measured; ValueError if its kind does not allow this scale."""
    if measurement is None:
        return Verdict.not_measured
    if claim.kind is Kind.published:
        raise ValueError(f"{claim.id}: kind=published: results of other systems are only quoted")
    if measurement.scale is Scale.exact and claim.kind not in (Kind.count, Kind.method):
        raise ValueError(
            f"{claim.id}: scale=exact: a claim of kind {claim.kind.value} is never exact; "
            "use full or reduced"
        )
    return Verdict[measurement.scale.name]


def ledger(measurements: Iterable[Measurement], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger with one row per claim; ``rows`` are identical in two runs with the same seed."""
    by_claim: dict[str, Measurement] = {}
    for measurement in measurements:
        if measurement.claim not in {claim.id for claim in load_claims()}:
            raise ValueError(f"claim={measurement.claim}: not in claims.yaml; use one of its ids")
        if measurement.claim in by_claim:
            raise ValueError(f"claim={measurement.claim}: measured twice; keep one")
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
    """Write JSON with sorted keys, and null for NaN and infinities, which JSON does not have."""
    text = json.dumps(_finite(content), indent=2, sort_keys=True, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def _row(claim: Claim, measurement: Measurement | None) -> dict[str, Any]:
    row = {**asdict(claim), "kind": claim.kind.value, "measured": None}
    row["sources"] = {name: row.pop(name) for name in SOURCES}
    row["verdict"] = verdict(claim, measurement).value
    if measurement is not None:
        omitted = ("claim", "timings", "run_dirs")
        row["measured"] = {k: v for k, v in measurement.to_json().items() if k not in omitted}
    return row


def _claim(entry: dict[str, Any]) -> Claim:
    """Raises ValueError, naming the entry, for a missing or unknown key."""
    sources = {name: entry[name] and ClaimSource(**entry[name]) for name in SOURCES}
    try:
        if effect := entry.get("effect"):
            effect = EffectClaim(**{**effect, "arms": tuple(effect["arms"])})
        return Claim(**{**entry, **sources, "kind": Kind(entry["kind"]), "effect": effect})
    except TypeError as error:
        raise ValueError(f"claims.yaml: {entry.get('id')}: {error}") from error


@cache
def _yaml() -> Any:
    return OmegaConf.to_container(OmegaConf.load(Path(__file__).with_name("claims.yaml")))


def _finite(content: object) -> object:
    if isinstance(content, float):
        return content if math.isfinite(content) else None
    if isinstance(content, Mapping):
        return {str(key): _finite(value) for key, value in content.items()}
    if isinstance(content, (list, tuple)):
        return [_finite(value) for value in content]
    return content
