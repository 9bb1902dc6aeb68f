"""Figure 3: towers are compared with kernels divided at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from alexnet2012.config.schema import ConfigError
from alexnet2012.ledger.claims import Scale
from alexnet2012.ledger.measurements.tower_colour import (
    FROM_SAMPLE,
    colour_measurement,
    colour_of_sweep,
    colour_shares_pct,
)

HOW = (Scale.reduced, "…", "tiny")


def kernels(seed: int, coloured: range) -> Tensor:
    """24 kernels, half a tower each, of which some have colour."""
    stream = torch.Generator().manual_seed(seed)
    weights = torch.randn(24, 1, 5, 5, generator=stream).expand(-1, 3, -1, -1).clone()
    colour = torch.randn(24, 3, 5, 5, generator=stream)
    strength = torch.full((24, 1, 1, 1), 0.1)
    strength[list(coloured)] = 1.0
    return weights + strength * colour


def shares(*coloured: range) -> np.ndarray:
    return np.stack([colour_shares_pct(kernels(i, those)) for i, those in enumerate(coloured)])


def test_the_share_of_colour_is_the_energy_off_the_grey_axis() -> None:
    red = torch.zeros(1, 3, 5, 5)
    red[0, 0] = 1.0
    assert colour_shares_pct(torch.ones(2, 3, 5, 5)).tolist() == pytest.approx([0, 0])
    assert colour_shares_pct(red).tolist() == pytest.approx([200 / 3])
    assert colour_shares_pct(-3 * red) == pytest.approx(colour_shares_pct(red))


def test_one_network_with_a_coloured_tower_supports_the_claim() -> None:
    for tower in (range(12), range(12, 24)):  # which one is a matter of numbering
        found = colour_measurement(shares(tower), *HOW)
        assert found.agrees is True
        assert found.p_value is not None and found.p_value < 0.01


def test_colour_in_both_towers_supports_nothing() -> None:
    found = colour_measurement(shares(range(0, 24, 2)), *HOW)
    assert (found.agrees, found.n_seeds) == (None, 1)


def test_kernels_permuted_over_the_towers_rarely_support_the_claim() -> None:
    draw = np.random.default_rng(0)
    apart = shares(range(12))
    permuted = (draw.permuted(apart, axis=1) for _ in range(60))
    supported = sum(colour_measurement(values, *HOW).agrees is True for values in permuted)
    assert supported <= 7  # 3 are to be expected


def test_networks_are_tested_together_each_divided_on_its_own() -> None:
    weak = [range(3, 15)] * 4  # nine coloured kernels of twelve in one tower, three in the other
    alone, together = (colour_measurement(shares(*weak[:n]), *HOW) for n in (1, 4))
    assert alone.p_value is not None and together.p_value is not None
    assert together.p_value < alone.p_value
    assert together.n_seeds == 4
    assert FROM_SAMPLE["fig3"](together.sample, *HOW) == together


def test_a_sweep_without_a_baseline_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="contains no finished run of ablation=none"):
        colour_of_sweep(tmp_path, *HOW)
