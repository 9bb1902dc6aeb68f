"""Verdicts follow from the measurements of all claims together."""

from __future__ import annotations

import numpy as np
import pytest
from made import made_sweep

from alexnet2012.ledger.claims import Measurement, Scale, ablations_of, load_claims
from alexnet2012.ledger.evidence import Sweep, result_of
from alexnet2012.ledger.measurements.ablations import BASELINE, effect_measurements
from alexnet2012.ledger.statistics import Design, Estimate, between_arms
from alexnet2012.ledger.verdicts import Verdict, columns, ledger, verdicts

HOW = (Scale.reduced, "…", "tiny")
ARMS = ablations_of("ablations")
OF_CLAIM = {
    c.id: c.effect
    for c in load_claims()
    if c.effect and c.effect.sweep == "ablations" and c.effect.metric != "gap_points"
}
NEVER = {Verdict.inconclusive, Verdict.contradicted}
SHOWN = {Verdict.supported, Verdict.in_direction}


def judged(sweep: Sweep) -> dict[str, Verdict]:
    return {claim: v for claim, (v, _) in verdicts(effect_measurements(sweep, *HOW)).items()}


def measured(
    mean: float, se: float, claimed: float | None = 1.4, scale: Scale = Scale.reduced
) -> Measurement:
    """A claim whose estimate has this standard error, from forty seeds and as many."""
    sd = se * np.sqrt(20)
    estimate = Estimate("no_lrn", "top1_error_pct", mean, Design(40, sd, 40, sd), 0, claimed)
    return Measurement("lrn", "…", scale, "…", "tiny", n_seeds=40, estimates=(estimate,))


@pytest.mark.parametrize(
    ("mean", "se", "claimed", "verdict"),
    [
        (1.3, 0.3, 1.4, Verdict.supported),
        (1.3, 0.3, None, Verdict.supported),
        (9.0, 0.3, 1.4, Verdict.in_direction),
        (0.5, 0.1, 1.4, Verdict.in_direction),
        (0.0, 0.2, 1.4, Verdict.contradicted),
        (-3.0, 0.3, 1.4, Verdict.contradicted),
        (-3.0, 0.3, None, Verdict.contradicted),
        (0.5, 0.3, 1.4, Verdict.inconclusive),  # neither 0 nor half of 1.4 is excluded
        (-3.0, 0.8, 1.4, Verdict.inconclusive),  # half of 1.4 is, with too little power for 1.4
    ],
)
def test_a_verdict_needs_the_interval_the_size_and_the_power(
    mean: float, se: float, claimed: float | None, verdict: Verdict
) -> None:
    found, test = verdicts([measured(mean, se, claimed)])["lrn"]
    assert found is verdict
    assert (test.power or 0) >= 0.8 or found is not Verdict.contradicted
    on_photographs = measured(mean, se, claimed).on_stand_in()
    assert verdicts([on_photographs])["lrn"][0] is Verdict.stand_in


def test_an_inconclusive_verdict_says_how_many_seeds_80_percent_power_takes() -> None:
    (row,) = (r for r in ledger([measured(0.5, 0.8)], {})["rows"] if r["measured"])
    needed = row["test"]["seeds_needed"]
    assert row["verdict"] == "inconclusive"
    assert row["test"]["power"] < 0.8
    assert needed > 40
    assert columns(row)["power"].endswith(f"; 80% takes {needed} seeds")
    assert (columns(row)["claimed"], columns(row)["size inside"]) == ("+1.40", "yes")


def test_a_p_value_that_is_enough_alone_is_not_enough_among_many() -> None:
    one = measured(1.3, 0.55)  # p = 0.02
    assert verdicts([one])["lrn"][0] is Verdict.supported
    others = [
        Measurement(claim, "…", *HOW, agrees=None, p_value=0.9)
        for claim in ("fig3", "fig4", "relu", "decay", "dropout", "overlap")
    ]
    found, test = verdicts([one, *others])["lrn"]
    assert found is Verdict.inconclusive
    assert test.p is not None
    assert test.p_adjusted == pytest.approx(7 * test.p)


def test_real_effects_are_supported_and_size_is_told_apart() -> None:
    # Each arm has the claimed size or, without one, 3 points; lrn has far more than it claims.
    sizes = {arm: e.claimed_points or 3.0 for e in OF_CLAIM.values() for arm in e.arms}
    effects = {**sizes, "no_lrn": 8.0, "pool_2x2": 3.0}
    found = judged(made_sweep(effects, seeds=20, control=40, images=4000))
    errors = {claim for claim, effect in OF_CLAIM.items() if effect.metric != "gap_points"}
    assert {claim for claim, verdict in found.items() if verdict in SHOWN} == errors
    assert found["lrn"] is Verdict.in_direction
    assert found["dropout"] is Verdict.supported  # of no claimed size


