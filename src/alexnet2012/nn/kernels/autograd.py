"""Autograd functions for the fused conv epilogue (bias, ReLU, LRN, max-pool) and ReLU + dropout.

Kernels are imported inside the functions: Triton ships with torch's CUDA builds only.

Shapes: N images, C channels of all towers in this process, c of one tower, t towers, H×W pixels of
the input, H'×W' of the output.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from alexnet2012.nn.kernels.epilogue import Epilogue, TowerMaps

HAS_TRITON = find_spec("triton") is not None


def kernels_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether kernels exist: for float32 and bfloat16, on a GPU with Triton."""
    dtypes = (torch.float32, torch.bfloat16)
    return device.type == "cuda" and dtype in dtypes and HAS_TRITON


def fused_epilogue(
    products: Sequence[Tensor],
    bias: Tensor | None,
    epilogue: Epilogue,
    towers: int,
    *,
    separate: bool,
) -> tuple[Tensor, ...]:
    """Bias [C], ReLU, LRN and max-pool after a convolution: [N, C, H, W] → [N, C, H', W'].

    ``products``, the convolution's output, is one tensor or t tensors [N, c, H, W]; ``separate``
    asks for t tensors. All are in channels-last layout. There are no gradients of gradients.
    """
    outputs: tuple[Tensor, ...] = _FusedEpilogue.apply(  # type: ignore[no-untyped-call]
        epilogue, towers, separate, bias, *_channels_last(products)
    )
    return outputs


class _FusedEpilogue(torch.autograd.Function):
    """Each layer where the epilogue enables it.

    Forward: x = relu(z + b), n = x·d^-β with d = k + s·W(x²), y = relu(max of n over each pool
    window); W sums over a window of maps.

    Backward: gn[i] = Σ g over the pool windows whose maximum is pixel i (y > 0 with the last ReLU);
    gx = gn·d^-β - 2·s·β·x·W(gn·x·d^(-β-1)); gz = gx·[x > 0]; gb = Σ gz over images and pixels.

    Saved: z with LRN, y with ReLU but neither LRN nor pool, and the index of each window's maximum.
    """

    @staticmethod
    def forward(
        ctx: Any,
        epilogue: Epilogue,
        towers: int,
        separate: bool,
        bias: Tensor | None,
        *products: Tensor,
    ) -> tuple[Tensor, ...]:
        from alexnet2012.nn.kernels import launchers

        pool, norm = epilogue.pool, epilogue.norm
        images, _, *sides = products[0].shape
        channels = sum(z.shape[1] for z in products) // towers
        out_sides = [pool.output_size(side) for side in sides] if pool is not None else sides
        out = _empty(products[0], (images, channels, *out_sides), towers, separate=separate)
        x, pool_bias = products, bias
        argmax: tuple[Tensor, ...] = ()
        if norm is not None or pool is None:
            shape = (images, channels, *sides)
            x = out if pool is None else _empty(products[0], shape, towers, separate=True)
            for z, own_bias, y in _launches(towers, products, bias, x):
                launchers.bias_relu_norm(z, own_bias, y, norm, relu=epilogue.relu)
            pool_bias = None  # already added
        if pool is not None:
            like = products[0].new_empty(0, dtype=torch.int8)
            argmax = _empty(like, (images, channels, *out_sides), towers, separate=True)
            relu = epilogue.relu_last or (epilogue.relu and norm is None)
            for maps, own_bias, y, indices in _launches(towers, x, pool_bias, out, argmax):
                launchers.max_pool(maps, own_bias, y, indices, pool, relu=relu)
        saved = {"z": products, "y": out, "": ()}[epilogue.saved_for_backward]
        ctx.save_for_backward(*saved, *argmax)
        ctx.epilogue, ctx.towers, ctx.bias, ctx.saved_count = epilogue, towers, bias, len(saved)
        ctx.shape, ctx.separate = (images, channels, *sides), len(products) > 1
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from alexnet2012.nn.kernels import launchers

        _refuse_double_backward()
        epilogue, towers, bias = ctx.epilogue, ctx.towers, ctx.bias
        pool, norm = epilogue.pool, epilogue.norm
        bias_grads: list[Any]
        # Hooks on saved tensors may have changed their layout.
        saved, grads = map(_channels_last, (ctx.saved_tensors, grads))
        saved, argmax = saved[: ctx.saved_count], saved[ctx.saved_count :]
        grads_z = _empty(grads[0], ctx.shape, towers, separate=ctx.separate)
        if pool is not None:
            grads_x = grads_z
            if norm is not None:
                grads_x = _empty(grads[0], ctx.shape, towers, separate=True)
            sums_bias = norm is None and bias is not None
            bias_grads = [
                launchers.max_pool_backward(g, indices, x, pool, bias=sums_bias)
                for g, indices, x in _launches(towers, grads, argmax, grads_x)
            ]
            grads = grads_x
        if norm is not None or pool is None:
            relu = epilogue.relu_before_pool
            bias_grads = [
                launchers.bias_relu_norm_backward(read, own_bias, g, x, norm, relu=relu)
                for read, own_bias, g, x in _launches(towers, saved or None, bias, grads, grads_z)
            ]
        return None, None, None, None if bias is None else torch.cat(bias_grads), *grads_z


