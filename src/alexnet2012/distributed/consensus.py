"""What ranks must know alike: outcomes, errors, and what any of them wants done next."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import NamedTuple, TypeVar

import torch
import torch.distributed as dist

from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.mesh import Mesh

Value = TypeVar("Value")


def gather_results(
    work: Callable[[], Value], mesh: Mesh, group: dist.ProcessGroup | None = None
) -> list[Value]:
    """What ``work`` returns on each rank; where it fails on one, all raise alike. Collective."""
    if mesh.world_size == 1:
        return [work()]
    mine: tuple[Value | None, Exception | None]
    try:
        mine = work(), None
    except (OSError, ConfigError, RunError) as error:
        mine = None, error
    if group is None:
        every = mesh.gather_objects(mine, "outcome")
    else:  # of another thread than the one whose exchanges are recorded
        every = [mine] * mesh.world_size
        dist.all_gather_object(every, mine, group=group)
    for _, failure in every:
        if failure is not None:
            raise failure
    return [value for value, _ in every]


def run_on_rank_0(
    work: Callable[[], Value], mesh: Mesh, group: dist.ProcessGroup | None = None
) -> Value:
    """What ``work`` returns on rank 0, which alone does it; its error is everyone's. Collective."""
    return gather_results(lambda: work() if mesh.rank == 0 else None, mesh, group)[0]  # type: ignore[return-value]


class ControlFlags(NamedTuple):
    """What a rank, or any rank, wants done between two steps."""

    signal: int = 0  # the signal that asks to leave
    save: int = 0
    failed: int = 0  # writing a checkpoint has


class FlagSync:
    """The wishes of all ranks, by the time that each has made one more step.

    They travel while a step is computed: nobody waits for them, and all learn the same at the same
    step. By gloo, on threads of its own, also where the towers exchange by NCCL.
    """

    def __init__(self, mesh: Mesh, timeout_s: int) -> None:
        self._alone, self._watchdog = mesh.world_size == 1, mesh.watchdog
        timeout = timedelta(seconds=timeout_s)
        self._group = None if self._alone else dist.new_group(backend="gloo", timeout=timeout)
        self._sent: tuple[torch.Tensor, dist.Work] | None = None

    def __call__(self, mine: ControlFlags) -> ControlFlags:
        """Tell the others; returns what all wished when this was last called. Collective."""
        if self._alone:
            return mine
        known = self.finish()
        wishes = torch.tensor(mine, dtype=torch.int32)
        work = dist.all_reduce(wishes, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._sent = wishes, work
        return known

    def finish(self) -> ControlFlags:
        """What is still under way."""
        if self._sent is None:
            return ControlFlags()
        wishes, work = self._sent
        try:
            work.wait()
        except RuntimeError as error:
            raise self._watchdog.lost(error) from error
        self._sent = None
        return ControlFlags(*wishes.tolist())
