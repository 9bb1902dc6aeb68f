"""The processes: which replica and which tower this one is, its device, and its groups."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from functools import cache
from types import TracebackType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.elastic.multiprocessing.api import SignalException

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.config.validation import check_world_size
from alexnet2012.distributed.process_env import current_process, joining_process
from alexnet2012.distributed.rendezvous import join_store
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR
from alexnet2012.distributed.watchdog.watchdog import Watchdog

log = logging.getLogger("alexnet2012")


@dataclass(frozen=True)
class Mesh:
    """``replicas`` × ``towers`` processes; rank = replica · towers + tower.

    A mesh of one process holds all the towers of the net and has no groups.
    """

    device: torch.device
    replicas: int = 1
    replica: int = 0
    towers: int = 1
    tower: int = 0
    device_mesh: DeviceMesh | None = None
    watchdog: Watchdog = field(default_factory=Watchdog, compare=False)

    @property
    def rank(self) -> int:
        return self.replica * self.towers + self.tower

    @property
    def world_size(self) -> int:
        return self.replicas * self.towers

    @property
    def tower_group(self) -> dist.ProcessGroup | None:
        """The processes that share one net, or None where this one holds it whole."""
        return self._group("tower") if self.towers > 1 else None

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        """The processes that hold the same tower of every replica, or None without replicas."""
        return self._group("data") if self.replicas > 1 else None

    def _group(self, name: str) -> dist.ProcessGroup:
        assert self.device_mesh is not None
        return self.device_mesh.get_group(name)

    def broadcast_object(self, value: object, what: str = "object") -> object:
        """Rank 0's ``value`` on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        with self.watchdog.exchange(what, "broadcast"):
            dist.broadcast_object_list(box, src=0)
        return box[0]

    def gather_objects(self, value: Any, what: str) -> list[Any]:
        """Every rank's ``value`` on every rank, rank 0's first."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        with self.watchdog.exchange(what, "gather"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def first_on_rank_0(self, work: Callable[[], None]) -> None:
        """``work()`` on rank 0, for as long as it takes, while the others wait. Collective."""
        if self.world_size > 1:
            self.watchdog.first_on_rank_0(work)
        else:
            work()

    def sum_over_replicas(self, tensors: Iterable[Tensor], what: str) -> None:
        """Each tensor, in place, summed over the replicas. Collective."""
        if self.data_group is None:
            return
        with self.watchdog.exchange(what, "sum"):
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.data_group)

    def check_same(
        self, what: str, value: dict[str, Any], remedy: str, *, within_replica: bool
    ) -> None:
        """Fail on every rank alike, in the same words, unless ranks hold equal values.

        ``within_replica`` compares the towers of each replica only.

        Raises:
            RunError: names the rank that differs, and in what.
        """
        if self.world_size == 1:
            return
        values = self.gather_objects(value, what)
        size = self.towers if within_replica else self.world_size
        for rank, there in enumerate(values):
            first = rank - rank % size
            for key, mine, other in _differences(values[first], there):
                differ = f"{key} is {other} on rank {rank} and {mine} on rank {first}"
                raise RunError(f"{what} differs: {differ}; {remedy}")

    def close(self) -> None:
        """Leave the process group, if one was joined."""
        self.watchdog.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Leave; after an error as one that fails, whose process has to end now.

        NCCL would wait in ``destroy_process_group`` for peers that wait for this rank.
        """
        if error is None or isinstance(error, SignalException):  # which all ranks leave by, saved
            self.close()
        else:
            self.watchdog.close(failed=True)


def single_process(device: Device = Device.auto) -> Mesh:
    """A mesh of this process alone."""
    on = _device(device, 0, current_process().local_world_size)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    return Mesh(device=on)


