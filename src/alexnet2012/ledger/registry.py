"""Which function measures which claim.

A function that measures claims declares them with :func:`measures`. The reproduction, the
``ledger`` command, the table in docs/ledger.md and the tests read this registry, so a new claim
about an existing experiment is one entry in ``claims.yaml`` and one function.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from pkgutil import iter_modules
from typing import Any, TypeVar

from alexnet2012.ledger import measurements
from alexnet2012.ledger.claims import How, Measurement, load_claims

Function = Callable[..., Measurement | list[Measurement]]
FromSample = Callable[..., Measurement]  # of a sample by name, and the scale, command and caveat
AnyFunction = TypeVar("AnyFunction", bound=Function)


@dataclass(frozen=True)
class Measure:
    function: Function
    claims: tuple[str, ...]
    part: str  # of the reproduction; the function's first argument is that part's evidence
    evaluates: bool  # it evaluates checkpoints, which takes longer than reading logs
    # How its claims are measured again from the evidence beside a ledger: by the function itself,
    # from a sweep of that name, or by another from the `sample` of a claim's measurement.
    sweep: str | None = None
    from_sample: Mapping[str, FromSample] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.function.__module__}.{self.function.__qualname__}"


_MEASURES: dict[tuple[str, str], Measure] = {}


def measures(
    *claims: str,
    part: str,
    evaluates: bool = False,
    sweep: str | None = None,
    from_sample: Mapping[str, FromSample] | None = None,
) -> Callable[[AnyFunction], AnyFunction]:
    """Declare that a function measures claims from the evidence of one part of the reproduction.

    The function is called as ``function(evidence, scale, command, caveat, **options)``.
    """

    def register(function: AnyFunction) -> AnyFunction:
        entry = Measure(function, claims, part, evaluates, sweep, from_sample or {})
        if unknown := sorted(set(claims) - {claim.id for claim in load_claims()}):
            raise ValueError(f"{entry.name}: measures {', '.join(unknown)}: not in claims.yaml")
        _MEASURES[entry.name, part] = entry
        return function

    return register


def all_measures() -> list[Measure]:
    """Every declared function, in the order of claims.yaml."""
    for module in iter_modules(measurements.__path__):
        import_module(f"{measurements.__name__}.{module.name}")
    order = [claim.id for claim in load_claims()]
    return sorted(
        _MEASURES.values(), key=lambda entry: min((order.index(c) for c in entry.claims), default=0)
    )


def measure(
    part: str, evidence: Any, *how: *How, evaluate: bool = True, **options: Any
) -> list[Measurement]:
    """Call every function that measures claims from a part's evidence.

    ``evaluate`` includes the functions that evaluate checkpoints.
    """
    measurements: list[Measurement] = []
    for entry in all_measures():
        if entry.part != part or (entry.evaluates and not evaluate):
            continue
        result = entry.function(evidence, *how, **options)
        new = [result] if isinstance(result, Measurement) else result
        for measurement in new:
            if measurement.claim not in entry.claims:
                raise ValueError(
                    f"{entry.name}: returned a measurement of {measurement.claim}; its @measures "
                    f"declares {', '.join(entry.claims)}"
                )
        measurements += new
    return measurements
