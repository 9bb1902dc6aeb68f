"""Column-parallel convolution and linear layers.

Each layer holds the rows (kernels, units) of the towers in this process. A process may hold all
towers; towers that do not read each other are then the groups of one convolution.

Shapes: N images, C channels of all towers in this process, C_in channels that one kernel reads,
H×W pixels, S input size, T towers of the network, t of them in this process.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from alexnet2012.config.schema import ConvConfig
from alexnet2012.distributed.collectives import Communicator, all_gather_to_sharded
from alexnet2012.nn.map_sizes import conv_output_size, overhang_pixels
from alexnet2012.utils.shard import Shard


class ColumnParallel(nn.Module, ABC):
    """A layer with the shard ``rows`` of a full weight [rows.total, ...] and bias [rows.total].

    ``groups`` is t if a tower reads its own channels only, else 1. Weight and bias are cast to the
    dtype of the activations at each use, so that bf16 computes with copies while updates accumulate
    in float32.
    """

    def __init__(self, rows: Shard, row_shape: tuple[int, ...], groups: int) -> None:
        super().__init__()
        self.rows, self.groups = rows, groups
        self.weight = nn.Parameter(torch.empty(rows.size, *row_shape))
        self.bias = nn.Parameter(torch.empty(rows.size))

    def init_parameters(self, weight_std: float, bias: float, generator: torch.Generator) -> None:
        """Draw the *full* weight and keep this shard: initial values do not depend on the mesh."""
        full = torch.randn(self.rows.total, *self.weight.shape[1:], generator=generator)
        with torch.no_grad():
            self.weight.copy_(self.rows.of(full).mul_(weight_std))
            self.bias.fill_(bias)

    def forward(
        self,
        x: Tensor,
        *others: Tensor,
        comm: Communicator | None = None,
        name: str = "",
        skip_bias: bool = False,
    ) -> Tensor | tuple[Tensor, ...]:
        """Apply the layer to its full input ``x``; ``comm`` gathers it if ``x`` is a tower's shard.

        With ``others``, the inputs of the other towers in this process, ``x`` is the first tower's,
        and the result is one tensor per tower. ``name`` labels the exchange. With ``skip_bias`` the
        caller adds the bias.
        """
        weight = cast_weight(self.weight, x.dtype)
        bias = None if skip_bias else self.bias.to(x.dtype)
        if others:
            assert skip_bias
            pairs = zip((x, *others), weight.chunk(1 + len(others)), strict=True)
            return tuple(self.compute(x, w, None) for x, w in pairs)
        if comm is not None and comm.towers > 1 and x.shape[1] != self.weight.shape[1]:
            x = all_gather_to_sharded(x, comm, name)
        return self.compute(x, weight, bias)

    def extra_repr(self) -> str:
        shard = "" if self.rows.size == self.rows.total else f", rows={self.rows}"
        return (
            f"{self.weight.shape[1] * self.groups}, {self.rows.size}, groups={self.groups}{shard}"
        )

    @abstractmethod
    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """The convolution or the matrix product."""


class ColumnParallelConv2d(ColumnParallel):
    """[N, groups·C_in, H, W] → [N, rows, H', W']."""

    def __init__(self, config: ConvConfig, rows: Shard, kernel_channels: int, groups: int) -> None:
        kernel = (kernel_channels, config.kernel_size, config.kernel_size)
        super().__init__(rows, kernel, groups)
        self.kernel_size, self.stride = config.kernel_size, config.stride
        self.padding, self.overhang = config.padding, config.overhang

    def forward(
        self, x: Tensor, *others: Tensor, input_is_blocks: bool = False, **options: Any
    ) -> Any:
        """With ``input_is_blocks``, ``x`` comes from :meth:`space_to_depth`; no bias is added."""
        if input_is_blocks:  # the same sums at stride 1
            block = (-(-self.kernel_size // self.stride), self.stride)
            extra = math.prod(block) - self.kernel_size
            weight = F.pad(cast_weight(self.weight, x.dtype), (0, extra, 0, extra))
            weight = weight.unflatten(3, block).unflatten(2, block)
            weight = weight.permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
            return F.conv2d(x, weight.contiguous(memory_format=torch.channels_last))
        return super().forward(x, *others, **options)

    def extra_repr(self) -> str:
        window = f"kernel_size={self.kernel_size}, stride={self.stride}, padding={self.padding}"
        return f"{super().extra_repr()}, {window}"

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        groups = x.shape[1] // weight.shape[1]
        if self.overhang:
            extra = overhang_pixels(x.shape[-1], self.kernel_size, self.stride, self.padding)
            x = F.pad(x, (0, extra, 0, extra))
        return F.conv2d(x, weight, bias, self.stride, self.padding, 1, groups)

    def space_to_depth(self, images: Tensor, dtype: torch.dtype) -> Tensor:
        """[N, 3, S, S] → [N, 3·stride², B, B]: more channels keep a GPU's matrix units busy."""
        from alexnet2012.nn.kernels import launchers  # needs Triton

        windows = conv_output_size(self, images.shape[-1])
        blocks = windows - 1 + -(-self.kernel_size // self.stride)
        return launchers.space_to_depth(images, blocks, self.stride, self.padding, dtype)


class ColumnParallelLinear(ColumnParallel):
    """[N, groups·inputs] → [N, rows]."""

    def compute(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if self.groups == 1:
            return F.linear(x, weight, bias)
        assert bias is not None
        x_by_tower = x.unflatten(1, (self.groups, -1))
        weight_by_tower = weight.unflatten(0, (self.groups, -1))
        return torch.einsum("nti,toi->nto", x_by_tower, weight_by_tower).flatten(1) + bias


def cast_weight(weight: Tensor, dtype: torch.dtype) -> Tensor:
    """The weight in another dtype; if its ``grad_dtype`` is that, its gradient is not cast back."""
    if weight.dtype == dtype or not weight.is_leaf or weight.grad_dtype != dtype:
        return weight.to(dtype)
    cast: Tensor = _CastKeepingGradient.apply(weight, dtype)  # type: ignore[no-untyped-call]
    return cast


class _CastKeepingGradient(torch.autograd.Function):
    """Forward: y = cast(x).  Backward: gx = g, still in the dtype of y."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, dtype: torch.dtype) -> Tensor:
        return weight.to(dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0], None
