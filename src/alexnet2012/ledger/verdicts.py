"""Verdicts: what the measurements of all claims together say about each claim.

No verdict is written by hand. The rules are in docs/ledger.md.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from enum import Enum
from typing import Any

from alexnet2012.ledger.claims import SOURCES, Claim, Kind, Measurement, Scale, load_claims
from alexnet2012.ledger.statistics import (
    ENOUGH_POWER,
    LEVEL,
    Estimate,
    benjamini_hochberg,
    joint_power,
    seeds_needed,
)


class Verdict(Enum):
    """What the measurement says about the claim; how it was measured is its scale."""

    agrees = "agrees"  # of counts
    differs = "differs"
    supported = "supported"
    in_direction = "supported in direction"  # the interval leaves the claimed size out
    contradicted = "contradicted"
    inconclusive = "inconclusive"
    stand_in = "stand-in only"
    not_recomputable = "not recomputable"  # of an earlier version, without its evidence
    not_measured = "not measured here"


@dataclass(frozen=True)
class ClaimTest:
    """The test of a claim; None where it does not apply."""

    claimed: float | None = None  # points
    smallest: float | None = None  # points; the smallest effect of interest without a claimed size
    size_inside: bool | None = None  # whether every interval holds the claimed size
    p: float | None = None  # two-sided, of no effect
    p_adjusted: float | None = None  # over all claims that were tested (Benjamini–Hochberg)
    power: float | None = None  # at the claimed size, or the smallest of interest
    seeds_needed: int | None = None  # of an arm, for 80% power; None: no number would do


def verdicts(measurements: Sequence[Measurement]) -> dict[str, tuple[Verdict, ClaimTest]]:
    """The verdict on each measured claim, with its test."""
    tested = {m.claim: p for m in measurements if (p := _p_value(m)) is not None}
    adjusted = dict(zip(tested, benjamini_hochberg(list(tested.values())), strict=True))
    excluded = {
        m.claim: p for m in measurements if (p := _p_of_half_the_size(m.estimates)) is not None
    }
    size_adjusted = dict(zip(excluded, benjamini_hochberg(list(excluded.values())), strict=True))
    found = sum(p <= LEVEL for p in adjusted.values())
    judged = {}
    for m in measurements:
        p_adjusted = adjusted.get(m.claim)
        # The level at which the procedure finds this claim, given what it finds of the others.
        count = found + (p_adjusted is not None and p_adjusted > LEVEL)
        level = LEVEL * max(count, 1) / max(len(tested), 1)
        test = _test(m, tested.get(m.claim), p_adjusted, level)
        judged[m.claim] = _verdict(m, test, size_adjusted.get(m.claim)), test
    return judged


def ledger(measurements: Iterable[Measurement], provenance: Mapping[str, Any]) -> dict[str, Any]:
    """The ledger with one row per claim; ``rows`` are identical in two runs with the same seed."""
    claims = {claim.id: claim for claim in load_claims()}
    by_claim: dict[str, Measurement] = {}
    for measurement in measurements:
        if measurement.claim not in claims:
            raise ValueError(f"claim={measurement.claim}: not in claims.yaml; use one of its ids")
        if measurement.claim in by_claim:
            raise ValueError(f"claim={measurement.claim}: measured twice; keep one")
        check_scale(claims[measurement.claim], measurement)
        by_claim[measurement.claim] = measurement
    measured = [by_claim[claim] for claim in claims if claim in by_claim]
    judged = verdicts(measured)
    return {
        "schema": 2,
        "provenance": dict(provenance),
        "rows": [_row(claim, by_claim.get(claim.id), judged) for claim in claims.values()],
        "experiments": [
            {"claim": m.claim, "command": m.command, "n_seeds": m.n_seeds, "run_dirs": m.run_dirs}
            for m in measured
        ],
        "timings": {m.claim: m.timings for m in measured if m.timings},
    }


def check_scale(claim: Claim, measurement: Measurement) -> None:
    """ValueError if the claim's kind does not allow this scale."""
    if claim.kind is Kind.published:
        raise ValueError(f"{claim.id}: kind=published: results of other systems are only quoted")
    if measurement.scale is Scale.exact and claim.kind not in (Kind.count, Kind.method):
        raise ValueError(
            f"{claim.id}: scale=exact: a claim of kind {claim.kind.value} is never exact; "
            "use full or reduced"
        )


