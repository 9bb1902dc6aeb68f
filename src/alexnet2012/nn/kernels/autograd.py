"""What follows a product on a GPU, as few passes over memory: autograd around the launches.

The kernels are imported where they run: Triton comes with torch's CUDA builds only.

Legend: N images, C channels of all towers here, c of one, t towers, H×W pixels before, H'×W' after.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from importlib.util import find_spec
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.nn.kernels.epilogue import Epilogue, TowerMaps


def kernels_available(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether there are kernels for it: on a GPU, for bf16 and float32."""
    return device.type == "cuda" and dtype != torch.float64 and bool(find_spec("triton"))


def fused_epilogue(
    products: Sequence[Tensor], bias: Tensor | None, tail: Epilogue, towers: int, *, by_tower: bool
) -> tuple[Tensor, ...]:
    """[N, C, H, W], or t times [N, c, H, W] → the same of H' × W', with ``by_tower`` t tensors.

    ``bias`` [C] float32 is added to the products. All lie channels last.
    """
    found: tuple[Tensor, ...] = _FusedEpilogue.apply(  # type: ignore[no-untyped-call]
        tail, towers, by_tower, bias, *_channels_last(products)
    )
    return found


class _FusedEpilogue(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        tail: Epilogue,
        towers: int,
        by_tower: bool,
        bias: Tensor | None,
        *products: Tensor,
    ) -> tuple[Tensor, ...]:
        from alexnet2012.nn.kernels import launchers as launches

        images, _, *before = products[0].shape
        channels = sum(x.shape[1] for x in products) // towers
        after = [tail.pool.side(side) for side in before] if tail.pool is not None else before
        out = _empty(products[0], (images, channels, *after), towers, apart=by_tower)
        x, shift = products, bias
        taken: tuple[Tensor, ...] = ()
        if tail.norm is not None or tail.pool is None:
            between = (images, channels, *before)
            x = out if tail.pool is None else _empty(products[0], between, towers, apart=True)
            for z, own_bias, y in _launches(towers, products, bias, x):
                launches.bias_relu_norm(z, own_bias, y, tail.norm, relu=tail.relu)
            shift = None  # is added
        if tail.pool is not None:
            like = products[0].new_empty(0, dtype=torch.int8)
            taken = _empty(like, (images, channels, *after), towers, apart=True)
            relu = tail.relu_last or (tail.relu and tail.norm is None)
            for maps, own_bias, y, places in _launches(towers, x, shift, out, taken):
                launches.max_pool(maps, own_bias, y, places, tail.pool, relu=relu)
        kept = {"z": products, "y": out, "": ()}[tail.read_backward]
        ctx.save_for_backward(*kept, *taken)
        ctx.tail, ctx.towers, ctx.bias, ctx.kept = tail, towers, bias, len(kept)
        ctx.shape, ctx.apart = (images, channels, *before), len(products) > 1
        return out

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
        from alexnet2012.nn.kernels import launchers as launches

        _refuse_a_graph()
        tail, towers, bias = ctx.tail, ctx.towers, ctx.bias
        # Hooks on saved tensors may have laid them otherwise.
        saved, grads = map(_channels_last, (ctx.saved_tensors, grads))
        kept, taken = saved[: ctx.kept], saved[ctx.kept :]
        out, sums = _empty(grads[0], ctx.shape, towers, apart=ctx.apart), list[Any]()
        if tail.pool is not None:
            last = tail.norm is None
            x = out if last else _empty(grads[0], ctx.shape, towers, apart=True)
            for g, places, maps in _launches(towers, grads, taken, x):
                alone = last and bias is not None
                sums.append(launches.max_pool_backward(g, places, maps, tail.pool, sums=alone))
            grads = x
        if tail.norm is not None or tail.pool is None:
            sums.clear()
            for read, own_bias, g, maps in _launches(towers, kept or None, bias, grads, out):
                sums.append(
                    launches.bias_relu_norm_backward(
                        read, own_bias, g, maps, tail.norm, relu=tail.early_relu
                    )
                )
        return None, None, None, None if bias is None else torch.cat(sums), *out


def _refuse_a_graph() -> None:
    if torch.is_grad_enabled():  # create_graph=True
        remedy = "set net.fused = False, or precision=fp64 where maps are normalised"
        raise RuntimeError(f"kernels for a GPU have no gradients of gradients; {remedy}")


