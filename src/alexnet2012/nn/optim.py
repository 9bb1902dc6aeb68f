"""Stochastic gradient descent as the paper writes it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet2012.config.schema import OptimizerConfig
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.lr_schedule import LearningRates

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

    def set_rates(self, rates: LearningRates) -> None:
        for group in self.param_groups:
            group["lr"] = rates.of(group["layer"], bias=group["bias"])

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | None = None
    ) -> None:
        """One update; where a ``loss`` (one number) is given, none unless it is finite.

        The kernels for a GPU look at it themselves: all is handed over before it is known.
        """
        assert closure is None and (loss is None or loss.numel() == 1)

        @cache
        def refused() -> bool:  # waits for a GPU
            return loss is not None and not math.isfinite(loss)

        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            if rate == 0:  # frozen: the 2012 code does not let the old momentum run on either
                continue
            decay = rate * group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.velocity(weight)
                alike = weight.stride() == velocity.stride() == weight.grad.stride()
                if alike and kernels.kernels_available(weight.device, weight.dtype):
                    from alexnet2012.nn.kernels import (
                        launchers as launches,  # there is a Triton to import
                    )

                    launches.sgd_update(weight, velocity, weight.grad, momentum, rate, decay, loss)
                elif not refused():
                    _update(weight, velocity, weight.grad, momentum, rate, decay)

    def velocity(self, weight: Tensor) -> Tensor:
        """The momentum of one parameter, of its own shape; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def _update(
    weight: Tensor, velocity: Tensor, grad: Tensor, momentum: float, rate: float, decay: float
) -> None:
    for w, v, g in _blocks(weight, velocity, grad):
        v.mul_(momentum).add_(g, alpha=-rate)
        if decay:
            v.add_(w, alpha=-decay)
        w.add_(v)


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Equal pieces along the first dimension: on a CPU a piece stays in its cache from the first
    operation to the last, and memory is gone through once.
    """
    first = tensors[0]
    if first.device.type != "cpu":
        return [tensors]
    rows = max(1, BLOCK * len(first) // max(1, first.numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
