"""The effect of pretraining on more classes.

Reads a sweep of ``conf/experiment/pretrain``: ``none`` trains on all classes, ``pretrained``
fine-tunes its layers on a few classes, and ``few_classes`` trains on those from scratch.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import How, Measurement, support_word
from alexnet2012.ledger.registry import measures
from alexnet2012.ledger.statistics import SeedMean, finished_runs
from alexnet2012.ledger.training_runs import read_summary

ALL_CLASSES, FROM_SCRATCH, PRETRAINED = ABLATIONS = "none", "few_classes", "pretrained"


def read_errors(
    directory: Path, only: Sequence[int] | None = None
) -> dict[str, dict[int, tuple[float, float]]]:
    """Top-1 and top-5 errors of the finished runs, per cent, by ablation and seed."""
    errors: dict[str, dict[int, tuple[float, float]]] = {}
    for name in ABLATIONS:
        for seed, run in finished_runs(directory, name, only).items():
            summary = read_summary(run)
            top1_top5 = summary["top1_error_pct"], summary["top5_error_pct"]
            errors.setdefault(name, {})[seed] = top1_top5
        if name not in errors:
            remedy = f"contains no finished run of ablation={name}; see conf/experiment/pretrain"
            raise ConfigError("runs", directory, remedy)
    return errors


@measures("pretrain", "imagenet2009", part="pretrain")
def pretrain_measurements(
    directory: Path, *how: *How, only: Sequence[int] | None = None
) -> list[Measurement]:
    """The gain from pretraining, and the error of the pretrained network on all classes."""
    errors = read_errors(directory, only)
    seeds = sorted(errors[FROM_SCRATCH].keys() & errors[PRETRAINED].keys())
    if not seeds:
        remedy = f"{FROM_SCRATCH} and {PRETRAINED} have no seed in common; use the same seeds"
        raise ConfigError("runs", directory, remedy)
    from_scratch, pretrained = (
        [errors[ablation][seed][0] for seed in seeds] for ablation in (FROM_SCRATCH, PRETRAINED)
    )
    gain = SeedMean.of([a - b for a, b in zip(from_scratch, pretrained, strict=True)])
    top1, top5 = map(SeedMean.of, zip(*errors[ALL_CLASSES].values(), strict=True))
    bounds = top1.interval and f" (top-1 95% {top1.interval[0]:.1f} to {top1.interval[1]:.1f})"
    return [
        Measurement(
            "pretrain",
            f"without pretraining {gain} points top-1: "
            f"{fmean(from_scratch):.2f} against {fmean(pretrained):.2f}",
            *how,
            numbers={"top1_gain_points": gain.mean},
            n_seeds=gain.n_seeds,
            interval=gain.interval,
            agrees=gain.above_zero,
            agreement_note=f"{support_word(gain.above_zero)} by {gain.n_seeds} paired seeds; the "
            "paper reports +1.7 points, with pretraining on 15 M other images",
        ),
        Measurement(
            "imagenet2009",
            f"{top1.mean:.2f} / {top5.mean:.2f}{bounds or ''} on all classes, with the sixth "
            "convolution",
            *how,
            numbers={"top1_error_pct": top1.mean},
            n_seeds=top1.n_seeds,
            interval=top1.interval,
            agreement_note="other images: the errors are not comparable",
        ),
    ]
