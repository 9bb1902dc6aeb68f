"""Pretraining is told from longer training, and from training on the same images."""

from __future__ import annotations

import random

from alexnet2012.ledger.claims import Scale
from alexnet2012.ledger.evidence import Sweep, result_of
from alexnet2012.ledger.measurements.pretraining import pretrain_measurements
from alexnet2012.ledger.verdicts import Verdict, verdicts

HOW = (Scale.reduced, "…", "tiny")


def sweep(**errors: float) -> Sweep:
    draw = random.Random(0)
    return {
        name: {
            seed: result_of(
                {"top1_error_pct": top1 + draw.gauss(0, 0.3), "top5_error_pct": 5.0}, {}
            )
            for seed in range(10)
        }
        for name, top1 in errors.items()
    }


def verdict(runs: Sweep) -> Verdict:
    measurements = pretrain_measurements(runs, *HOW)
    return verdicts(measurements)["pretrain"][0]


def test_a_gain_over_training_equally_long_supports_the_claim() -> None:
    runs = sweep(few_classes_equal_steps=30.0, pretrained_other=28.3)
    assert verdict(runs) is Verdict.supported


def test_what_longer_training_or_the_same_images_bring_supports_nothing() -> None:
    runs = sweep(
        few_classes=33.8, few_classes_equal_steps=28.5, pretrained=26.0, pretrained_other=28.5
    )
    assert verdict(runs) not in (Verdict.supported, Verdict.in_direction)
