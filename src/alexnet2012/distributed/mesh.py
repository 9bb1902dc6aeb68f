"""The device mesh: replicas × towers, with this process's position, device and groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import RunError
from alexnet2012.config.validation import check_world_size
from alexnet2012.distributed.devices import uses_gpus
from alexnet2012.distributed.process_env import current_process, joining_process
from alexnet2012.distributed.rendezvous import join_store
from alexnet2012.distributed.watchdog.watchdog import Watchdog
from alexnet2012.utils.interrupt import InterruptError


@dataclass(frozen=True)
class Mesh:
    """``replicas`` × ``towers`` processes; rank = replica · towers + tower.

    A mesh of one process holds all towers of the network and has no process groups.
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
        """The towers of this replica, or None if this process holds the whole network."""
        return self._group("tower") if self.towers > 1 else None

    @property
    def data_group(self) -> dist.ProcessGroup | None:
        """The same tower in every replica, or None without replicas."""
        return self._group("data") if self.replicas > 1 else None

    def _group(self, name: str) -> dist.ProcessGroup:
        assert self.device_mesh is not None
        return self.device_mesh.get_group(name)

    def new_tower_group(self, timeout_s: float) -> dist.ProcessGroup | None:
        """Another group of the towers of this replica, or None as for ``tower_group``. Collective.

        Its collectives do not wait for those of ``tower_group``.
        """
        if self.towers == 1:
            return None
        assert self.device_mesh is not None
        return _new_group(self.device_mesh.mesh, timedelta(seconds=timeout_s))

    def broadcast_object(self, value: object, name: str = "object") -> object:
        """Broadcast rank 0's ``value`` to every rank. Collective; ``name`` is for diagnoses."""
        if self.world_size == 1:
            return value
        objects = [value]
        with self.watchdog.exchange(name, "broadcast"):
            dist.broadcast_object_list(objects, src=0)
        return objects[0]

    def gather_objects(self, value: Any, name: str) -> list[Any]:
        """All-gather ``value``, rank 0's first. Collective; ``name`` is for diagnoses."""
        if self.world_size == 1:
            return [value]
        values = [None] * self.world_size
        with self.watchdog.exchange(name, "all-gather"):
            dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def sum_over_replicas(self, tensors: Iterable[Tensor], name: str) -> None:
        """All-reduce each tensor over the replicas, in place. Collective."""
        if self.data_group is None:
            return
        with self.watchdog.exchange(name, "all-reduce"):
            for tensor in tensors:
                dist.all_reduce(tensor, group=self.data_group)

    def check_same(
        self, name: str, value: dict[str, Any], remedy: str, *, within_replica: bool
    ) -> None:
        """Check that ranks, or only those ``within_replica``, hold equal values. Collective.

        Raises:
            RunError: the same on every rank; names the rank, the key and both values.
        """
        values = self.gather_objects(value, name)
        size = self.towers if within_replica else self.world_size
        for rank in range(1, self.world_size):
            first = rank - rank % size
            for key, expected, other in _differences(values[first], values[rank]):
                difference = f"{key} is {other} on rank {rank} and {expected} on rank {first}"
                raise RunError(f"{name} differs between ranks: {difference}; {remedy}")

    def close(self) -> None:
        """Stop the watchdog and destroy the process group, if any."""
        self.watchdog.close()
        if dist.is_initialized():
            dist.destroy_process_group()

    def __enter__(self) -> Mesh:
        return self

    def __exit__(self, kind: object, error: object, traceback: object) -> None:
        """Close the mesh; after an error only mark this rank as failed, so its process must exit.

        NCCL would wait in ``destroy_process_group`` for peers that wait for this rank.
        """
        if error is None or isinstance(error, InterruptError):  # raised on all ranks, after saving
            self.close()
        else:
            self.watchdog.close(failed=True)


def single_process(device: Device = Device.auto) -> Mesh:
    """A mesh of one process."""
    return Mesh(_select_device(device, 0, current_process().local_world_size))


def init_mesh(
    towers: int = 2,
    *,
    device: Device | str = Device.auto,
    timeout_s: int = 300,
    stall_s: int = 20,
) -> Mesh:
    """Join the process group and build the mesh; without one, a mesh of this process.

    The process group is initialized from the variables of torchrun or any other launcher (RANK,
    WORLD_SIZE, …). Its watchdog ends the run if a rank keeps others waiting for ``timeout_s``, or
    shows no sign of life for ``stall_s`` (stopped, or its machine lost). A process group that is
    already initialized is used without a watchdog.

    Raises:
        ConfigError: the world size is no multiple of ``towers``, or the device is missing.
        RunError: the other ranks could not be reached.
    """
    timeout, process = timedelta(seconds=timeout_s), joining_process()
    rank, world_size, watchdog = process.rank, process.world_size, Watchdog(process.rank)
    if world_size == 1:
        return single_process(Device(device))
    check_world_size(world_size, towers)
    torch_device = _select_device(Device(device), process.local_rank, process.local_world_size)
    if not dist.is_initialized():
        backend = "nccl" if torch_device.type == "cuda" else "gloo"
        store = join_store(process, timeout_s)
        dist.init_process_group(
            backend, store=store, rank=rank, world_size=world_size, timeout=timeout
        )
        own_store = dist.PrefixStore("watchdog", store.clone())  # type: ignore[attr-defined]
        watchdog = Watchdog.start(own_store, rank, world_size, towers, stall_s, timeout_s)
    # Towers are the inner dimension: the two that exchange activations are on one machine.
    ranks = torch.arange(world_size).view(-1, towers)
    groups = [_groups(of_group, timeout) for of_group in (ranks.T, ranks)]
    names = ("data", "tower")
    device_mesh = DeviceMesh.from_group(groups, torch_device.type, mesh=ranks, mesh_dim_names=names)
    replica, tower = divmod(rank, towers)
    return Mesh(torch_device, world_size // towers, replica, towers, tower, device_mesh, watchdog)


def _groups(ranks: Tensor, timeout: timedelta) -> dist.ProcessGroup:
    """This rank's group, a row of ``ranks``; ``init_device_mesh`` takes no timeout."""
    if len(ranks) == 1:
        assert dist.group.WORLD is not None
        return dist.group.WORLD
    return _new_group(ranks, timeout)


def _new_group(ranks: Tensor, timeout: timedelta) -> dist.ProcessGroup:
    group: dist.ProcessGroup = dist.new_subgroups_by_enumeration(ranks.tolist(), timeout)[0]
    return group


def _select_device(kind: Device, local_rank: int, local_processes: int) -> torch.device:
    if not uses_gpus(kind, local_processes):
        return torch.device("cpu")
    index = local_rank % torch.cuda.device_count()  # ranks may share a GPU
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def _differences(
    first: dict[str, Any], second: dict[str, Any], prefix: str = ""
) -> Iterator[tuple[str, Any, Any]]:
    """Keys with unequal values, with both values; nested keys are joined by dots."""
    for key in sorted(set(first) | set(second)):
        expected, other = first.get(key), second.get(key)
        if isinstance(expected, dict) and isinstance(other, dict):
            yield from _differences(expected, other, f"{prefix}{key}.")
        elif expected != other:
            yield f"{prefix}{key}", expected, other
