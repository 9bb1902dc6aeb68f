"""``alexnet2012 ledger verify DIR``: measure again from the evidence beside a ledger."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement
from alexnet2012.ledger.evidence import RUNS, Evidence, load_evidence
from alexnet2012.ledger.registry import all_measures
from alexnet2012.ledger.verdicts import Verdict, ledger
from alexnet2012.tracking.run_index import METRICS
from alexnet2012.utils.untrusted import read_json_object

TOLERANCE = 1e-9  # relative: another processor may add in another order
# Verdicts that rest on trained networks.
_OF_RUNS = {
    Verdict.supported,
    Verdict.in_direction,
    Verdict.contradicted,
    Verdict.inconclusive,
    Verdict.not_recomputable,
}


class Difference(NamedTuple):
    claim: str  # or the run whose recorded errors differ from those of its images
    value: str  # its key
    recorded: object
    recomputed: object

    def __str__(self) -> str:
        return f"{self.claim}: {self.value}: {self.recorded} recorded, {self.recomputed} recomputed"


class Verified(NamedTuple):
    claims: list[str]  # measured again
    runs: int
    dirty: int  # of those, runs of code with uncommitted changes
    differences: list[Difference]


def verify(directory: Path) -> Verified:
    """Recompute every verdict and interval of DIRECTORY/ledger.json.

    Raises:
        ConfigError: the directory has no ledger or no evidence.
    """
    file = directory / "ledger.json"
    if (directory / METRICS).is_file():
        remedy = f"is a training run; `alexnet2012 verify {directory}` replays parts of it"
        raise ConfigError("DIR", directory, remedy)
    if not file.is_file():
        raise ConfigError("DIR", directory, "contains no ledger.json; `make reproduce` writes one")
    recorded = read_json_object(file)
    evidence = load_evidence(directory)
    measurements = {
        row["id"]: Measurement.from_json({"claim": row["id"], **row["measured"]})
        for row in recorded["rows"]
        if row["measured"]
    }
    again = {m.claim: m for m in _measured_again(evidence, measurements)}
    rows = ledger([again.get(claim, m) for claim, m in measurements.items()], {})["rows"]
    recomputed = {row["id"]: row for row in json.loads(json.dumps(rows))}
    differences = list(_differences_of_runs(directory, evidence))
    for row in recorded["rows"]:
        claim = row["id"]
        if claim not in recomputed:
            differences.append(Difference(claim, "id", claim, "not in claims.yaml"))
        elif Verdict(row["verdict"]) in _OF_RUNS and claim not in again:
            differences.append(Difference(claim, "verdict", row["verdict"], "no evidence of it"))
        else:
            for key in ("verdict", "test", "scale", "measured"):
                differences += _compare(claim, key, row.get(key), recomputed[claim][key])
    runs = [r for s in evidence.sweeps.values() for arm in s.values() for r in arm.values()]
    return Verified(list(again), len(runs), sum(bool(run.dirty) for run in runs), differences)


def _measured_again(
    evidence: Evidence, recorded: Mapping[str, Measurement]
) -> Iterator[Measurement]:
    for entry in all_measures():
        wanted = [recorded[claim] for claim in entry.claims if claim in recorded]
        if not wanted:
            continue
        how = (wanted[0].scale, wanted[0].command, wanted[0].caveat)
        found = [
            function(evidence.samples[claim], *how)
            for claim, function in entry.from_sample.items()
            if claim in evidence.samples
        ]
        if entry.sweep is not None and entry.sweep in evidence.sweeps:
            result = entry.function(evidence.sweeps[entry.sweep], *how)
            found += [result] if isinstance(result, Measurement) else result
        for m in found:
            if m.claim in recorded:
                old = recorded[m.claim]
                yield replace(m, scale=old.scale, command=old.command, caveat=old.caveat)


def _differences_of_runs(directory: Path, evidence: Evidence) -> Iterator[Difference]:
    """Errors that evidence.json records for a run but its images do not give."""
    recorded = read_json_object(directory / RUNS)["sweeps"]
    for sweep, arms in evidence.sweeps.items():
        for arm, by_seed in arms.items():
            for seed, run in by_seed.items():
                stated = recorded[sweep][arm][str(seed)]["errors"]
                yield from _compare(f"{sweep}/{arm}/{seed}", "errors", stated, run.errors)


def _compare(claim: str, key: str, recorded: Any, recomputed: Any) -> Iterator[Difference]:
    """The values that differ, by their key: ``measured.interval.0``."""
    if isinstance(recorded, dict) and isinstance(recomputed, dict):
        for name in sorted(recorded.keys() | recomputed.keys()):
            yield from _compare(claim, f"{key}.{name}", recorded.get(name), recomputed.get(name))
    elif isinstance(recorded, list) and isinstance(recomputed, list):
        for index in range(max(len(recorded), len(recomputed))):
            values = (x[index] if index < len(x) else None for x in (recorded, recomputed))
            yield from _compare(claim, f"{key}.{index}", *values)
    elif isinstance(recorded, float) and isinstance(recomputed, (int, float)):
        if not math.isclose(recorded, recomputed, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            yield Difference(claim, key, recorded, recomputed)
    elif recorded != recomputed:
        yield Difference(claim, key, recorded, recomputed)
