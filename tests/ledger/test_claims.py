"""The ledger's claims against their sources, verdicts, and the registry of measuring functions."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import fields, is_dataclass, replace
from importlib import resources
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from alexnet2012.config.schema import EvaluateConfig, PrepareConfig, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.ledger.claims import (
    Claim,
    Kind,
    Measurement,
    Scale,
    load_claims,
    load_differences,
    write_json,
)
from alexnet2012.ledger.measurements.architecture import (
    architecture_measurements,
    layers_measurement,
    memory_measurement,
)
from alexnet2012.ledger.registry import Measure, all_measures, measure, measures
from alexnet2012.ledger.statistics import Design, Estimate
from alexnet2012.ledger.verdicts import check_scale, ledger
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import count_layers

CLAIMS = {claim.id: claim for claim in load_claims()}


def measured(claim: str = "size", scale: Scale = Scale.exact, **more: Any) -> Measurement:
    caveat = "sixteen photographs" if scale is Scale.reduced else None
    fields = {"value": "60,965,224", "command": "make reproduce", "caveat": caveat, **more}
    return Measurement(claim=claim, scale=scale, **fields)


NUMBERS = [
    ("data", "paper", "1.2 50,000 150,000 1,000"), ("data", "article", "1.3 1,000"),
    ("size", "paper", "60 650,000"), ("size", "article", "60 500,000"),
    ("fig2", "paper", "253,440"), ("conv-share", "paper", "1"), ("memory", "paper", "580 3"),
    ("lsvrc2010", "paper", "37.5 17.0"), ("lsvrc2010", "code", "37.47 17.00"),
    ("lsvrc2010", "article", "39.7 18.9"), ("lsvrc2010-1crop", "paper", "39.0 18.3"),
    ("lsvrc2010-1crop", "code", "39.02 18.30"), ("table1", "paper", "47.1 28.2 45.7 25.7"),
    ("table2", "paper", "40.7 18.2 38.1 16.4 39.0 16.6 36.7 15.4 15.3 26.2"),
    ("table2", "code", "40.66 18.21 38.99 16.62"), ("table2", "article", "15.3 26.2"),
    ("pretrain", "paper", "15 22,000"), ("pretrain", "code", "146"),
    ("imagenet2009", "paper", "67.4 40.9"), ("relu", "paper", "6"), ("relu", "article", "6"),
    ("two-gpu", "paper", "1.7 1.2"), ("two-gpu", "code", "39.17 18.23 1.70 1.23"),
    ("lrn", "paper", "1.4 1.2"), ("lrn", "code", "42.03 19.36 1.37 1.15"),
    ("lrn-cifar10", "paper", "13 11"), ("lrn-cifar10", "code", "13 11"),
    ("overlap-cifar10", "paper", "0.4 0.3"),
    ("overlap", "paper", "0.4 0.3"), ("overlap", "code", "41.06 18.51 0.39 0.30"),
    ("overlap", "article", "0.4 0.3"), ("augment", "paper", "2,048"), ("lighting", "paper", "0.1"),
    ("lighting", "code", "12.2 3.7 2.0"), ("dropout", "paper", "0.5"),
    ("dropout", "article", "0.5"), ("dropout-iterations", "article", "2"),
    ("decay", "paper", "0.0005"), ("decay", "article", "0.0005"),
    ("recipe", "paper", "128 0.9 0.01 3 90"), ("recipe", "article", "90 0.01 0.9 0.0005 3"),
    ("time", "paper", "5–6 580 3"), ("time", "article", "5–6"), ("depth", "paper", "2"),
    ("fig3", "paper", "96"), ("fig4", "paper", "6 4,096"), ("fig4", "code", "16"),
    ("crosslinks", "code", "150 41.83 19.33 1.16 1.12"),
    ("crosslinks-wide", "code", "150 41.83 19.33 1.16 1.12"), ("layers", "paper", "5 3"),
    ("layers", "article", "3 2"), ("val-test", "paper", "0.1"),
    ("fig2-layers", "paper", "150,528 186,624 64,896 43,264 4,096 1,000"),
    ("imagenet2009-best", "paper", "78.1 60.9"), ("imagenet2009", "code", "69.42 43.73"),
    ("dropout-iterations", "paper", "2"), ("bias-ones", "paper", "1 0"),
    ("decay-regulariser", "paper", "0.0005"),
]  # fmt: skip


def test_no_claim_of_the_sources_is_missing() -> None:
    assert {claim for claim, _, _ in NUMBERS} <= CLAIMS.keys()
    silent = {"two-gpu-time", "overlap-overfit", "augment-overfit", "augment-free"}
    silent |= {"dropout-overfit", "fig4-pixels"}  # claims in words alone
    assert {claim for claim, _, _ in NUMBERS} | silent == CLAIMS.keys()


@pytest.mark.parametrize(("claim", "source", "numbers"), NUMBERS)
def test_a_source_has_its_numbers(claim: str, source: str, numbers: str) -> None:
    value = getattr(CLAIMS[claim], source).value
    for number in numbers.split():
        assert re.search(rf"(?<![\d.,]){re.escape(number)}(?!\d|[.,]\d)", value), (number, value)


def test_a_source_that_does_not_mention_a_claim_is_null() -> None:
    silent = {
        (c.id, s) for c in load_claims() for s in ("paper", "code", "article") if not getattr(c, s)
    }
    assert ("crosslinks", "paper") in silent
    assert ("fig2", "code") in silent
    assert ("lrn", "article") in silent
    assert ("lsvrc2010", "article") not in silent


@pytest.mark.parametrize(
    ("claim", "words"),
    [("size", "500,000"), ("fig2", "290,400"), ("conv-share", "1.45%"), ("lsvrc2010", "39.7"),
     ("fig2-layers", "622,312"), ("data", "2010 万"), ("layers", "two fully connected"),
     ("dropout", "inputs of the first two"), ("dropout", "in place of regularisation"),
     ("overlap", "smaller"), ("overlap", "never turned off"), ("lrn", "#167"),
     ("lighting", "eigenvalues"), ("augment", "33"), ("lrn", "second normalisation")],
)  # fmt: skip
def test_contradictions_of_the_sources_are_described(claim: str, words: str) -> None:
    assert words in (CLAIMS[claim].disagreement or "")


def test_sentences_are_whole() -> None:
    """An unquoted ` #` in YAML silently cuts a sentence off."""
    for claim in load_claims():
        assert claim.sentence.endswith("."), claim.id
        assert claim.disagreement is None or claim.disagreement.endswith("."), claim.id


def test_a_title_names_no_images_because_others_may_stand_in_for_them() -> None:
    for claim in load_claims():
        if claim.kind is not Kind.published:
            named = re.search(r"ImageNet|ILSVRC|CIFAR|Fall|20\d\d", claim.title)
            assert named is None, claim.title


def test_the_paper_reports_neither_images_per_s_nor_neurons_that_add_up() -> None:
    assert "images/s" not in "".join(c.paper.value for c in load_claims() if c.paper)
    counts = count_layers(AlexNet("paper"))
    how = Scale.exact, "make reproduce", None
    found = {m.claim: m for m in architecture_measurements(counts, *how)}
    assert found["size"].agrees is False
    assert "659,272 neurons round to 660,000, not to 650,000" in str(found["size"].agreement_note)
    assert found["fig2-layers"].agrees is True
    assert "622,312 neurons" in str(found["fig2-layers"].agreement_note)
    assert layers_measurement(counts, *how).agrees is True
    rounder = [replace(counts[0], neurons=281_128), *counts[1:]]
    assert {m.claim: m.agrees for m in architecture_measurements(rounder, *how)}["size"] is True


def setting_exists(key: str, schema: type) -> bool:
    """Walk `recipe.conv1.lrn` through the configuration's dataclasses."""
    kind: Any = schema
    for name in key.split("."):
        if not is_dataclass(kind) or name not in {f.name for f in fields(kind)}:
            return False
        kind = get_type_hints(kind)[name]
    return True


