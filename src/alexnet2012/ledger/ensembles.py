"""What nets of several seeds show: ten views against one, an ensemble against one, and colours.

Reads the trained nets of a sweep of ``conf/experiment/effects``: ``none`` has the towers of the
paper, ``one_gpu`` has none. ``python -m alexnet2012.seeds DIR`` prints what they say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean

from torch import Tensor

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger.ablations import BASE
from alexnet2012.ledger.claims import Measurement, Scale
from alexnet2012.ledger.measurements import colour_share
from alexnet2012.ledger.statistics import PairedDifference, finished_runs, print_measurements
from alexnet2012.utils.metrics import jackknife_interval

WITHOUT_TOWERS = "one_gpu"


@dataclass(frozen=True)
class Pair:
    """Top-1 and top-5 errors, per cent."""

    top1: float
    top5: float

    def __str__(self) -> str:
        return f"{self.top1:.2f} / {self.top5:.2f}"


def errors(runs: Sequence[Path], views: int) -> Pair:
    """Errors of the nets' averaged probabilities on the validation pictures."""
    checkpoint = [str(run) for run in runs]
    found = evaluate_checkpoints(EvaluateConfig(checkpoint=checkpoint, views=views))
    return Pair(found.top1_error_pct, found.top5_error_pct)


def views_measurement(
    one: Sequence[Pair], ten: Sequence[Pair], scale: Scale, caveat: str | None, command: str
) -> Measurement:
    """One view against ten, of the same nets."""
    gain = PairedDifference.of([a.top1 - b.top1 for a, b in zip(one, ten, strict=True)])
    return Measurement(
        claim="lsvrc2010-1crop",
        value=f"one view costs {gain} points top-1: {_mean(one)} with 1 view, {_mean(ten)} with 10",
        scale=scale,
        command=command,
        numbers={"top1_gain_points": gain.mean},
        caveat=caveat,
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="whether one view errs more; the paper has +1.5 points",
    )


def ensemble_measurement(
    alone: Sequence[Pair],
    together: Pair,
    without: Sequence[Pair],
    scale: Scale,
    caveat: str | None,
    command: str,
) -> Measurement:
    """Nets alone against the average of their probabilities.

    Args:
        without: the average of all but one, each left out in turn: all seeds share in the one
            ensemble, so the spread of its gain is that of leaving them out.
    """
    n = len(alone)
    mean = fmean(net.top1 for net in alone)
    others = [(n * mean - net.top1) / (n - 1) for net in alone]
    points = mean - together.top1
    left_out = [a - b.top1 for a, b in zip(others, without, strict=True)]
    gain = PairedDifference(points, jackknife_interval(points, left_out), n)
    return Measurement(
        claim="table2",
        value=f"a net alone errs {gain} points more than {len(alone)} averaged: "
        f"{_mean(alone)} against {together}",
        scale=scale,
        command=command,
        numbers={"top1_gain_points": gain.mean, "nets": len(alone)},
        caveat=caveat,
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="whether an average of nets errs less than one of them; the paper has 2.6 "
        "points for five",
    )


def colour_measurement(
    split: Sequence[Tensor],
    whole: Sequence[Tensor],
    scale: Scale,
    caveat: str | None,
    command: str,
) -> Measurement:
    """How far the towers' first kernels part in colour, against halves of a net without towers.

    Args:
        split: conv1 of nets with towers, a seed each, [K, 3, h, w], tower 0's rows first.
        whole: the same of nets without.
    """
    with_towers, without = ([_parted(kernels) for kernels in nets] for nets in (split, whole))
    gain = PairedDifference.of([a - b for a, b in zip(with_towers, without, strict=True)])
    return Measurement(
        claim="fig3",
        value=f"with towers their shares of colour are {fmean(with_towers):.1f} points apart, "
        f"halves of a net without {fmean(without):.1f}: {gain} points more",
        scale=scale,
        command=command,
        numbers={
            "apart_with_towers_points": fmean(with_towers),
            "apart_without_points": fmean(without),
            "difference_points": gain.mean,
        },
        caveat=caveat,
        n_seeds=gain.n_seeds,
        interval=gain.interval,
        agrees=gain.above_zero,
        agreement_note="whether towers part more than halves do; a share of colour is a kernel's "
        "energy off the grey axis, mean over a tower",
    )


def seed_measurements(
    directory: Path,
    scale: Scale,
    caveat: str | None,
    command: str,
    only: Sequence[int] | None = None,
) -> list[Measurement]:
    """All of the above from the nets of a sweep, of all seeds or ``only`` of some.

    An ensemble takes two seeds.

    Raises:
        ConfigError: it has no seed of ``none``.
    """
    runs = finished_runs(directory, BASE, only)
    if not runs:
        raise ConfigError("runs", directory, f"holds no finished run of ablation={BASE}")
    one, ten = ([errors([run], views) for run in runs.values()] for views in (1, 10))
    found = [views_measurement(one, ten, scale, caveat, command)]
    if len(runs) > 1:
        nets = list(runs.values())
        together = errors(nets, 10)
        others = [errors([net for net in nets if net is not left], 10) for left in nets]
        found.append(ensemble_measurement(ten, together, others, scale, caveat, command))
    without = finished_runs(directory, WITHOUT_TOWERS, only)
    seeds = sorted(runs.keys() & without.keys())
    if seeds:
        split, whole = ([_conv1(arm[seed]) for seed in seeds] for arm in (runs, without))
        found.append(colour_measurement(split, whole, scale, caveat, command))
    return found


def _conv1(run: Path) -> Tensor:
    model = load_trained(run).model
    return model.layers()["conv1"].weight.detach()


def _parted(kernels: Tensor) -> float:
    """How far two halves of the kernels are apart in colour: points of energy off the grey axis."""
    first, second = (100 * colour_share(half) for half in kernels.chunk(2))
    return abs(first - second)


def _mean(pairs: Sequence[Pair]) -> Pair:
    return Pair(fmean(pair.top1 for pair in pairs), fmean(pair.top5 for pair in pairs))


def main() -> None:
    description = "Views, ensembles and colours, from the nets of a sweep of effects."
    print_measurements("alexnet2012.ledger.ensembles", description, seed_measurements)


if __name__ == "__main__":
    main()
