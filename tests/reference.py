"""An independent AlexNet in plain torch, with which tests compare the package.

Written from the paper and the 2012 code, with grouped convolutions and torch's own normalisation.
It shares only the names of parameters with ``alexnet2012``, and no code.
"""

from __future__ import annotations

import hashlib

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor


def logits(weights: dict[str, Tensor], x: Tensor, recipe: str, masks: dict[str, Tensor]) -> Tensor:
    """[N, 3, S, S] → [N, K]; ``masks``: the units that dropout keeps; empty in evaluation."""

    def conv(name: str, x: Tensor, stride: int, padding: int, groups: int) -> Tensor:
        return F.conv2d(
            x, weights[f"{name}.weight"], weights[f"{name}.bias"], stride, padding, 1, groups
        )

    def lrn(x: Tensor) -> Tensor:
        # torch divides alpha by the window; the paper does not, the 2012 code does.
        alpha = 5e-4 if recipe == "paper" else 1e-4
        return torch.cat(
            [F.local_response_norm(half, 5, alpha, 0.75, 2.0) for half in x.chunk(2, 1)], 1
        )

    def same_map_norm(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape[1], 1, 5, 5, dtype=x.dtype)
        sums = F.conv2d(x.square(), ones, padding=2, groups=x.shape[1])
        return x / (1 + 1e-3 / 25 * sums) ** 0.75

    def drop(name: str, x: Tensor) -> Tensor:
        return x * masks[name] if masks else 0.5 * x

    if recipe == "paper":
        x = F.max_pool2d(lrn(conv("conv1", x, 4, 2, 1).relu()), 3, 2)
        x = F.max_pool2d(lrn(conv("conv2", x, 1, 2, 2).relu()), 3, 2)
    else:
        x = F.max_pool2d(lrn(conv("conv1", F.pad(x, (0, 3, 0, 3)), 4, 0, 1)), 3, 2).relu()
        x = F.max_pool2d(same_map_norm(lrn(conv("conv2", x, 1, 2, 2).relu())), 3, 2)
    x = conv("conv3", x, 1, 1, 1).relu()
    x = conv("conv4", x, 1, 1, 2).relu()
    x = F.max_pool2d(conv("conv5", x, 1, 1, 2).relu(), 3, 2)
    if recipe.startswith("code146"):
        x = conv("conv6", x, 1, 1, 1).relu()
    x = x.flatten(1)
    for name in ("fc6", "fc7"):
        x = drop(name, F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"]).relu())
    if recipe == "code146_2011":
        x = F.linear(x, weights["fc8_bottleneck.weight"], weights["fc8_bottleneck.bias"])
    return F.linear(x, weights["fc8.weight"], weights["fc8.bias"])


class DropoutStreams:
    """Dropout masks of a seed: one SplitMix64 stream per layer, row by row, one number per unit."""

    def __init__(self, seed: int) -> None:
        self.states = {}
        for name in ("fc6", "fc7"):
            digest = hashlib.sha256(f"{seed}/dropout/{name}".encode()).digest()
            self.states[name] = int.from_bytes(digest[:8], "little") >> 1

    def masks(self, images: int, units: int) -> dict[str, Tensor]:
        kept = {}
        for name, state in self.states.items():
            numbers = splitmix64(state, images * units)
            kept[name] = torch.from_numpy(numbers < 2**63).view(images, units)
            self.states[name] = (state + images * units * 0x9E3779B97F4A7C15) % 2**64
        return kept


def splitmix64(state: int, count: int) -> npt.NDArray[np.uint64]:
    """The next ``count`` numbers. Source: Steele, Lea and Flood 2014."""
    z = np.uint64(state) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


def train(
    weights: dict[str, Tensor],
    batches: list[tuple[Tensor, Tensor]],
    recipe: str,
    seed: int,
    rates: list[float],
    bias_factor: float,
) -> tuple[dict[str, Tensor], list[dict[str, Tensor]]]:
    """Weights after all steps, and the gradients of each step."""
    weights = {name: w.clone() for name, w in weights.items()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    streams, gradients = DropoutStreams(seed), []
    for (images, labels), rate in zip(batches, rates, strict=True):
        leaves = {name: w.clone().requires_grad_() for name, w in weights.items()}
        masks = streams.masks(len(images), weights["fc6.bias"].numel())
        loss = F.cross_entropy(logits(leaves, images, recipe, masks), labels)
        grads = torch.autograd.grad(loss, list(leaves.values()))
        gradients.append(dict(zip(leaves, grads, strict=True)))
        for name, grad in gradients[-1].items():
            bias = name.endswith(".bias")
            step, decay = (rate * bias_factor, 0.0) if bias else (rate, 0.0005)
            velocity[name] = 0.9 * velocity[name] - decay * step * weights[name] - step * grad
            weights[name] = weights[name] + velocity[name]
    return weights, gradients
