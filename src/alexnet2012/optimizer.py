"""Stochastic gradient descent as the paper writes it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from alexnet2012.config import OptimizerConfig
from alexnet2012.schedule import Rates


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
        for group in self.param_groups:
            rate = group["lr"]
            if rate == 0:  # frozen: the 2012 code does not let the old momentum run on either
                continue
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.velocity(weight)
                velocity.mul_(group["momentum"]).add_(weight.grad, alpha=-rate)
                if group["weight_decay"]:
                    velocity.add_(weight, alpha=-rate * group["weight_decay"])
                weight.add_(velocity)

    def velocity(self, weight: torch.Tensor) -> torch.Tensor:
        """The momentum of one parameter, of its own shape; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: torch.Tensor = state["velocity"]
        return velocity
