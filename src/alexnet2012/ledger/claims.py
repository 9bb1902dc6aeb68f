"""The ledger: every quantitative claim, what each source reports, and what was measured.

``claims.yaml`` holds the sources, and experiments return :class:`Measurement` objects, from which
:mod:`alexnet2012.ledger.verdicts` derives the verdicts.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from omegaconf import OmegaConf

from alexnet2012.ledger.statistics import Estimate
from alexnet2012.utils.files import replace_text

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
    stand_in = "stand_in"  # data or a quantity in place of the claimed, which cannot show it

    @property
    def words(self) -> str:
        return {
            Scale.exact: "exact",
            Scale.full: "measured at full scale",
            Scale.reduced: "measured at reduced scale",
            Scale.stand_in: "measured on a stand-in",
        }[self]


@dataclass(frozen=True)
class ClaimSource:
    value: str
    where: str


@dataclass(frozen=True)
class EffectClaim:
    """The effect of removing something that a source reports, and the ablations that remove it."""

    arms: tuple[str, ...]  # of conf/ablation
    metric: str  # of ablations.METRICS
    claimed_points: float | None  # None: the source gives no size
    source: str  # who reports the number
    sweep: str = "ablations"  # the part of the reproduction that runs these ablations
    # Without a claimed size: the smallest effect that the design has to be able to see. An effect
    # of less than one point is smaller than most of those that the paper reports.
    smallest_points: float = 1.0


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
    unmeasured: str | None = None  # why no function measures it


@dataclass(frozen=True)
class SourceDifference:
    item: str
    paper: str
    code: str
    settings: list[str]  # that control it


How = tuple[Scale, str, str | None]  # scale, command and caveat of a measurement


def stand_in(scale: Scale, command: str, caveat: str | None) -> How:
    """The same of a measurement that is only comparable with the claim at full scale."""
    return Scale.stand_in if scale is Scale.reduced else scale, command, caveat


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
    # Differences that the verdict follows from; several: each must show what is claimed.
    estimates: tuple[Estimate, ...] = ()
    p_value: float | None = None  # of a test of another kind, such as a permutation test
    # What a test of another kind was computed from; kept with the evidence, not in the ledger.
    sample: Mapping[str, npt.NDArray[np.generic]] = field(
        default_factory=dict, compare=False, repr=False
    )

    def __post_init__(self) -> None:
        if self.scale in (Scale.reduced, Scale.stand_in) and not self.caveat:
            raise ValueError(f"{self.claim}: a reduced measurement must carry a caveat")
        if self.n_seeds < 1:
            raise ValueError(f"{self.claim}: n_seeds={self.n_seeds}: must be 1 or more")
        if self.interval is not None and not self.interval[0] <= self.interval[1]:
            raise ValueError(f"{self.claim}: interval={self.interval}: must be (low, high)")

    def on_stand_in(self) -> Measurement:
        """The same on data that cannot show the claim, whatever comes out."""
        scale = Scale.stand_in if self.scale is Scale.reduced else self.scale
        return replace(self, scale=scale)

    def to_json(self) -> dict[str, Any]:
        fields = {name: value for name, value in vars(self).items() if name != "sample"}
        estimates = [estimate.to_json() for estimate in self.estimates]
        return {**fields, "scale": self.scale.value, "estimates": estimates}

    @classmethod
    def from_json(cls, fields: Mapping[str, Any]) -> Measurement:
        interval = tuple(fields["interval"]) if fields.get("interval") else None
        estimates = tuple(map(Estimate.from_json, fields.get("estimates", ())))
        changed = {"scale": Scale(fields["scale"]), "interval": interval, "estimates": estimates}
        return cls(**{**fields, **changed})


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
    arms = (arm for c in effect_claims(sweep) if c.effect for arm in c.effect.arms)
    return tuple(dict.fromkeys(arms))


def write_json(content: object, path: Path) -> None:
    """Write JSON with sorted keys, and null for NaN and infinities, which JSON does not have."""
    text = json.dumps(_finite(content), indent=2, sort_keys=True, ensure_ascii=False)
    replace_text(path, text + "\n")


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
