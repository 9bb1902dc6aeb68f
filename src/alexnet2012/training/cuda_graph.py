"""Forward and backward of a whole batch as a CUDA graph, recorded once and replayed.

A step of 128 images ends before Python could launch its kernels one by one. Only steps of a single
process are recorded: a replay would write no flight record of its exchanges, and no timeout would
watch them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alexnet2012.distributed.mesh import log
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.shard import Shard

WARM_UP = 3  # steps before one is recorded: kernels are compiled, libraries set up
ForwardBackward = Callable[[Tensor, Tensor, Shard], tuple[Tensor, Tensor]]


class GraphedStep:
    """Called as the function that it wraps: eagerly at first, then by replays of a graph.

    Batches smaller than the largest one so far (the last of an epoch) run eagerly.
    """

    def __init__(self, model: AlexNet, forward_backward: ForwardBackward) -> None:
        self._model, self._eager = model, forward_backward
        self._may_record = model.mesh.world_size == 1
        self._full_size = self._full_steps = 0  # images of a whole batch, and steps of that size
        self._graph: _Graph | None = None

    def __call__(self, images: Tensor, labels: Tensor, rows: Shard) -> tuple[Tensor, Tensor]:
        if rows.size < self._full_size:
            return self._eager(images, labels, rows)
        if rows.size > self._full_size:
            self._full_size, self._full_steps, self._graph = rows.size, 0, None
        self._full_steps += 1
        if self._full_steps <= WARM_UP:
            with cudnn_benchmark():
                return self._eager(images, labels, rows)
        if self._may_record and self._graph is None:
            self._record(images, labels, rows)
        if self._graph is None or not self._graph.fits(images, rows):
            return self._eager(images, labels, rows)
        return self._graph.replay(images, labels)

    def _record(self, images: Tensor, labels: Tensor, rows: Shard) -> None:
        try:
            self._graph = _Graph(self._model, self._eager, images, labels, rows)
        except torch.OutOfMemoryError:  # a graph needs as much memory again as a step
            log.warning("not enough GPU memory for a CUDA graph: kernels are launched one by one")
            self._may_record = False


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time its algorithms for new shapes and keep the fastest.

    Its untimed choice takes twice as long for the first convolution of 1,024 images. Timing costs
    some seconds, so short commands do without.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class _Graph:
    """The recorded kernels of one step; every replay uses the same memory."""

    def __init__(
        self,
        model: AlexNet,
        forward_backward: ForwardBackward,
        images: Tensor,
        labels: Tensor,
        rows: Shard,
    ) -> None:
        # In the type that the network would cast them to: fewer bytes to copy.
        self._images = images.to(model.types.activations, copy=True)
        self._labels, self._rows = labels.clone(), rows
        self._model, self._mode = model, _mode(model)
        self._graph = torch.cuda.CUDAGraph()
        # DALI's threads may call the driver meanwhile; their calls are not part of the graph.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._output = forward_backward(self._images, self._labels, rows)
        self._grads = [(parameter, parameter.grad) for parameter in model.parameters()]

    def fits(self, images: Tensor, rows: Shard) -> bool:
        same = images.shape == self._images.shape and rows == self._rows
        return same and _mode(self._model) == self._mode

    def replay(self, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, grad in self._grads:  # an eager step may have put others there
            parameter.grad = grad
        return self._output


def _mode(model: AlexNet) -> tuple[Any, ...]:
    """What decides which kernels a step of a network runs."""
    return model.training, model.fused, *(p.requires_grad for p in model.parameters())
