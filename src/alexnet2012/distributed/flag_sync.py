"""Control flags that the ranks exchange at each step: requests to save, and to end."""

from __future__ import annotations

from datetime import timedelta
from typing import NamedTuple

import torch
import torch.distributed as dist

from alexnet2012.distributed.mesh import Mesh


class ControlFlags(NamedTuple):
    """Requests of one rank, or of all ranks combined, between two steps."""

    signal: int = 0  # number of a signal that asks the run to exit
    save: int = 0
    failed: int = 0  # writing a checkpoint has failed


class FlagSync:
    """Combines the control flags of all ranks by an asynchronous all-reduce (max) at each step.

    It overlaps with the next step, so no rank waits for it and all ranks see the same flags at the
    same step, one step late. It always uses gloo, which has threads of its own.
    """

    def __init__(self, mesh: Mesh, timeout_s: int) -> None:
        self._single, self._watchdog = mesh.world_size == 1, mesh.watchdog
        timeout = timedelta(seconds=timeout_s)
        self._group = None if self._single else dist.new_group(backend="gloo", timeout=timeout)
        self._pending: tuple[torch.Tensor, dist.Work] | None = None

    def __call__(self, flags: ControlFlags) -> ControlFlags:
        """Send this rank's flags; returns the combined flags of the previous call. Collective."""
        if self._single:
            return flags
        combined = self.finish()
        tensor = torch.tensor(flags, dtype=torch.int32)
        work = dist.all_reduce(tensor, dist.ReduceOp.MAX, group=self._group, async_op=True)
        assert work is not None
        self._pending = tensor, work
        return combined

    def finish(self) -> ControlFlags:
        """Wait for the pending all-reduce and return its flags; no flags if none is pending."""
        if self._pending is None:
            return ControlFlags()
        tensor, work = self._pending
        try:
            work.wait()
        except RuntimeError as error:
            raise self._watchdog.explain(error) from error
        self._pending = None
        return ControlFlags(*tensor.tolist())
