"""Which function measures which claim.

A function that measures claims declares them with :func:`measures`. The reproduction, the
``ledger`` command, the table in docs/ledger.md and the tests read this registry, so a new claim
about an existing experiment is one entry in ``claims.yaml`` and one function.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from alexnet2012 import ledger
from alexnet2012.ledger.claims import Claim, Kind, Measurement, Scale, load_claims

Function = Callable[..., Measurement | list[Measurement]]
AnyFunction = TypeVar("AnyFunction", bound=Function)


@dataclass(frozen=True)
class Measure:
    """A measuring function and what it declares."""

    function: Function
    claims: tuple[str, ...]
    part: str  # of the reproduction; the function's first argument is that part's evidence
    evaluates: bool  # it evaluates checkpoints, which takes longer than reading logs

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"


_MEASURES: dict[tuple[str, str], Measure] = {}


def measures(
    *claims: str, part: str, evaluates: bool = False
) -> Callable[[AnyFunction], AnyFunction]:
    """Declare that a function measures claims from the evidence of one part of the reproduction.

    The function is called as ``function(evidence, scale, caveat, command, **options)``.

    Raises:
        ValueError: a claim is not in claims.yaml.
    """

    def register(function: AnyFunction) -> AnyFunction:
        entry = Measure(function, claims, part, evaluates)
        if unknown := sorted(set(claims) - {claim.id for claim in load_claims()}):
            raise ValueError(f"{entry.name}: measures {', '.join(unknown)}: not in claims.yaml")
        _MEASURES[entry.name, part] = entry
        return function

    return register


def all_measures() -> list[Measure]:
    """Every declared function, in the order of claims.yaml."""
    for module in iter_modules(ledger.__path__):
        import_module(f"{ledger.__name__}.{module.name}")
    order = [claim.id for claim in load_claims()]
    return sorted(
        _MEASURES.values(), key=lambda entry: min((order.index(c) for c in entry.claims), default=0)
    )


def check_coverage(claims: Iterable[Claim], entries: Iterable[Measure]) -> None:
    """Check that every claim is measured by one function, or marked as quoted only.

    Raises:
        ValueError: a claim has no measuring function, or two, or is of kind ``published`` and
            has one.
    """
    by_claim: dict[str, list[str]] = {}
    for entry in entries:
        for claim_id in entry.claims:
            by_claim.setdefault(claim_id, []).append(entry.name)
    for claim in claims:
        names = by_claim.get(claim.id, [])
        if claim.kind is Kind.published and names:
            raise ValueError(f"{claim.id}: kind=published: only quoted, but {names[0]} measures it")
        if claim.kind is not Kind.published and not names:
            raise ValueError(
                f'{claim.id}: no function measures it; declare one with @measures("{claim.id}", …) '
                "or set kind: published"
            )
        if len(names) > 1:
            raise ValueError(f"{claim.id}: measured by {' and '.join(names)}; keep one")


def measure(
    part: str,
    evidence: Any,
    scale: Scale,
    caveat: str | None,
    command: str,
    *,
    evaluate: bool = True,
    **options: Any,
) -> list[Measurement]:
    """Call every function that measures claims from a part's evidence.

    Args:
        evaluate: also call functions that evaluate checkpoints.

    Raises:
        ValueError: a function returned a measurement of a claim that it does not declare.
    """
    measurements: list[Measurement] = []
    for entry in all_measures():
        if entry.part != part or (entry.evaluates and not evaluate):
            continue
        result = entry.function(evidence, scale, caveat, command, **options)
        new: Sequence[Measurement] = [result] if isinstance(result, Measurement) else result
        for measurement in new:
            if measurement.claim not in entry.claims:
                raise ValueError(
                    f"{entry.name}: returned a measurement of {measurement.claim}; its @measures "
                    f"declares {', '.join(entry.claims)}"
                )
        measurements += new
    return measurements