def test_relabelled_runs_support_nothing() -> None:
    """The runs of effects that are found, dealt to the arms by chance."""
    real = made_sweep(dict.fromkeys(ARMS, 2.0))
    assert set(judged(real).values()) <= SHOWN | {Verdict.inconclusive}
    assert judged(real)["lrn"] in SHOWN
    supported = 0
    for number in range(20):
        draw = np.random.default_rng(number)
        pool = [run for by_seed in real.values() for run in by_seed.values()]
        deal = iter(draw.permutation(len(pool)))
        dealt = {arm: {s: pool[next(deal)] for s in runs} for arm, runs in real.items()}
        supported += bool(set(judged(dealt).values()) & SHOWN)
    assert supported <= 3  # of 20 families of claims, each at 5%


def of_seeds(**arms: list[float]) -> Sweep:
    """Runs that kept no images: top-1 errors by arm and seed."""
    return {
        arm: {
            seed: result_of(
                {"top1_error_pct": error, "top5_error_pct": 9, "train_error_pct": 9}, {}
            )
            for seed, error in enumerate(errors)
        }
        for arm, errors in arms.items()
    }


NONE = [53.9, 51.2, 57.3, 55.8, 54.4, 52.6, 56.1, 54.7]


def test_a_constant_factor_in_place_of_normalisation_does_not_support_it() -> None:
    """α = 0 keeps the factor 2^-¾, which is nearly all that removing the layer takes away."""
    without = of_seeds(none=NONE, no_lrn=[70.2, 68.1, 73.4, 72.0])
    assert judged(without)["lrn"] is Verdict.in_direction
    alpha0 = of_seeds(none=NONE, no_lrn=[56.9, 53.8, 59.3, 55.6])
    assert judged(alpha0)["lrn"] in NEVER


def gain(from_scratch: list[float], pretrained: list[float]) -> Verdict:
    mean, design = between_arms(from_scratch, pretrained)
    estimate = Estimate("few_classes", "top1_error_pct", mean, design, 0, 1.7)
    return verdicts([Measurement("pretrain", "…", *HOW, estimates=(estimate,))])["pretrain"][0]


def test_equal_steps_from_scratch_do_not_support_pretraining() -> None:
    pretrained = [29.6, 28.7, 29.9, 28.6]
    assert gain([34.1, 33.2, 34.5, 33.4], pretrained) in SHOWN  # half as many steps
    assert gain([28.9, 27.8, 29.2, 28.1], pretrained) in NEVER


def test_too_few_seeds_are_inconclusive_without_interval_or_power() -> None:
    (m,) = effect_measurements(of_seeds(none=[40.0, 41.0], no_lrn=[60.0, 61.0]), *HOW)
    verdict, test = verdicts([m])["lrn"]
    assert (verdict, m.interval, test.p, test.power) == (Verdict.inconclusive, None, None, None)


def test_every_arm_of_a_claim_must_show_the_effect() -> None:
    arms = dict.fromkeys(OF_CLAIM["depth"].arms, 2.0)
    more = {"seeds": 20, "control": 40}
    assert judged(made_sweep(arms, **more))["depth"] in SHOWN
    assert judged(made_sweep({**arms, "no_conv4": 0.0}, **more))["depth"] in NEVER
    assert judged(made_sweep({**arms, "no_conv4": -3.0}, **more))["depth"] is Verdict.contradicted


def test_counts_agree_or_differ_and_old_verdicts_are_not_recomputable() -> None:
    count = Measurement("size", "60,965,224", Scale.exact, "…", agrees=False)
    old = Measurement("lrn", "+16.39", *HOW, n_seeds=5, interval=(12.9, 19.9), agrees=True)
    rows = {row["id"]: row for row in ledger([count, old], {})["rows"]}
    assert (rows["size"]["scale"], rows["size"]["verdict"]) == ("exact", "differs")
    assert rows["lrn"]["verdict"] == "not recomputable"
    assert rows["lrn"]["scale"] == "measured at reduced scale"
    assert rows["dropout"]["verdict"] == rows["dropout"]["scale"] == "not measured here"


def test_the_seeds_of_the_baseline_all_count() -> None:
    few, many = (made_sweep({"no_lrn": 1.4}, seeds=6, control=n) for n in (6, 30))
    errors = [
        effect_measurements(sweep, *HOW)[0].estimates[0].design.standard_error
        for sweep in (few, many)
    ]
    assert errors[1] < errors[0]
    (m,) = effect_measurements(many, *HOW)
    (row,) = (r for r in ledger([m], {})["rows"] if r["measured"])
    assert columns(row)["seeds"] == "6 and 30"
    assert len(many[BASELINE]) == 30