def test_every_command_sets_only_what_exists() -> None:
    schemas = {"train": TrainConfig, "evaluate": EvaluateConfig, "prepare": PrepareConfig}
    conf = resources.files("alexnet2012.conf")
    checked = 0
    for line in "\n".join(c.command for c in load_claims() if c.command).splitlines():
        match = re.fullmatch(r"python -m alexnet2012\.(train|evaluate|prepare)(?: -m)? (.*)", line)
        if match is None:
            assert line.startswith(("make reproduce", "python -m alexnet2012.predict ")), line
            continue
        for override in match[2].split(" "):
            key, _, value = override.partition("=")
            if match[1] == "train" and (conf / key).is_dir():
                for choice in value.split(","):
                    assert (conf / key / f"{choice}.yaml").is_file(), override
            else:
                assert setting_exists(key, schemas[match[1]]), override
            checked += 1
    assert checked > 40


def test_a_difference_names_settings_that_the_two_recipes_set_differently() -> None:
    paper, code = load_recipe("paper"), load_recipe("code145")
    for difference in load_differences():
        for key in difference.settings:
            assert setting_exists(key, TrainConfig), key
            if key.startswith("recipe.") and difference.code != "the same":
                values = []
                for value in (paper, code):
                    for name in key.split(".")[1:]:
                        value = getattr(value, name)
                    values.append(value)
                unspecified = "not specified" in difference.paper
                assert values[0] != values[1] or unspecified, key


