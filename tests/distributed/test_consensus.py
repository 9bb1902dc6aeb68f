"""Control flags and errors of one rank reach all ranks."""

from __future__ import annotations

from typing import Any

import pytest
from ranks import run_ranks

from alexnet2012.config.schema import ConfigError
from alexnet2012.distributed.consensus import gather_results, run_on_rank_0
from alexnet2012.distributed.flag_sync import ControlFlags, FlagSync
from alexnet2012.distributed.mesh import init_mesh


def sync_and_fail() -> dict[str, Any]:
    mesh = init_mesh(2, device="cpu")
    flag_sync = FlagSync(mesh, timeout_s=30)

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
        "flags": [tuple(flag_sync(flags)) for flags in steps] + [tuple(flag_sync.finish())],
        "results": gather_results(lambda: mesh.rank, mesh),
        "rank 0": run_on_rank_0(lambda: mesh.rank, mesh),
        "error": error_of(lambda: gather_results(fail_on_rank_1, mesh)),
        "after error": run_on_rank_0(lambda: "works", mesh),
    }


def test_flags_reach_all_ranks_one_step_later_and_errors_are_raised_on_all() -> None:
    none, combined = tuple(ControlFlags()), tuple(ControlFlags(signal=15, save=1))
    for rank in run_ranks(2, sync_and_fail):
        assert rank == {
            "flags": [none, none, combined, none, none],
            "results": [0, 1],
            "rank 0": 0,
            "error": "key=value: remedy",
            "after error": "works",
        }