def _channels_last(maps: Sequence[Tensor]) -> tuple[Tensor, ...]:
    return tuple(x.contiguous(memory_format=torch.channels_last) for x in maps)


def _launches(
    towers: int, *groups: tuple[Tensor, ...] | Tensor | None
) -> Iterator[tuple[Any, ...]]:
    """What each launch of a kernel takes of maps, and of a bias: one of all towers where their maps
    lie at equal distances, else one of each.
    """
    maps = [group for group in groups if isinstance(group, tuple)]
    count = 1 if all(map(_evenly_laid, maps)) else towers

    def shared_out(group: tuple[Tensor, ...] | Tensor | None) -> Iterable[Any]:
        if group is None:
            return [None] * count
        if isinstance(group, Tensor):
            return group.detach().chunk(count)
        return _maps(group, towers, count)

    return zip(*map(shared_out, groups), strict=True)


def _evenly_laid(tensors: tuple[Tensor, ...]) -> bool:
    first = tensors[0]
    return all(
        x.untyped_storage().data_ptr() == first.untyped_storage().data_ptr()
        and x.storage_offset() - first.storage_offset() == i * first.numel()
        for i, x in enumerate(tensors)
    )


def _maps(tensors: tuple[Tensor, ...], towers: int, count: int) -> list[TowerMaps]:
    """Of all towers at once or of each, in a tensor of all or in one of each."""
    images, channels, height, width = tensors[0].shape
    apart = len(tensors) == towers  # also where there is but one
    own = channels if apart else channels // towers
    shape, row = (images, own, height, width), channels
    if count == 1:
        return [TowerMaps(tensors[0], shape, row, towers, tensors[0].numel() if apart else own)]
    each = tensors if apart else tensors[0].chunk(towers, 1)
    return [TowerMaps(x, shape, row) for x in each]


def _empty(like: Tensor, shape: Sequence[int], towers: int, *, apart: bool) -> tuple[Tensor, ...]:
    """Maps [N, c, H, W] of each tower, channels last, in a tensor of each or in one of all."""
    images, channels, *sides = shape
    if apart:
        whole = like.new_empty(towers, images, *sides, channels)
        return tuple(x.permute(0, 3, 1, 2) for x in whole)
    return (like.new_empty(images, *sides, towers * channels).permute(0, 3, 1, 2),)


def relu_dropout(z: Tensor, state: Tensor, place: tuple[int, int, int], threshold: int) -> Tensor:
    """relu(z) of the units that are kept in a step of training; arguments as the kernel's."""
    y: Tensor = _ReluDropout.apply(z, state, place, threshold)  # type: ignore[no-untyped-call]
    return y


class _ReluDropout(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, z: Tensor, state: Tensor, place: tuple[int, int, int], threshold: int
    ) -> Tensor:
        from alexnet2012.nn.kernels import launchers as launches

        z = z.contiguous()
        y = torch.empty_like(z)
        launches.relu_dropout(z, y, state, place, threshold)
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        _refuse_a_graph()
        (y,) = ctx.saved_tensors
        grad_z: Tensor = torch.ops.aten.threshold_backward(grads[0], y, 0)
        return grad_z, None, None, None


def to_blocks(images: Tensor, blocks: int, stride: int, padding: int, dtype: torch.dtype) -> Tensor:
    """[N, 3, S, S] → [N, 3·stride², blocks, blocks] for a convolution by :func:`weight_in_blocks`.

    Pixels of a block of stride × stride become channels: three of them leave most of a matrix unit
    idle. The images get no gradient.
    """
    from alexnet2012.nn.kernels import launchers as launches

    shape = (len(images), blocks, blocks, 3 * stride**2)
    x = torch.empty(shape, dtype=dtype, device=images.device).permute(0, 3, 1, 2)
    launches.image_to_blocks(images, x, stride, padding)
    return x


def weight_in_blocks(weight: Tensor, stride: int) -> Tensor:
    """[K, 3, P, P] → [K, 3·stride², P/stride, P/stride] rounded up: the same sums at stride 1."""
    side = -(-weight.shape[-1] // stride)
    extra = side * stride - weight.shape[-1]
    by_block: Tensor = F.pad(weight, (0, extra, 0, extra)).unflatten(3, (side, stride))
    by_block = by_block.unflatten(2, (side, stride)).permute(0, 3, 5, 1, 2, 4).flatten(1, 3)
    return by_block.contiguous(memory_format=torch.channels_last)
