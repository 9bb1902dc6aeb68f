"""Running sums go on where they were saved, on the same mesh and on another."""

from __future__ import annotations

import pytest
import torch

from alexnet2012.mesh import Mesh
from alexnet2012.sums import Sums

SAVED = [[1.0, 2.0, 3.0], [0.1, 0.2, 4.0]]  # loss, errors and pictures of two replicas


def replica(number: int, of: int) -> Mesh:
    return Mesh(torch.device("cpu"), replicas=of, replica=number)


def test_each_replica_of_the_same_mesh_goes_on_with_its_own() -> None:
    assert [Sums.restored(SAVED, replica(r, 2)) for r in (0, 1)] == [Sums(*row) for row in SAVED]


@pytest.mark.parametrize("replicas", [1, 3])
def test_on_another_mesh_the_first_replica_goes_on_with_the_sum(replicas: int) -> None:
    first, *others = (Sums.restored(SAVED, replica(r, replicas)) for r in range(replicas))
    assert first == Sums(1.1, 2.2, 7.0)
    assert others == [Sums()] * (replicas - 1)


def test_nothing_was_saved_of_a_run_that_had_not_begun() -> None:
    assert Sums.restored([], replica(0, 2)) == Sums()
