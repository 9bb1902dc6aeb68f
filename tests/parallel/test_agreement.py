"""Ranks know alike what one of them wishes, and fail alike where one of them fails."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import run_ranks

from alexnet2012.config.schema import ConfigError
from alexnet2012.distributed.consensus import ControlFlags, FlagSync, gather_results, run_on_rank_0
from alexnet2012.distributed.mesh import init_mesh


def wish_and_fail() -> dict[str, Any]:
    mesh = init_mesh(2, device="cpu")
    exchange = FlagSync(mesh, timeout_s=30)

    def fail_on_rank_1() -> int:
        if mesh.rank == 1:
            raise ConfigError("key", "value", "remedy")
        return mesh.rank

    def error_of(work: Any) -> str:
        with pytest.raises(ConfigError) as error:
            work()
        return str(error.value)

    steps = [
        ControlFlags(),
        ControlFlags(signal=15) if mesh.rank == 1 else ControlFlags(save=1),
        ControlFlags(),
        ControlFlags(),
    ]
    return {
        "known": [tuple(exchange(mine)) for mine in steps] + [tuple(exchange.finish())],
        "values": gather_results(lambda: mesh.rank, mesh),
        "of rank 0": run_on_rank_0(lambda: mesh.rank, mesh),
        "error": error_of(lambda: gather_results(fail_on_rank_1, mesh)),
        "still": run_on_rank_0(lambda: "there", mesh),
    }


def test_wishes_are_known_to_all_at_the_next_step_and_errors_are_everyones() -> None:
    none, wished = tuple(ControlFlags()), tuple(ControlFlags(signal=15, save=1))
    for rank in run_ranks(2, wish_and_fail):
        assert rank == {
            "known": [none, none, wished, none, none],
            "values": [0, 1],
            "of rank 0": 0,
            "error": "key=value: remedy",
            "still": "there",
        }
