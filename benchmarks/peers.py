"""The networks of others that benchmarks compare ours with, as their users write them."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn

COMPILED, PLAIN, TORCHVISION = "compiled PyTorch", "plain PyTorch", "torchvision"
PEERS = (COMPILED, PLAIN, TORCHVISION)
LRN = {"size": 5, "alpha": 5e-4, "beta": 0.75, "k": 2.0}  # paper sec. 3.3; torch divides α by size


class SlicedLRN(nn.Module):
    """The paper's LRN within each tower, from operations that torch.compile fuses."""

    def __init__(self, towers: int = 2) -> None:
        super().__init__()
        self.towers = towers

    def forward(self, x: Tensor) -> Tensor:
        """[N, C, H, W] → [N, C, H, W]; maps are the last dimension of memory, so of the slices."""
        pixels = x.permute(0, 2, 3, 1).unflatten(3, (self.towers, -1))
        channels = pixels.shape[4]
        squares = F.pad(pixels.float().square(), (2, 2))
        d = 2 + 1e-4 * sum(squares[..., shift : shift + channels] for shift in range(5))
        normed = (pixels * (d * d.sqrt()).rsqrt()).to(x.dtype)  # d^-¾
        return normed.flatten(3).permute(0, 3, 1, 2)


def paper_net(classes: int, *norm: nn.Module) -> nn.Sequential:
    """The paper's network: two towers are the groups of a convolution."""

    def hidden(inputs: int) -> list[nn.Module]:
        return [nn.Linear(inputs, 4096), nn.ReLU(), nn.Dropout()]

    return nn.Sequential(
        *(nn.Conv2d(3, 96, 11, 4, 2), nn.ReLU(), *norm, nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(96, 256, 5, 1, 2, groups=2), nn.ReLU(), *norm, nn.MaxPool2d(3, 2)),
        *(nn.Conv2d(256, 384, 3, 1, 1), nn.ReLU()),
        *(nn.Conv2d(384, 384, 3, 1, 1, groups=2), nn.ReLU()),
        *(nn.Conv2d(384, 256, 3, 1, 1, groups=2), nn.ReLU(), nn.MaxPool2d(3, 2)),
        *(nn.Flatten(), *hidden(9216), *hidden(4096), nn.Linear(4096, classes)),
    )


def peer_net(kind: str, classes: int, device: torch.device) -> nn.Module:
    """The network of a peer on its device, in the layout that its users choose."""
    if kind == PLAIN:
        return paper_net(classes, nn.LocalResponseNorm(**LRN)).to(device)
    if kind == TORCHVISION:
        from torchvision.models import alexnet

        net: nn.Module = alexnet(num_classes=classes)
    else:
        net = paper_net(classes, SlicedLRN())
    net = net.to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return compiled(net, recorded=device.type == "cuda") if kind == COMPILED else net


def compiled(module: nn.Module, *, recorded: bool = False) -> Any:
    """For the shapes of its first call; ``recorded`` as CUDA graphs."""
    return torch.compile(module, dynamic=False, mode="reduce-overhead" if recorded else None)


@contextmanager
def empty_compiler_cache() -> Iterator[None]:
    """Compile as in a user's first run; later processes find what earlier ones compiled."""
    with (
        TemporaryDirectory() as folder,
        patch.dict(os.environ, TORCHINDUCTOR_CACHE_DIR=folder),
    ):
        yield


def can_compile() -> bool:
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def installed_peers() -> list[str]:
    """The peers that this machine can run."""
    can_run = {COMPILED: can_compile(), PLAIN: True, TORCHVISION: find_spec("torchvision")}
    return [kind for kind in PEERS if can_run[kind]]
