"""The effect of pretraining on other classes.

Reads a sweep of ``conf/experiment/pretrain``. ``pretrained_other`` is pretrained on classes that it
is not fine-tuned on; ``few_classes_equal_steps`` trains from scratch for as many steps as both
trainings together. ``none`` trains on all classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import How, Measurement, stand_in
from alexnet2012.ledger.evidence import Sweep, read_run
from alexnet2012.ledger.measurements.ablations import estimate
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.statistics import SeedMean, finished_runs

ALL_CLASSES = "none"
FROM_SCRATCH, PRETRAINED = COMPARED = "few_classes_equal_steps", "pretrained_other"
# Differences to FROM_SCRATCH that show how much of a gain is longer training, or the same images.
ABLATIONS = (*COMPARED, ALL_CLASSES, "few_classes", "pretrained")
CLAIMED_POINTS = 1.7  # 40.7 against 39.0; table 2


def read_pretraining(directory: Path, only: Sequence[int] | None = None) -> Sweep:
    """The finished runs by ablation and seed; ``only`` selects seeds."""
    runs: Sweep = {}
    for name in ABLATIONS:
        found = finished_runs(directory, name, only)
        if not found and name not in COMPARED:
            continue
        if not found:
            remedy = f"contains no finished run of ablation={name}; see conf/experiment/pretrain"
            raise ConfigError("runs", directory, remedy)
        runs[name] = {seed: read_run(run) for seed, run in found.items()}
    return runs


@measures("pretrain", "imagenet2009", part="pretrain", sweep="pretrain")
def pretrain_measurements(
    evidence: Path | Sweep, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """The gain from pretraining, and the error of the network trained on all classes."""
    runs = read_pretraining(evidence, only) if isinstance(evidence, Path) else evidence
    gain = estimate(runs, FROM_SCRATCH, "top1_error_pct", control=PRETRAINED)
    gain = replace(gain, claimed=CLAIMED_POINTS)
    means = {
        name: SeedMean.of([run.errors["top1_error_pct"] for run in by_seed.values()])
        for name, by_seed in runs.items()
    }
    others = (name for name in ("few_classes", "pretrained") if name in means)
    also = "".join(f"; {name} {means[name].mean:.2f}" for name in others)
    measurements = [
        Measurement(
            "pretrain",
            f"without pretraining {gain} points top-1, trained equally long: "
            f"{means[FROM_SCRATCH].mean:.2f} against {means[PRETRAINED].mean:.2f}{also}",
            *how,
            numbers={"top1_gain_points": gain.mean},
            n_seeds=min(len(runs[name]) for name in COMPARED),
            interval=gain.interval,
            agreement_note="pretrained on classes that are not those of the target; the paper "
            "reports +1.7 points, with pretraining on 15 M other images",
            estimates=(gain,),
        )
    ]
    if ALL_CLASSES in runs:
        top1 = means[ALL_CLASSES]
        top5 = SeedMean.of([run.errors["top5_error_pct"] for run in runs[ALL_CLASSES].values()])
        low_high = top1.interval and "{:.1f} to {:.1f}".format(*top1.interval)
        bounds = low_high and f" (top-1, 95% interval {low_high})"
        measurements.append(
            Measurement(
                "imagenet2009",
                f"{top1.mean:.2f} / {top5.mean:.2f}{bounds or ''} on all classes, with the sixth "
                "convolution",
                *stand_in(*how),
                numbers={"top1_error_pct": top1.mean},
                n_seeds=top1.n_seeds,
                interval=top1.interval,
                agreement_note="other images: the errors are not comparable",
            )
        )
    return measurements
