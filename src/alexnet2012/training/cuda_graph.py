"""CUDA graph of a batch's forward and backward pass: captured once, then replayed.

A step of 128 images takes less time on the GPU than Python needs to launch its kernels. Only steps
of a single process are captured: the collectives of a replay would have no flight record and no
timeout.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.logs import log
from alexnet2012.utils.shard import Shard

WARM_UP = 3  # eager steps before the capture: they compile kernels and initialize libraries
ForwardBackward = Callable[[Tensor, Tensor, Shard], tuple[Tensor, Tensor]]


class GraphedStep:
    """Wraps a forward-and-backward function: runs it eagerly at first, then replays a CUDA graph.

    Batches smaller than the largest one so far (the last batch of an epoch) run eagerly.
    """

    def __init__(self, model: AlexNet, forward_backward: ForwardBackward) -> None:
        self._model, self._eager = model, forward_backward
        self._may_capture = model.mesh.world_size == 1
        self._full_size = self._full_steps = 0  # images in a full batch, and steps of that size
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
        if self._may_capture and self._graph is None:
            self._capture(images, labels, rows)
        if self._graph is None or not self._graph.fits(images, rows):
            return self._eager(images, labels, rows)
        return self._graph.replay(images, labels)

    def _capture(self, images: Tensor, labels: Tensor, rows: Shard) -> None:
        try:
            self._graph = _Graph(self._model, self._eager, images, labels, rows)
        except torch.OutOfMemoryError:  # a graph needs as much memory again as an eager step
            log.warning("not enough GPU memory for a CUDA graph; training continues without it")
            self._may_capture = False


@contextmanager
def cudnn_benchmark() -> Iterator[None]:
    """Let cuDNN time its algorithms for each new shape, for some seconds, and use the fastest.

    Its default choice is half as fast for the first convolution of 1,024 images.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class _Graph:
    """A captured step; every replay uses the same input, output and gradient memory."""

    def __init__(
        self,
        model: AlexNet,
        forward_backward: ForwardBackward,
        images: Tensor,
        labels: Tensor,
        rows: Shard,
    ) -> None:
        # Stored in the network's activation type: fewer bytes to copy.
        self._images = images.to(model.types.activations, copy=True)
        self._labels, self._rows = labels.clone(), rows
        self._model, self._mode = model, _mode(model)
        self._graph = torch.cuda.CUDAGraph()
        # thread_local: DALI's threads may call the CUDA driver during the capture.
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
        for parameter, grad in self._grads:  # an eager step may have replaced them
            parameter.grad = grad
        return self._output


def _mode(model: AlexNet) -> tuple[Any, ...]:
    """State of the model that decides which kernels a step runs."""
    return model.training, model.fused, *(p.requires_grad for p in model.parameters())
