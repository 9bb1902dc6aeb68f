"""Every parallel scheme trains as one process does, in float64, dropout and all.

Bound: sums in another order, as in test_exactness.
"""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch
from parallel_baselines import SCHEMES, OneWeirdTrick, _GatherRows
from ranks import run_ranks
from torch import Tensor

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import ConfigError, ModelConfig
from alexnet2012.config.validation import load_recipe

BOUND = 1e-10
CLASSES, BATCH, STEPS = 7, 4, 3
SMALL = ModelConfig(width=0.125, input_size=64)


def batches() -> list[tuple[Tensor, Tensor]]:
    draw = torch.Generator().manual_seed(0)
    return [
        (
            60 * torch.randn(BATCH, 3, 64, 64, generator=draw, dtype=torch.float64),
            torch.randint(CLASSES, (BATCH,), generator=draw),
        )
        for _ in range(STEPS)
    ]


def train(name: str) -> dict[str, np.ndarray]:
    recipe = load_recipe("code145")
    scheme = SCHEMES[name](recipe, CLASSES, SMALL, precision=Precision.fp64, device="cpu")
    for images, labels in batches():
        scheme.step(images, labels)
    return {n: w.numpy() for n, w in scheme.full_state_dict().items()}


@cache
def alone() -> dict[str, np.ndarray]:
    (weights,) = run_ranks(1, train, "towers")
    return dict(weights)


def worst(got: dict[str, np.ndarray]) -> float:
    want = alone()
    assert got.keys() == want.keys()
    return max(float(np.abs(got[n] - want[n]).max() / np.abs(want[n]).max()) for n in want)


@pytest.mark.parametrize("name", SCHEMES)
@pytest.mark.parametrize("processes", [2, 4])
def test_a_scheme_gives_the_weights_of_one_process(name: str, processes: int) -> None:
    for weights in run_ranks(processes, train, name):
        assert worst(weights) < BOUND


def train_without_the_other_towers_gradient() -> dict[str, np.ndarray]:
    def own_rows(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        comm = ctx.comm  # type: ignore[attr-defined]
        return grad.unflatten(0, (comm.towers, -1))[comm.tower], None

    _GatherRows.backward = staticmethod(own_rows)  # type: ignore[assignment,method-assign]
    return train("one weird trick")


def test_the_trick_differs_when_its_gather_forgets_to_sum() -> None:
    assert worst(run_ranks(2, train_without_the_other_towers_gradient)[0]) > 1e-6


def refuse() -> str:
    scheme = OneWeirdTrick(load_recipe("paper"), CLASSES, SMALL, device="cpu")
    with pytest.raises(ConfigError) as error:
        scheme.step(torch.zeros(3, 3, 64, 64), torch.zeros(3, dtype=torch.long))
    return str(error.value)


def test_a_batch_that_does_not_divide_is_refused() -> None:
    assert run_ranks(2, refuse) == ["batch=3: must divide evenly over 2 processes"] * 2
