"""What a difference costs is what the ledger says about the ablation that makes it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from alexnet2012.config.schema import ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.referee.compare import CLASSES, compare
from alexnet2012.inference.referee.network import Network, network_of_recipe
from alexnet2012.ledger import costs as module
from alexnet2012.ledger.claims import load_claims
from alexnet2012.ledger.costs import Cost, committed, costs

ARMS = sorted(module._claims_by_arm())


@pytest.fixture(scope="module")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger in which every claim is measured; its numbers are the lengths of the claims' ids."""
    folder = tmp_path_factory.mktemp("reproduction")
    rows = [
        {
            "id": claim.id,
            "verdict": "supported",
            "scale": "measured at reduced scale",
            "measured": {"value": f"{len(claim.id)} points", "n_seeds": 8},
        }
        for claim in load_claims()
    ]
    (folder / "ledger.json").write_text(json.dumps({"rows": rows}))
    return folder


def network(arm: str) -> Network:
    recipe, model = module._changed(arm)
    config = ModelConfig(activation=model.activation, input_size=recipe.input_size)
    return network_of_recipe(recipe, CLASSES, config)


def costs_of(net: Network, ledgers: Sequence[Path] | None) -> dict[tuple[str, str], Cost | None]:
    """The cost of each difference from #145."""
    found = compare(net).differences
    pairs = zip(found, costs(net, found, ledgers), strict=True)
    return {(d.layer, d.item): cost for d, cost in pairs if "code145" in d.differs_from}


@pytest.mark.parametrize("arm", ARMS)
def test_the_network_of_an_ablation_costs_what_the_ablation_does(arm: str, ledger: Path) -> None:
    found = costs_of(network(arm), [ledger])
    assert found
    for cost in found.values():
        assert cost is not None
        assert (cost.ablation, cost.also) == (arm, ())
        assert cost.evidence is not None
        assert cost.evidence.value == f"{len(cost.claim)} points"
        assert cost.evidence.verdict == "supported, measured at reduced scale"
        assert cost.sources


def test_a_part_of_an_ablation_was_not_measured_alone(ledger: Path) -> None:
    recipe = load_recipe("code145")
    recipe.pool.size = 2
    found = costs_of(network_of_recipe(recipe, CLASSES), [ledger])
    assert len(found) == 3
    for cost in found.values():
        assert cost is not None
        assert (cost.ablation, cost.claim) == ("pool_2x2", "overlap")
        assert set(cost.also) == {"conv2 border", "conv5 border"}


def test_what_no_ablation_changes_was_not_measured(ledger: Path) -> None:
    for recipe, changes in (("paper", {}), ("code145", {"conv2": {"kernels": 300}})):
        settings: Any = load_recipe(recipe)
        for layer, values in changes.items():
            setattr(settings, layer, replace(getattr(settings, layer), **values))
        found = costs_of(network_of_recipe(settings, CLASSES), [ledger])
        assert found.pop(("conv2", "spatial norm"), None) is None or recipe == "paper"
        assert found and not any(found.values())


def test_without_a_ledger_the_claim_is_named_and_no_number(ledger: Path) -> None:
    cost = costs_of(network("no_lrn"), [])["conv1", "LRN"]
    assert cost is not None
    assert (cost.claim, cost.evidence) == ("lrn", None)
    assert cost.sources["paper"] == "−1.4 / −1.2"


def test_photographs_cost_nothing() -> None:
    names = {folder.name for folder in committed()}
    assert names and "photos" not in names
