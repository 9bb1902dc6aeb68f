"""The processes: which replica and which tower this one is, its device, and its groups."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh

from alexnet2012.checks import check_world_size
from alexnet2012.choices import Device
from alexnet2012.config import ConfigError, RunError

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

    def broadcast_object(self, value: object) -> object:
        """Rank 0's ``value`` on every rank."""
        if self.world_size == 1:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0)
        return box[0]

    def barrier(self) -> None:
        if self.world_size > 1:
            dist.barrier()

    def check_same(self, what: str, value: object, remedy: str, *, within_replica: bool) -> None:
        """Fail on every rank alike unless ranks hold an equal ``value``.

        ``within_replica`` compares the towers of each replica only.

        Raises:
            RunError: names the ranks that differ.
        """
        if self.world_size == 1:
            return
        values: list[object] = [None] * self.world_size
        dist.all_gather_object(values, value)
        size = self.towers if within_replica else self.world_size
        odd = [r for r, other in enumerate(values) if other != values[r - r % size]]
        if odd:
            raise RunError(
                f"{what} of rank {odd[0]} differs from rank {odd[0] - odd[0] % size}'s: {remedy}"
            )


def single_process(device: Device = Device.auto) -> Mesh:
    """A mesh of this process alone."""
    return Mesh(device=_device(device, local_rank=0))


def init_mesh(towers: int = 2, *, device: Device | str = Device.auto, timeout_s: int = 300) -> Mesh:
    """Join the processes that torchrun started; without torchrun, this process alone.

    Raises:
        ConfigError: the world size makes no replicas × towers mesh, or the device is missing.
    """
    kind = Device(device)
    world_size = int(os.environ.get("WORLD_SIZE", "1"))
    if world_size == 1:
        return single_process(kind)
    check_world_size(world_size, towers)
    local_rank = int(os.environ["LOCAL_RANK"])
    place = _device(kind, local_rank)
    if place.type == "cuda":
        torch.cuda.set_device(place)
    if not dist.is_initialized():
        dist.init_process_group(
            "nccl" if place.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_s)
        )
    # Towers are the inner dimension: the two that exchange activations sit on one machine.
    device_mesh = init_device_mesh(
        place.type, (world_size // towers, towers), mesh_dim_names=("data", "tower")
    )
    replica, tower = divmod(dist.get_rank(), towers)
    return Mesh(place, world_size // towers, replica, towers, tower, device_mesh)


def close_mesh() -> None:
    """Leave the process group, if one was joined."""
    if dist.is_initialized():
        dist.destroy_process_group()


def setup_logging(rank: int) -> None:
    """Messages of rank 0 to standard error; the others only speak up with a warning."""
    logging.basicConfig(format="%(message)s")
    log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


def _device(kind: Device, local_rank: int) -> torch.device:
    """Every process of a machine answers alike: all have a GPU of their own, or none uses one."""
    processes_here = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if kind is Device.cuda and count < processes_here:
        remedy = f"{processes_here} processes need a GPU each and {count} are visible; use cpu"
        raise ConfigError("mesh.device", kind.value, f"{remedy}, or fewer processes")
    if kind is Device.cpu or count < processes_here:
        return torch.device("cpu")
    return torch.device("cuda", local_rank)