def _refuse_double_backward() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        remedy = "set model.fused = False, or precision=fp64 for networks with LRN"
        raise RuntimeError(f"the GPU kernels do not support double backward; {remedy}")


def _channels_last(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)


def _launches(
    towers: int, *groups: tuple[Tensor, ...] | Tensor | None
) -> Iterator[tuple[Any, ...]]:
    """Arguments of each kernel launch: one launch for all towers if their maps are equally spaced
    in memory, else one per tower. A group is maps, a bias, or None.
    """
    maps = [group for group in groups if isinstance(group, tuple)]
    count = 1 if all(map(_equally_spaced, maps)) else towers

    def by_launch(group: tuple[Tensor, ...] | Tensor | None) -> Iterable[Any]:
        if group is None:
            return [None] * count
        if isinstance(group, Tensor):
            return group.detach().chunk(count)
        return _tower_maps(group, towers, count)

    return zip(*map(by_launch, groups), strict=True)


def _equally_spaced(tensors: tuple[Tensor, ...]) -> bool:
    first = tensors[0]
    return all(
        x.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and x.storage_offset() - first.storage_offset() == i * first.numel()
        for i, x in enumerate(tensors)
    )


def _tower_maps(tensors: tuple[Tensor, ...], towers: int, count: int) -> list[TowerMaps]:
    """Maps in one tensor of all towers or one of each, as arguments of ``count`` launches."""
    images, channels, height, width = tensors[0].shape
    separate = len(tensors) == towers  # also true of a single tower
    per_tower = channels if separate else channels // towers
    shape, row = (images, per_tower, height, width), channels
    if count == 1:
        tower_stride = tensors[0].numel() if separate else per_tower
        return [TowerMaps(tensors[0], shape, row, towers, tower_stride)]
    by_tower = tensors if separate else tensors[0].chunk(towers, 1)
    return [TowerMaps(x, shape, row) for x in by_tower]


def _empty(
    like: Tensor, shape: Sequence[int], towers: int, *, separate: bool
) -> tuple[Tensor, ...]:
    """Uninitialised channels-last maps, t tensors [N, c, H, W] or one [N, C, H, W]."""
    images, channels, *sides = shape
    if separate:
        by_tower = like.new_empty(towers, images, *sides, channels)
        return tuple(x.permute(0, 3, 1, 2) for x in by_tower)
    return (like.new_empty(images, *sides, towers * channels).permute(0, 3, 1, 2),)


class ReluDropout(torch.autograd.Function):
    """Forward: y = m·relu(z), with a random mask m of zeros and ones.  Backward: gz = g·[y > 0].

    Arguments as for the launcher.
    """

    @staticmethod
    def forward(
        ctx: Any, z: Tensor, state: Tensor, position: tuple[int, int, int], threshold: int
    ) -> Tensor:
        from alexnet2012.nn.kernels import launchers

        z = z.contiguous()
        y = torch.empty_like(z)
        launchers.relu_dropout(z, y, state, position, threshold)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        _refuse_double_backward()
        (y,) = ctx.saved_tensors
        grad_z: Tensor = torch.ops.aten.threshold_backward(grads[0], y, 0)
        return grad_z, None, None, None
