"""Snapshot of a run's state in host memory: the contents of a checkpoint.

Each process holds rows of the full tensors, wrapped as DTensors so that torch can reshard them.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Shard

from alexnet2012.checkpoint.manifest import Progress
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.optim import PaperSGD


@dataclass(frozen=True)
class TrainingState:
    """This process's state of a run at one step, in host memory."""

    state: dict[str, Tensor]
    progress: Progress
    mean_image: npt.NDArray[np.float32]  # [P, P, 3], which the model needs for any other images

    @classmethod
    def of(
        cls,
        model: AlexNet,
        optimizer: PaperSGD | None,
        progress: Progress,
        mean_image: npt.NDArray[np.float32],
    ) -> TrainingState:
        def copied(local: Tensor) -> Tensor:  # safetensors needs contiguous tensors
            return local.to("cpu", copy=True, memory_format=torch.contiguous_format)

        state = tensors_of(model, optimizer, copied)
        return cls(state, copy.deepcopy(progress), mean_image)

    def not_finite(self) -> str | None:
        """The name of the first tensor with a NaN or infinity; None if all are finite."""
        for name, tensor in self.state.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local.is_floating_point() and not torch.isfinite(local.sum()):
                return name
        return None


def tensors_of(
    model: AlexNet,
    optimizer: PaperSGD | None,
    transform: Callable[[Tensor], Tensor] = Tensor.detach,
) -> dict[str, Tensor]:
    """Parameters, velocities and random streams by name; by default they share memory."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = _sharded(model, name, transform(parameter.detach()))
        if optimizer is not None:
            velocity = transform(optimizer.velocity(parameter))
            state[f"velocity.{name}"] = _sharded(model, name, velocity)
    if optimizer is not None:
        state.update({f"random.{name}": v for name, v in model.random_state().items()})
    return state


def _sharded(model: AlexNet, name: str, local: Tensor) -> Tensor:
    """Wrap this tower's rows as a DTensor of the full tensor; shares memory with ``local``."""
    group = model.mesh.tower_group
    if group is None:
        return local
    shape = model.full_shapes()[name]
    stride = torch.empty(shape, device="meta").stride()
    # With the mesh of the model, DTensor would move copies in host memory back to the GPU.
    tower_mesh = DeviceMesh.from_group(group, local.device.type)
    return DTensor.from_local(
        local, tower_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )
