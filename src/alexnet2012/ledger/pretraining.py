"""What pretraining on more classes is worth: the same net on few, with it and without.

Reads a sweep of ``conf/experiment/pretrain``: ``none`` has all classes, ``pretrained`` starts on
few from its layers, ``few_classes`` from nothing. ``python -m alexnet2012.pretraining DIR`` prints
both numbers.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import fmean

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Measurement, Scale, support_word
from alexnet2012.ledger.statistics import PairedDifference, finished_runs, print_measurements
from alexnet2012.utils.metrics import mean_interval

MORE, WITHOUT, WITH = "none", "few_classes", "pretrained"


def read_errors(
    directory: Path, only: Sequence[int] | None = None
) -> dict[str, dict[int, tuple[float, float]]]:
    """Top-1 and top-5 errors of the finished runs, per cent, by ablation and seed.

    Raises:
        ConfigError: one of the three has no finished run.
    """
    found: dict[str, dict[int, tuple[float, float]]] = {}
    for arm in (MORE, WITHOUT, WITH):
        for seed, run in finished_runs(directory, arm, only).items():
            summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
            errors = summary["top1_error_pct"], summary["top5_error_pct"]
            found.setdefault(arm, {})[seed] = errors
        if arm not in found:
            remedy = f"holds no finished run of ablation={arm}; see conf/experiment/pretrain"
            raise ConfigError("runs", directory, remedy)
    return found


def pretrain_measurements(
    directory: Path,
    scale: Scale,
    caveat: str | None,
    command: str,
    only: Sequence[int] | None = None,
) -> list[Measurement]:
    """The gain from pretraining, and the error of the net that was pretrained."""
    errors = read_errors(directory, only)
    seeds = sorted(errors[WITHOUT].keys() & errors[WITH].keys())
    if not seeds:
        raise ConfigError("runs", directory, f"{WITHOUT} and {WITH} have no seed in common")
    without, pretrained = ([errors[arm][seed][0] for seed in seeds] for arm in (WITHOUT, WITH))
    gain = PairedDifference.of([a - b for a, b in zip(without, pretrained, strict=True)])
    more = list(errors[MORE].values())
    top1, low, high = mean_interval([first for first, _ in more])
    interval = None if low is None or high is None else (low, high)
    around = "" if interval is None else f" (top-1 95% {low:.1f} to {high:.1f})"
    return [
        Measurement(
            claim="pretrain",
            value=f"without pretraining {gain} points top-1: "
            f"{fmean(without):.2f} against {fmean(pretrained):.2f}",
            scale=scale,
            command=command,
            numbers={"top1_gain_points": gain.mean},
            caveat=caveat,
            n_seeds=gain.n_seeds,
            interval=gain.interval,
            agrees=gain.above_zero,
            agreement_note=f"{support_word(gain.above_zero)} by {gain.n_seeds} paired seeds; the "
            "paper has +1.7 points, the pretraining on 15 M other pictures",
        ),
        Measurement(
            claim="imagenet2009",
            value=f"{top1:.2f} / {fmean(top5 for _, top5 in more):.2f}{around} on all classes, "
            "with the sixth convolution",
            scale=scale,
            command=command,
            numbers={"top1_error_pct": top1},
            caveat=caveat,
            n_seeds=len(more),
            interval=interval,
            agreement_note="other pictures: the two cannot be compared",
        ),
    ]


def main() -> None:
    description = "What pretraining on more classes is worth, from a sweep."
    print_measurements("alexnet2012.ledger.pretraining", description, pretrain_measurements)


if __name__ == "__main__":
    main()
