"""Permutation tests: all rearrangements where they are few, otherwise random ones of a fixed seed.

A test asks how many rearrangements, equally likely if there is no effect, give a statistic at least
as large as the one observed. The values need no particular distribution.

Shapes: R rows, 2K values per row.
"""

from __future__ import annotations

import math
from itertools import combinations, product

import numpy as np
import numpy.typing as npt

MOST = 1024  # rearrangements that are tried; where there are more, so many random ones
_ROUNDING = 1e-12  # sums in another order differ in their last bits

Array = npt.NDArray[np.float64]


def sign_flip_p(differences: npt.ArrayLike) -> float:
    """Two-sided p-value of paired differences: without an effect each has either sign.

    Source: Fisher's randomization test.
    """
    values = np.asarray(differences, np.float64)
    if 2 ** len(values) <= MOST:
        signs = np.array(list(product((1, -1), repeat=len(values))))
    else:
        signs = np.random.default_rng(0).choice((1, -1), size=(MOST, len(values)))
        signs[0] = 1
    return _share_as_large(abs(values.sum()), np.abs(signs @ values))


def mean_gap(values: Array) -> float:
    """Difference between the means of the two halves of [R, 2K], without sign, mean over rows."""
    halves = values.reshape(len(values), 2, -1).mean(2)
    return float(np.abs(halves[:, 0] - halves[:, 1]).mean())


def gaps_of_rearranged(values: Array) -> Array:
    """:func:`mean_gap` as observed, and of rows divided into other halves."""
    count = values.shape[1]
    if len(values) == 1 and math.comb(count, count // 2) <= MOST:
        firsts = combinations(range(count), count // 2)
        orders = ([*first, *(i for i in range(count) if i not in first)] for first in firsts)
        return np.array([mean_gap(values[:, order]) for order in orders])
    stream = np.random.default_rng(0)
    others = [mean_gap(stream.permuted(values, axis=1)) for _ in range(MOST - 1)]
    return np.array([mean_gap(values), *others])


def mean_gap_p(gaps: Array) -> float:
    """p-value of the first of :func:`gaps_of_rearranged`, which is the one observed."""
    return _share_as_large(gaps[0], gaps)


def _share_as_large(observed: float, statistics: Array) -> float:
    """``statistics`` include the one observed, so no p-value is zero."""
    return float(np.mean(statistics >= observed - _ROUNDING * (1 + observed)))
