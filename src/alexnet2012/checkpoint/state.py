"""The state of a run at one step: what a checkpoint holds, on this rank, in host memory.

Each process holds rows of a full tensor; wrapped as a DTensor it is known to be a part of it.
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
    """The state of a run at one step, in host memory, as this process holds it.

    The mean image [P, P, 3] that the net was trained with goes along: it belongs to the net, not
    to the pictures that it may be shown later.
    """

    state: dict[str, Tensor]
    progress: Progress
    mean_image: npt.NDArray[np.float32]

    @classmethod
    def of(
        cls,
        model: AlexNet,
        optimizer: PaperSGD | None,
        progress: Progress,
        mean_image: npt.NDArray[np.float32],
    ) -> TrainingState:
        def copied(local: Tensor) -> Tensor:  # safetensors knows no other layout of memory
            return local.to("cpu", copy=True, memory_format=torch.contiguous_format)

        state = tensors_of(model, optimizer, copied)
        return cls(state, copy.deepcopy(progress), mean_image)

    def not_finite(self) -> str | None:
        """The first tensor that holds NaN or an infinity, if any does."""
        for name, tensor in self.state.items():
            local = tensor.to_local() if isinstance(tensor, DTensor) else tensor
            if local.is_floating_point() and not torch.isfinite(local.sum()):
                return name
        return None


def tensors_of(
    model: AlexNet, optimizer: PaperSGD | None, of: Callable[[Tensor], Tensor] = Tensor.detach
) -> dict[str, Tensor]:
    """Parameters, momenta and streams: their own memory, or what ``of`` makes of it."""
    state: dict[str, Tensor] = {}
    for name, parameter in model.named_parameters():
        state[f"model.{name}"] = _sharded(model, name, of(parameter.detach()))
        if optimizer is not None:
            state[f"velocity.{name}"] = _sharded(model, name, of(optimizer.velocity(parameter)))
    if optimizer is not None:
        state.update({f"random.{name}": v for name, v in model.random_state().items()})
    return state


def _sharded(model: AlexNet, name: str, local: Tensor) -> Tensor:
    """The own rows as part of the full tensor; shares memory with ``local``."""
    group = model.mesh.tower_group
    if group is None:
        return local
    shape = model.full_shapes()[name]
    stride = torch.empty(shape, device="meta").stride()
    # Of a mesh of GPUs DTensor would move a copy in host memory back to one.
    tower_mesh = DeviceMesh.from_group(group, local.device.type)
    return DTensor.from_local(
        local, tower_mesh, [Shard(0)], run_check=False, shape=shape, stride=stride
    )