def init_mesh(
    towers: int = 2,
    *,
    device: Device | str = Device.auto,
    timeout_s: int = 300,
    stall_s: int = 20,
) -> Mesh:
    """Join the processes that torchrun, or whoever set RANK and the like, started; or be alone.

    A rank that has not come to an exchange for ``timeout_s``, or that has shown no sign of life for
    ``stall_s`` (stopped, or its machine lost), ends the others. In a process group that was joined
    before nobody watches.

    Raises:
        ConfigError: the world size makes no replicas × towers mesh, or the device is missing.
        RunError: the others could not be met.
    """
    kind, timeout, own = Device(device), timedelta(seconds=timeout_s), joining_process()
    if own.world_size == 1:
        return single_process(kind)
    rank, world_size, watchdog = own.rank, own.world_size, None
    check_world_size(world_size, towers)
    on = _device(kind, own.local_rank, own.local_world_size)
    if on.type == "cuda":
        torch.cuda.set_device(on)
    if not dist.is_initialized():
        backend = "nccl" if on.type == "cuda" else "gloo"
        store = join_store(own, timeout_s)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
        own_store = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]
        watchdog = Watchdog.start(own_store, rank, world_size, towers, stall_s, timeout_s)
    # Towers are the inner dimension: the two that exchange activations sit on one machine.
    ranks = torch.arange(world_size).view(-1, towers)
    groups = [_groups(of_group, timeout) for of_group in (ranks.T, ranks)]
    names = ("data", "tower")
    device_mesh = DeviceMesh.from_group(groups, on.type, mesh=ranks, mesh_dim_names=names)
    replica, tower = divmod(rank, towers)
    return Mesh(
        on, world_size // towers, replica, towers, tower, device_mesh, watchdog or Watchdog(rank)
    )


def _groups(ranks: Tensor, timeout: timedelta) -> dist.ProcessGroup:
    """One for each row; returns this rank's. torch's ``init_device_mesh`` takes no timeout."""
    if len(ranks) == 1:
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    group: dist.ProcessGroup = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout)[0]
    return group


class _ToStandardError(logging.StreamHandler):  # type: ignore[type-arg]
    """Whatever standard error is at the time: a live line steps aside for what is printed."""

    def emit(self, record: logging.LogRecord) -> None:
        self.setStream(sys.stderr)
        super().emit(record)


def setup_logging(rank: int) -> None:
    """Messages of rank 0 to standard error; the others only speak up with a warning."""
    logging.basicConfig(format="%(message)s", handlers=[_ToStandardError()])
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def uses_gpus(kind: Device, processes_here: int) -> bool:
    """Whether so many processes of a machine use its GPUs: all have one of their own, or none.

    Raises:
        ConfigError: they are asked for, and too few are visible.
    """
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind is Device.cuda and count < processes_here:
        remedy = f"{processes_here} processes need a GPU each and {count} are visible; use cpu"
        raise ConfigError("mesh.device", kind.value, f"{remedy}, or fewer processes")
    if kind is Device.auto and 0 < count < processes_here:
        _leave_alone(count, processes_here)
    return kind is not Device.cpu and count >= processes_here


@cache  # a start asks several times
def _leave_alone(count: int, processes_here: int) -> None:
    """Said by whoever starts the ranks of a run, or by the first of torchrun's."""
    if current_process().rank == 0 and FAILURES_DIR not in os.environ:
        log.warning(
            "GPUs are left alone: %d for %d processes; mesh=one_process takes one for both towers",
            *(count, processes_here),
        )


def _device(kind: Device, local_rank: int, processes: int) -> torch.device:
    if uses_gpus(kind, processes):
        return torch.device("cuda", local_rank)
    return torch.device("cpu")


def _differences(
    here: dict[str, Any], there: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    for key in sorted(set(here) | set(there)):
        mine, other = here.get(key), there.get(key)
        if isinstance(mine, dict) and isinstance(other, dict):
            yield from _differences(mine, other, f"{prefix}{key}.")
        elif mine != other:
            yield f"{prefix}{key}", mine, other
