"""The architecture's numbers, counted from a built net."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alexnet2012.nn.alexnet import AlexNet


@dataclass(frozen=True)
class LayerAudit:
    """Counts of one layer of the whole net, taken from its built tensors."""

    name: str
    weights: int
    biases: int
    neurons: int
    multiply_adds: int
    reads: tuple[int, ...]  # what it reads of one picture, of all towers: [C, H, W] or [inputs]


@torch.no_grad()
def audit(model: AlexNet) -> list[LayerAudit]:
    """Count a whole net, in one process, by running one picture through it."""
    assert model.mesh.towers == 1, "count the whole net"
    outputs: dict[str, int] = {}
    reads: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            outputs[name] = output[0].numel()
            reads[name] = tuple(inputs[0].shape[1:])

        return hook

    handles = [m.register_forward_hook(record(n)) for n, m in model.layers().items()]
    was_training = model.training
    size = model.config.input_size
    model.eval()(torch.zeros(1, 3, size, size, device=model.mesh.device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return [
        LayerAudit(
            name=name,
            weights=layer.weight.numel(),
            biases=layer.bias.numel(),
            neurons=outputs[name],
            multiply_adds=outputs[name] * layer.weight[0].numel(),
            reads=reads[name],
        )
        for name, layer in model.layers().items()
    ]
