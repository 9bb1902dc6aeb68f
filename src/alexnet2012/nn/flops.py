"""Per-layer counts of parameters, neurons and multiply-adds, from a built model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from alexnet2012.nn.alexnet import AlexNet


@dataclass(frozen=True)
class LayerCounts:
    """Counts of one layer of the full network; neurons, multiply-adds and input for one image."""

    name: str
    weights: int
    biases: int
    neurons: int
    multiply_adds: int
    input_shape: tuple[int, ...]  # of all towers: [C, H, W] or [inputs]


@torch.no_grad()
def count_layers(model: AlexNet) -> list[LayerCounts]:
    """Count every layer with parameters, by one forward pass over a single image.

    The model must hold all towers in one process.
    """
    assert model.mesh.towers == 1, "only a model with all towers in one process can be counted"
    output_sizes: dict[str, int] = {}
    input_shapes: dict[str, tuple[int, ...]] = {}

    def record(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: Any, output: Tensor) -> None:
            output_sizes[name] = output[0].numel()
            input_shapes[name] = tuple(inputs[0].shape[1:])

        return hook

    handles = [m.register_forward_hook(record(n)) for n, m in model.layers().items()]
    was_training = model.training
    size = model.config.input_size
    model.eval()(torch.zeros(1, 3, size, size, device=model.mesh.device))
    model.train(was_training)
    for handle in handles:
        handle.remove()
    return [
        LayerCounts(
            name=name,
            weights=layer.weight.numel(),
            biases=layer.bias.numel(),
            neurons=output_sizes[name],
            multiply_adds=output_sizes[name] * layer.weight[0].numel(),
            input_shape=input_shapes[name],
        )
        for name, layer in model.layers().items()
    ]