def _row(
    claim: Claim, measurement: Measurement | None, judged: Mapping[str, tuple[Verdict, ClaimTest]]
) -> dict[str, Any]:
    row = {**asdict(claim), "kind": claim.kind.value, "measured": None}
    row["sources"] = {name: row.pop(name) for name in SOURCES}
    verdict, test = judged.get(claim.id, (Verdict.not_measured, ClaimTest()))
    row |= {"verdict": verdict.value, "test": asdict(test), "scale": Verdict.not_measured.value}
    if measurement is not None:
        omitted = ("claim", "timings", "run_dirs")
        row["measured"] = {k: v for k, v in measurement.to_json().items() if k not in omitted}
        row["scale"] = measurement.scale.words
    return row


def _verdict(m: Measurement, test: ClaimTest, size_p_adjusted: float | None) -> Verdict:
    if m.scale is Scale.stand_in:
        return Verdict.stand_in
    if m.scale is Scale.exact and m.agrees is not None:
        return Verdict.agrees if m.agrees else Verdict.differs
    if not m.estimates and m.p_value is None:
        was_tested = m.agrees is not None or m.interval is not None or m.n_seeds > 1
        return Verdict.not_recomputable if was_tested else Verdict.inconclusive
    if test.p_adjusted is None:  # too few seeds
        return Verdict.inconclusive
    as_claimed = all(e.mean > 0 for e in m.estimates) if m.estimates else m.agrees is True
    if as_claimed and test.p_adjusted <= LEVEL:
        return Verdict.in_direction if test.size_inside is False else Verdict.supported
    refuted = size_p_adjusted is not None and size_p_adjusted <= LEVEL
    if refuted and any(map(_lacks_the_effect, m.estimates)) and (test.power or 0) >= ENOUGH_POWER:
        return Verdict.contradicted
    return Verdict.inconclusive


def _test(m: Measurement, p: float | None, p_adjusted: float | None, level: float) -> ClaimTest:
    if not m.estimates or p is None:
        claimed = m.estimates[0].claimed if m.estimates else None
        return ClaimTest(claimed=claimed, p=p, p_adjusted=p_adjusted)
    first, designs = m.estimates[0], [e.design for e in m.estimates]
    needed = seeds_needed(designs, first.size, level)
    return ClaimTest(
        claimed=first.claimed,
        smallest=first.smallest if first.claimed is None else None,
        size_inside=None if first.claimed is None else all(e.size_inside for e in m.estimates),
        p=p,
        p_adjusted=p_adjusted,
        power=joint_power(designs, first.size, level),
        seeds_needed=None if needed is None else needed * first.networks,
    )


def _p_value(m: Measurement) -> float | None:
    """Of no effect; of several arms the largest, because each must show one."""
    if not m.estimates:
        return m.p_value
    p_values = [p for e in m.estimates if (p := e.p_value()) is not None]
    return max(p_values) if len(p_values) == len(m.estimates) else None


def _p_of_half_the_size(estimates: Sequence[Estimate]) -> float | None:
    """Of an effect of half the claimed size, against a smaller one; times the arms, because one
    that lacks the effect refutes the claim."""
    p_values = [
        p if e.mean < e.size / 2 else 1.0
        for e in estimates
        if (p := e.p_value(e.size / 2)) is not None
    ]
    return min(1.0, len(p_values) * min(p_values)) if p_values else None


def _lacks_the_effect(e: Estimate) -> bool:
    """Whether the interval lies below half the size, and not wholly on the claimed side of zero."""
    return e.interval is not None and e.interval[0] <= 0 and e.interval[1] < e.size / 2


def columns(row: Mapping[str, Any]) -> dict[str, str]:
    """How tables show the test of a row: claimed, size inside, seeds, power, p, p adjusted."""
    measured, test = row["measured"] or {}, row["test"]
    estimates = measured.get("estimates", [])
    seeds = str(measured.get("n_seeds", "–"))
    if estimates and (control := estimates[0]["design"]["control_seeds"]):
        seeds += "" if control == measured["n_seeds"] else f" and {control}"
    claimed = "–"
    if test["claimed"] is not None:
        claimed = f"{test['claimed']:+.2f}"
    elif test["smallest"] is not None:
        claimed = f"no size; {test['smallest']:g} is of interest"
    power = "–" if test["power"] is None else f"{100 * test['power']:.0f}%"
    if test["power"] is not None and test["power"] < ENOUGH_POWER:
        needed = test["seeds_needed"]
        power += f"; 80% takes {'more images' if needed is None else f'{needed} seeds'}"
    inside = {None: "–", True: "yes", False: "no"}[test["size_inside"]]
    p_values = (_p_text(test[name]) for name in ("p", "p_adjusted"))
    names = ("claimed", "size inside", "seeds", "power", "p", "p adjusted")
    return dict(zip(names, (claimed, inside, seeds, power, *p_values), strict=True))


def _p_text(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"