def test_how_a_claim_was_measured_is_not_its_verdict() -> None:
    counted = measured(agrees=True)
    rows = ledger([counted, measured("relu", Scale.reduced), measured("decay", Scale.full)], {})
    found = {row["id"]: (row["scale"], row["verdict"]) for row in rows["rows"]}
    assert found["size"] == ("exact", "agrees")
    assert found["decay"] == ("measured at full scale", "inconclusive")
    assert found["relu"] == ("measured at reduced scale", "inconclusive")
    assert found["lsvrc2010"] == ("not measured here", "not measured here")
    assert [scale for scale, _ in found.values()].count("not measured here") == len(CLAIMS) - 3


def test_every_claim_names_what_full_scale_needs() -> None:
    for claim in load_claims():
        if claim.kind is not Kind.count:
            assert claim.needs, claim.id
    published = {claim.id for claim in load_claims() if claim.kind is Kind.published}
    assert {claim.id for claim in load_claims() if claim.command is None} == published


def test_one_tower_fits_in_three_gigabytes_unless_its_layers_grow() -> None:
    how = Scale.exact, "make reproduce", None
    counts = count_layers(AlexNet("paper"))
    found = memory_measurement(counts, *how)
    one, both = found.numbers["one_tower_bytes"], found.numbers["both_towers_bytes"]
    weights = 3 * 4 * 60_965_224  # with momenta and gradients, in float32
    # Saved for each image by both towers: fp32 maps (image; conv1 and conv2: before and after LRN;
    # conv3 to conv5; the inputs of fc6 to fc8; logits), then int64 indices of three pools, byte
    # masks of two dropouts, and a label. A tower also saves the peer's half of what it gathers.
    maps = 3 * 224**2 + 2 * 96 * 55**2 + 96 * 27**2 + 2 * 256 * 27**2 + 256 * 13**2
    maps += (2 * 384 + 256) * 13**2 + 9216 + 4 * 4096 + 1000
    saved = 4 * maps + 8 * (96 * 27**2 + 256 * 13**2 + 256 * 6**2) + 2 * 4096 + 8
    assert both == weights + 128 * (saved + 16 * 4096)  # and dropout's random numbers
    assert both / 2 < one < both
    assert found.agrees is True
    fc6 = next(layer for layer in counts if layer.name == "fc6")
    grown = [
        replace(layer, weights=20 * layer.weights) if layer is fc6 else layer for layer in counts
    ]
    assert memory_measurement(grown, *how).agrees is False


def test_an_error_rate_is_never_exact_and_a_published_result_is_never_measured() -> None:
    with pytest.raises(ValueError, match="lsvrc2010: scale=exact"):
        check_scale(CLAIMS["lsvrc2010"], measured("lsvrc2010"))
    with pytest.raises(ValueError, match="table1"):
        check_scale(CLAIMS["table1"], measured("table1", Scale.full))


def test_an_inconsistent_measurement_is_refused() -> None:
    with pytest.raises(ValueError, match="relu: a reduced measurement must carry a caveat"):
        Measurement("relu", "6", Scale.reduced, "make reproduce")
    with pytest.raises(ValueError, match=r"interval=\(2, 1\)"):
        measured(interval=(2, 1))
    with pytest.raises(ValueError, match="n_seeds=0"):
        measured(n_seeds=0)


def test_unknown_and_doubled_claims_are_refused() -> None:
    with pytest.raises(ValueError, match="claim=fig5: not in claims"):
        ledger([measured("fig5")], {})
    with pytest.raises(ValueError, match="claim=size: measured twice"):
        ledger([measured(), measured()], {})


def test_rows_are_identical_in_two_runs_with_one_seed() -> None:
    one = measured("time", Scale.reduced, timings={"images_per_s": 40.0}, run_dirs=["runs/a"])
    two = replace(one, timings={"images_per_s": 44.0}, run_dirs=["runs/b"])
    first, second = ledger([one], {"date": "monday"}), ledger([two], {"date": "friday"})
    assert first["rows"] == second["rows"]
    assert first["timings"] == {"time": {"images_per_s": 40.0}}
    assert first["experiments"] != second["experiments"]


