"""A training step is read from top to bottom, through few files."""

from __future__ import annotations

import pytest
from trace_step import Call, switches, traced_step

# From the step to what it calls; a call leads down this list, never up.
DOWNWARD = [
    "training/train_step.py",
    "nn/alexnet.py",
    "nn/layers.py",
    "distributed/collectives.py",
]


@pytest.fixture(scope="module")
def calls() -> list[Call]:
    return traced_step()


def test_a_step_goes_through_ten_files_at_most(calls: list[Call]) -> None:
    files = {call.file for call in calls}
    assert set(DOWNWARD) <= files
    assert len(files) <= 10, files


def test_a_step_seldom_switches_between_files(calls: list[Call]) -> None:
    assert switches(calls) <= 31  # a third of the 94 that there once were


def test_the_path_from_the_step_to_the_exchange_goes_only_downward(calls: list[Call]) -> None:
    place = {file: index for index, file in enumerate(DOWNWARD)}
    for call in calls:
        if call.file in place and call.caller in place:
            assert place[call.caller] <= place[call.file], call
