"""Stochastic gradient descent as the paper writes it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet2012 import fused
from alexnet2012.config import OptimizerConfig
from alexnet2012.schedule import Rates

BLOCK = 2**16  # numbers of a weight that are updated at a time on a CPU


class PaperSGD(Optimizer):
    """v ← μ·v - λ·ε·w - ε·g;  w ← w + v.

    The rate ε stands inside v. torch's SGD multiplies it on afterwards, which gives other weights
    right after a rate change. Source: paper sec. 5.
    """

    def __init__(self, model: nn.Module, config: OptimizerConfig) -> None:
        groups = [
            {
                "params": [parameter],
                "layer": name.split(".")[0],
                "bias": name.endswith(".bias"),
                "weight_decay": config.layer_decay.get(name.split(".")[0], config.weight_decay)
                if config.decay_biases or not name.endswith(".bias")
                else 0.0,
            }
            for name, parameter in model.named_parameters()
        ]
        super().__init__(groups, {"lr": 0.0, "momentum": config.momentum})

    def set_rates(self, rates: Rates) -> None:
        for group in self.param_groups:
            group["lr"] = rates.of(group["layer"], bias=group["bias"])

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> None:  # type: ignore[override]
        assert closure is None
        # The largest first: on a GPU it is still under way while the others are handed over.
        for group in sorted(self.param_groups, key=lambda g: -g["params"][0].numel()):
            rate = group["lr"]
            if rate == 0:  # frozen: the 2012 code does not let the old momentum run on either
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.velocity(weight)
                alike = weight.stride() == velocity.stride() == weight.grad.stride()
                if alike and fused.possible(weight.device, weight.dtype):
                    decay = rate * group["weight_decay"]
                    fused.update(weight, velocity, weight.grad, group["momentum"], rate, decay)
                    continue
                for w, v, g in _blocks(weight, velocity, weight.grad):
                    v.mul_(group["momentum"]).add_(g, alpha=-rate)
                    if group["weight_decay"]:
                        v.add_(w, alpha=-rate * group["weight_decay"])
                    w.add_(v)

    def velocity(self, weight: Tensor) -> Tensor:
        """The momentum of one parameter, of its own shape; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Equal pieces along the first dimension: on a CPU a piece stays in its cache from the first
    operation to the last, and memory is gone through once.
    """
    first = tensors[0]
    if first.device.type != "cpu":
        return [tensors]
    rows = max(1, BLOCK * len(first) // max(1, first.numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