def test_a_measurement_survives_json() -> None:
    estimate = Estimate("tanh", "ratio", 2.0, Design(3, 0.1, 3, 0.2), claimed=6.0)
    more = {"interval": (1.5, 2.5), "numbers": {"ratio": 2.0}, "estimates": (estimate,)}
    one = measured("relu", Scale.reduced, **more)
    assert Measurement.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_json_has_sorted_keys_and_null_for_nan(tmp_path: Path) -> None:
    write_json({"b": math.nan, "a": [math.inf, 1.5], "é": True}, tmp_path / "x.json")
    text = (tmp_path / "x.json").read_text(encoding="utf-8")
    assert json.loads(text) == {"a": [None, 1.5], "b": None, "é": True}
    assert "NaN" not in text
    assert text.index('"a"') < text.index('"b"')
    assert "é" in text


def invented(**changed: Any) -> Claim:
    return replace(CLAIMS["fig4"], id="fig9", **changed)


def check_coverage(claims: Iterable[Claim], entries: Iterable[Measure]) -> None:
    """Check that each claim is measured by one function, only quoted, or says why it is not.

    A sweep's measurement replaces that of the single network of part ``reduced``.
    """
    by_claim: dict[str, list[Measure]] = {}
    for entry in entries:
        for claim_id in entry.claims:
            by_claim.setdefault(claim_id, []).append(entry)
    for claim in claims:
        measuring = by_claim.get(claim.id, [])
        names = [entry.name for entry in measuring]
        if claim.kind is Kind.published and names:
            raise ValueError(f"{claim.id}: kind=published: only quoted, but {names[0]} measures it")
        if claim.unmeasured and names:
            raise ValueError(f"{claim.id}: {names[0]} measures it; remove `unmeasured`")
        if claim.kind is not Kind.published and not names and not claim.unmeasured:
            raise ValueError(
                f'{claim.id}: no function measures it; declare one with @measures("{claim.id}", …) '
                "or set kind: published"
            )
        in_sweeps = [entry for entry in measuring if entry.part != "reduced"]
        if max(len(in_sweeps), len(measuring) - len(in_sweeps)) > 1:
            raise ValueError(f"{claim.id}: measured by {' and '.join(names)}; keep one")


def test_every_claim_is_measured_by_one_function_or_quoted_or_says_why_not() -> None:
    check_coverage(load_claims(), all_measures())


def test_a_claim_without_a_measuring_function_is_named() -> None:
    with pytest.raises(ValueError, match="fig9: no function measures it"):
        check_coverage([*load_claims(), invented()], all_measures())
    check_coverage([*load_claims(), invented(kind=Kind.published)], all_measures())
    check_coverage([*load_claims(), invented(unmeasured="no data")], all_measures())


def test_a_measuring_function_of_an_unknown_claim_is_named() -> None:
    def figure9(*_: object) -> Measurement:
        return measured()

    with pytest.raises(ValueError, match=r"figure9: measures fig9: not in claims\.yaml"):
        measures("fig9", part="audit")(figure9)
    assert figure9 not in [entry.function for entry in all_measures()]


def test_a_claim_that_is_measured_twice_or_quoted_and_measured_is_named() -> None:
    entries = all_measures()
    again = Measure(measured, ("size",), "audit", evaluates=False)
    with pytest.raises(ValueError, match=r"size: measured by .*architecture_measurements and "):
        check_coverage(load_claims(), [*entries, again])
    reason = Measure(measured, ("bias-ones",), "audit", False)
    with pytest.raises(ValueError, match=r"bias-ones: .* measures it; remove `unmeasured`"):
        check_coverage(load_claims(), [*entries, reason])
    quoted = Measure(measured, ("table1",), "audit", False)
    with pytest.raises(ValueError, match="table1: kind=published"):
        check_coverage(load_claims(), [*entries, quoted])


def test_a_function_that_returns_another_claim_than_it_declares_is_named(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wrong = Measure(lambda *_: measured("fig2"), ("size",), "nothing", False)
    monkeypatch.setattr("alexnet2012.ledger.registry._MEASURES", {("wrong", "nothing"): wrong})
    with pytest.raises(ValueError, match="returned a measurement of fig2"):
        measure("nothing", None, Scale.exact, "…", None)
