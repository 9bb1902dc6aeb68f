"""What a difference from the 2012 code costs, as far as the ledger has measured it.

Every ablation of ``conf/ablation`` is a set of differences from ``code145``, found by the same
comparison as those of other people's networks. A network that has all of them has the ablation.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from alexnet2012.config.compose import typed_config
from alexnet2012.config.schema import ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.referee.compare import Difference, Key, differing, reference
from alexnet2012.inference.referee.network import Network
from alexnet2012.ledger.claims import SOURCES, Claim, load_claims
from alexnet2012.ledger.report.committed import RESULTS, STAND_IN
from alexnet2012.utils.text import printable
from alexnet2012.utils.untrusted import read_json_object

BASE = "code145"  # which the ablations change
_WITHOUT_ARMS = {"relu": "tanh"}  # claims that are not of an error, with their ablation


@dataclass(frozen=True)
class Evidence:
    """A measured claim of a ledger."""

    value: str  # with its interval
    verdict: str  # and scale
    seeds: int
    ledger: str


@dataclass(frozen=True)
class Cost:
    """An ablation that has a difference, and what the ledger says about its claim.

    ``also``: what else the ablation changes that the network does not; then this difference alone
    was not measured. ``evidence`` is None if the claim was not measured.
    """

    claim: str
    ablation: str
    also: tuple[str, ...]
    sources: Mapping[str, str]  # what the paper, the code and the article say
    evidence: Evidence | None


def costs(
    network: Network, differences: Iterable[Difference], ledgers: Sequence[Path] | None = None
) -> list[Cost | None]:
    """The cost of each difference; None if no ablation has it.

    Args:
        ledgers: directories with a ``ledger.json``; those of the repository by default.

    Raises:
        OSError, ValueError, KeyError, TypeError: a ledger cannot be read.
    """
    evidence = _evidence(committed() if ledgers is None else ledgers)
    own = differing(network, reference(load_recipe(BASE), network))
    ablations = list(_ablations(network))
    return [_cost((d.layer, d.item), own, ablations, evidence) for d in differences]


def committed() -> list[Path]:
    """The ledgers of the repository on real data sets."""
    ledgers = sorted(RESULTS.glob("*/ledger.json"))
    contents = {file.parent: read_json_object(file) for file in ledgers}
    return [
        folder
        for folder, content in contents.items()
        if STAND_IN not in content["provenance"]["data_description"]
    ]


def _cost(
    key: Key,
    own: Mapping[Key, Hashable],
    ablations: Sequence[tuple[str, Sequence[Claim], Mapping[Key, Hashable]]],
    evidence: Mapping[str, Evidence],
) -> Cost | None:
    """Of the ablations with this difference, a complete one, or that with most in common."""
    found = []
    for name, claims, changes in ablations:
        if key not in own or key not in changes or changes[key] != own[key]:
            continue
        missing = [k for k, value in changes.items() if own.get(k) != value]
        claim = min(claims, key=lambda c: (c.id not in evidence, _is_of_training(c)))
        found.append((bool(missing), len(missing) - len(changes), name, claim, missing))
    if not found:
        return None
    _, _, name, claim, missing = min(found, key=lambda row: row[:3])
    also = tuple(" ".join(part for part in key if part) for key in missing)
    named = {source: getattr(claim, source) for source in SOURCES}
    sources = {source: said.value for source, said in named.items() if said is not None}
    return Cost(claim.id, name, also, sources, evidence.get(claim.id))


def _is_of_training(claim: Claim) -> bool:
    return claim.effect is not None and claim.effect.metric != "top1_error_pct"


def _ablations(
    network: Network,
) -> Iterator[tuple[str, Sequence[Claim], Mapping[Key, Hashable]]]:
    """Every ablation that a claim needs, and its differences from the base."""
    base = reference(load_recipe(BASE), network)
    for name, claims in _claims_by_arm().items():
        recipe, activation = _changed(name)
        model = ModelConfig(activation=activation.activation, input_size=base.input_size or 224)
        changes = differing(reference(recipe, network, model), base)
        if changes:
            yield name, claims, changes


@cache
def _claims_by_arm() -> dict[str, list[Claim]]:
    arms: dict[str, list[Claim]] = {}
    for claim in load_claims():
        effect = claim.effect
        names = effect.arms if effect is not None else (_WITHOUT_ARMS.get(claim.id),)
        for name in names:
            if name is not None and (effect is None or effect.sweep == "ablations"):
                arms.setdefault(name, []).append(claim)
    return arms


@cache
def _changed(name: str) -> tuple[RecipeConfig, ModelConfig]:
    """The base with the changes of an ablation, and what it changes of the model."""
    changes = _file(name)
    base = OmegaConf.structured(load_recipe(BASE))
    recipe: Any = OmegaConf.to_object(OmegaConf.merge(base, changes.get("recipe", {})))
    plain: Any = OmegaConf.to_container(changes.get("model", OmegaConf.create({})))
    return recipe, typed_config(ModelConfig, plain)


def _file(name: str) -> DictConfig:
    file = resources.files("alexnet2012.conf") / "ablation" / f"{name}.yaml"
    loaded = OmegaConf.create(file.read_text(encoding="utf-8"))
    assert isinstance(loaded, DictConfig)
    parents = [_file(parent) for parent in loaded.pop("defaults", []) if parent != "_self_"]
    merged = OmegaConf.merge(*parents, loaded)
    assert isinstance(merged, DictConfig)
    return merged


def _evidence(ledgers: Iterable[Path]) -> dict[str, Evidence]:
    """The measurements of each claim; of several the one of most seeds."""
    found: dict[str, Evidence] = {}
    for folder in ledgers:
        for row in read_json_object(folder / "ledger.json")["rows"]:
            if (measured := row["measured"]) is None:
                continue
            verdict = ", ".join(dict.fromkeys((row["verdict"], row.get("scale", row["verdict"]))))
            seeds = int(measured["n_seeds"])
            if row["id"] not in found or found[row["id"]].seeds < seeds:
                texts = printable(measured["value"]), printable(verdict)
                found[row["id"]] = Evidence(*texts, seeds, folder.absolute().name)
    return found
