"""Permutation tests: exact where rearrangements are few, and with their nominal level."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest

from alexnet2012.ledger.measurements.permutation import (
    MOST,
    gaps_of_rearranged,
    mean_gap,
    mean_gap_p,
    sign_flip_p,
)


def test_signs_of_few_differences_are_flipped_in_every_way() -> None:
    assert sign_flip_p([1, 2, 3, 4]) == 2 / 16  # all of one sign: itself and its mirror
    assert sign_flip_p([-1, -2, -3, -4]) == 2 / 16
    assert sign_flip_p([1, 2, 3, -1]) == 6 / 16  # |sum| of at least 5: 5 and 7, and their mirrors
    assert sign_flip_p([0, 0, 0]) == 1


def test_signs_of_many_differences_are_flipped_at_random() -> None:
    draw = np.random.default_rng(0)
    assert sign_flip_p(draw.normal(1, 1, size=40)) == 1 / MOST
    assert sign_flip_p(draw.normal(0, 1, size=40)) > 0.05


@pytest.mark.parametrize("count", [8, 20])
def test_sign_flips_have_their_nominal_level(count: int) -> None:
    draw = np.random.default_rng(1)
    found = sum(sign_flip_p(draw.normal(size=count)) <= 0.05 for _ in range(300))
    assert found <= 26  # 15 are to be expected


def test_few_values_are_divided_into_halves_in_every_way() -> None:
    values = np.array([[1.0, 2.0, 3.0, 10.0, 11.0, 12.0]])
    gaps = gaps_of_rearranged(values)
    total = values.sum()
    expected = [abs(2 * sum(half) - total) / 3 for half in combinations(values[0], 3)]
    assert sorted(gaps) == pytest.approx(sorted(expected))
    assert gaps[0] == mean_gap(values) == 9
    assert mean_gap_p(gaps) == 2 / 20


def test_many_values_are_divided_at_random() -> None:
    draw = np.random.default_rng(0)
    apart = np.concatenate([draw.normal(0, 1, (3, 12)), draw.normal(2, 1, (3, 12))], axis=1)
    assert mean_gap_p(gaps_of_rearranged(apart)) == 1 / MOST
    assert mean_gap_p(gaps_of_rearranged(draw.normal(size=(3, 24)))) > 0.05


def test_halves_have_their_nominal_level() -> None:
    draw = np.random.default_rng(2)
    p_values = [mean_gap_p(gaps_of_rearranged(draw.normal(size=(1, 12)))) for _ in range(200)]
    assert sum(p <= 0.05 for p in p_values) <= 19  # 10 are to be expected
