"""Figure 3 of the paper: one tower's first kernels are grey, the other's coloured.

If the towers were alike, any division of the kernels into two halves would do as well as that by
towers. A permutation test divides them at random; one network is enough for it.

Shapes: R networks, K kernels per tower.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor

from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger.claims import How, Measurement
from alexnet2012.ledger.measurements.ensembles import baseline_runs
from alexnet2012.ledger.measurements.permutation import Array, gaps_of_rearranged, mean_gap_p
from alexnet2012.ledger.measurements.training_runs import ReducedRun
from alexnet2012.ledger.registry import measures

LEVEL = 0.05


def colour_shares_pct(kernels: Tensor) -> Array:
    """[2K, 3, h, w] → each kernel's energy off the grey axis, 0 (grey) to 100: [2K]."""
    energy = kernels.detach().double().square().sum((1, 2, 3))
    grey = kernels.detach().double().mean(1, keepdim=True).expand_as(kernels).square()
    return (100 * (1 - grey.sum((1, 2, 3)) / energy)).numpy()


def colour_measurement(shares_pct: Array, *how: *How) -> Measurement:
    """Compare the towers' shares of colour [R, 2K] with those of halves drawn at random."""
    gaps = gaps_of_rearranged(shares_pct)
    p_value = mean_gap_p(gaps)
    usual, high = np.quantile(gaps, (0.5, 0.95)).tolist()
    return Measurement(
        "fig3",
        f"the towers' shares of colour differ by {gaps[0]:.1f} points; those of halves drawn at "
        f"random by {usual:.1f} (95% below {high:.1f})",
        *how,
        numbers={"apart_points": gaps[0], "apart_at_random_points": usual},
        n_seeds=len(shares_pct),
        agrees=True if p_value <= LEVEL else None,
        agreement_note="the share of colour is the fraction of a kernel's energy that is not grey; "
        "tests whether the towers' means differ more than those of kernels divided otherwise: "
        f"p = {p_value:.3f} by permutation",
        p_value=p_value,
        sample={"colour_shares_pct": shares_pct},
    )


FROM_SAMPLE = {"fig3": lambda sample, *how: colour_measurement(sample["colour_shares_pct"], *how)}


@measures("fig3", part="reduced", from_sample=FROM_SAMPLE)
def colour_of_reduced_run(run: ReducedRun, *how: *How) -> Measurement:
    """The colours of one network's towers."""
    return colour_measurement(colour_shares_pct(run.conv1)[None], *how)


@measures("fig3", part="ablations", evaluates=True, from_sample=FROM_SAMPLE)
def colour_of_sweep(directory: Path, *how: *How, only: Sequence[int] | None = None) -> Measurement:
    """The colours of the towers of a sweep's baseline, all seeds together."""
    runs = baseline_runs(directory, only).values()
    conv1 = (load_trained(run).model.layers()["conv1"].weight for run in runs)
    return colour_measurement(np.stack([colour_shares_pct(kernels) for kernels in conv1]), *how)
