"""Stochastic gradient descent with momentum and weight decay, as the paper defines it."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from functools import cache
from itertools import repeat
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from alexnet2012.config.schema import OptimizerConfig
from alexnet2012.nn.kernels import autograd as kernels
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.utils import native

BLOCK = 2**16  # numbers per block of an update on a CPU


class PaperSGD(Optimizer):
    """SGD with v ← μ·v - λ·ε·w - ε·g;  w ← w + v.

    The learning rate ε is inside the momentum v. torch's SGD multiplies v by ε instead, so that the
    two differ after every change of ε. The model names its parameters ``layer.weight`` and
    ``layer.bias``.

    Source: paper sec. 5.
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
        self._rates: list[tuple[float, float]] = []
        self._device_rates: Tensor | None = None

    def set_rates(self, rates: LearningRates) -> None:
        """Set the learning rate of every parameter; the initial rates are 0."""
        for group in self.param_groups:
            group["lr"] = rates.of(group["layer"], bias=group["bias"])
        weight = self.param_groups[0]["params"][0]
        if kernels.kernels_available(weight.device, weight.dtype):
            self._rates_on_device()
        else:
            self._device_rates = None

    def _rates_on_device(self) -> Tensor:
        """[parameters, 2]: ε and ε·decay, in memory that a captured update reads at each replay."""
        rates = [(group["lr"], group["lr"] * group["weight_decay"]) for group in self.param_groups]
        on_host = torch.tensor(rates, dtype=torch.float32)
        device = self.param_groups[0]["params"][0].device
        if self._device_rates is None or self._device_rates.device != device:
            self._device_rates = on_host.to(device)
        elif rates != self._rates:  # the copy waits for the queued work
            self._device_rates.copy_(on_host)
        self._rates = rates
        return self._device_rates

    @torch.no_grad()
    def step(  # type: ignore[override]
        self, closure: Callable[[], Any] | None = None, *, loss: Tensor | None = None
    ) -> None:
        """Update the parameters; skip the update if a ``loss`` is given and not finite.

        The GPU kernels check the loss on the device, without a synchronization.
        """
        assert closure is None and (loss is None or loss.numel() == 1)

        @cache
        def diverged() -> bool:  # synchronizes with the GPU
            return loss is not None and not math.isfinite(loss)

        cpu, updates = native.kernels(), []
        has_gpu_kernels = self._device_rates is not None
        device_rates = self._rates_on_device() if has_gpu_kernels else repeat(None)
        for group, rates in zip(self.param_groups, device_rates, strict=False):
            lr, momentum = group["lr"], group["momentum"]
            decay = lr * group["weight_decay"]
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                velocity = self.velocity(weight)
                same_layout = weight.stride() == velocity.stride() == weight.grad.stride()
                if same_layout and rates is not None:
                    from alexnet2012.nn.kernels import launchers  # needs Triton

                    launchers.sgd_update(weight, velocity, weight.grad, momentum, rates, loss)
                elif lr == 0 or diverged():
                    continue  # frozen: the 2012 code does not apply the old momentum either
                elif same_layout and weight.is_cpu and weight.dtype == torch.float32 and cpu:
                    update = weight, velocity, weight.grad, momentum, lr, decay
                    updates.append(native.Update(*update))
                else:
                    for w, v, g in _blocks(weight, velocity, weight.grad):
                        v.mul_(momentum).add_(g, alpha=-lr)
                        if decay:
                            v.add_(w, alpha=-decay)
                        w.add_(v)
        if updates:
            assert cpu is not None
            cpu.sgd_update(updates)

    def velocity(self, weight: Tensor) -> Tensor:
        """Momentum buffer of a parameter; zero before the first step."""
        state = self.state[weight]
        if "velocity" not in state:
            state["velocity"] = torch.zeros_like(weight)
        velocity: Tensor = state["velocity"]
        return velocity


def _blocks(*tensors: Tensor) -> Iterable[tuple[Tensor, ...]]:
    """Matching blocks of rows that fit in a CPU's cache; on a GPU, a single block."""
    first = tensors[0]
    if first.device.type != "cpu":
        return [tensors]
    rows = max(1, BLOCK * len(first) // max(1, first.numel()))
    return zip(*(tensor.split(rows) for tensor in tensors), strict=True)
