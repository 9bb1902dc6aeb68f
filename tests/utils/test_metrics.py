"""Errors and intervals against brute force and published tables."""

from __future__ import annotations

import math
import subprocess
import sys
from statistics import fmean, stdev

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from alexnet2012.utils.intervals import error_interval_pct, mean_interval
from alexnet2012.utils.metrics import topk_errors


def brute_force_errors(scores: list[list[int]], labels: list[int], k: int) -> float:
    """The places left are divided among tied classes, one image at a time."""
    missed = 0.0
    for row, label in zip(scores, labels, strict=True):
        higher = sum(score > row[label] for score in row)
        tied = sum(score == row[label] for score in row)
        missed += 1 - min(1.0, max(0, k - higher) / tied)
    return missed


@st.composite
def scored_images(draw: st.DrawFn) -> tuple[list[list[int]], list[int]]:
    pictures, classes = draw(st.integers(1, 6)), draw(st.integers(1, 7))
    few_values = st.integers(0, 3)  # so that ties are common
    row = st.lists(few_values, min_size=classes, max_size=classes)
    scores = draw(st.lists(row, min_size=pictures, max_size=pictures))
    label = st.integers(0, classes - 1)
    return scores, draw(st.lists(label, min_size=pictures, max_size=pictures))


@settings(max_examples=150, deadline=None)
@given(scored_images(), st.integers(1, 9))
def test_errors_equal_brute_force_with_shared_ties(
    pictures: tuple[list[list[int]], list[int]], k: int
) -> None:
    scores, labels = pictures
    errors = topk_errors(torch.tensor(scores, dtype=torch.float32), torch.tensor(labels), (k,))
    assert errors[k] == pytest.approx(brute_force_errors(scores, labels, k), abs=1e-6)


def test_equal_scores_give_chance_level_for_any_label() -> None:
    errors = topk_errors(torch.zeros(10, 1000), torch.arange(10))
    assert errors == {1: pytest.approx(10 * 0.999), 5: pytest.approx(10 * 0.995)}


def test_there_are_no_errors_for_k_above_the_number_of_classes() -> None:
    assert topk_errors(torch.eye(3), torch.tensor([2, 2, 2]), (3, 5)) == {3: 0.0, 5: 0.0}


def test_scores_that_are_nan_count_as_errors() -> None:
    scores = torch.full((4, 10), math.nan)
    assert topk_errors(scores, torch.zeros(4, dtype=torch.long)) == {1: 4.0, 5: 4.0}


def test_labels_out_of_range_are_reported() -> None:
    with pytest.raises(ValueError, match=r"0 … 2"):
        topk_errors(torch.eye(3), torch.tensor([0, 1, 3]))
    with pytest.raises(ValueError, match=r"ks=\(0,\)"):
        topk_errors(torch.eye(3), torch.arange(3), (0,))


@pytest.mark.parametrize(
    ("degrees", "confidence", "expected"),  # published tables of Student's t
    [(1, 0.95, 12.7062), (2, 0.95, 4.30265), (3, 0.99, 5.84091), (4, 0.95, 2.77645),
     (9, 0.95, 2.26216), (10, 0.90, 1.81246), (30, 0.95, 2.04227), (1000, 0.95, 1.96234)],
)  # fmt: skip
def test_student_intervals_have_the_quantiles_of_the_tables(
    degrees: int, confidence: float, expected: float
) -> None:
    values = [float(i % 7) for i in range(degrees + 1)]
    mean, low, high = mean_interval(values, confidence)
    assert low is not None
    assert high is not None
    standard_error = stdev(values) / math.sqrt(len(values))
    assert (high - mean) / standard_error == pytest.approx(expected, rel=1e-5)
    assert (mean - low) / standard_error == pytest.approx(expected, rel=1e-5)


def test_a_confidence_outside_0_and_1_is_refused() -> None:
    for values in ([1.0], [1.0, 2.0]):
        with pytest.raises(ValueError, match="confidence=1"):
            mean_interval(values, 1)


def test_scipy_is_imported_only_for_intervals() -> None:
    code = (
        "import sys\n"
        "from alexnet2012.utils.intervals import mean_interval\n"
        "assert 'scipy.special' not in sys.modules\n"
        "mean_interval([1.0, 2.0])\n"
        "assert 'scipy.special' in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_three_seeds_have_a_student_interval_and_one_has_none() -> None:
    mean, low, high = mean_interval([1.0, 2.0, 3.0])
    assert [mean, low, high] == pytest.approx([2, 2 - 2.48414, 2 + 2.48414], rel=1e-5)
    assert mean_interval([7.0]) == (7.0, None, None)


@settings(max_examples=50, deadline=None)
@given(st.lists(st.floats(-100, 100), min_size=2, max_size=8))
def test_the_interval_contains_the_mean(values: list[float]) -> None:
    mean, low, high = mean_interval(values)
    assert low is not None
    assert high is not None
    assert low <= mean <= high
    assert mean == pytest.approx(fmean(values))


def test_wilson_intervals_match_textbook_values() -> None:
    assert error_interval_pct(10, 100) == pytest.approx((5.52, 17.44), abs=0.01)
    assert error_interval_pct(0, 10) == pytest.approx((0.0, 27.75), abs=0.01)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 500), st.floats(0, 1))
def test_an_error_rate_is_within_its_interval_and_that_within_0_and_100(
    pictures: int, share: float
) -> None:
    low, high = error_interval_pct(share * pictures, pictures)
    assert 0 <= low <= 100 * share + 1e-9
    assert 100 * share - 1e-9 <= high <= 100
