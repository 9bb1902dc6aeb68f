"""One training step: forward, backward, and the sum over replicas, of a batch.

Where nothing is exchanged on a GPU, it is recorded once as a CUDA graph and replayed: a step of 128
pictures is over before Python could launch its kernels one by one. Steps with exchanges run as they
are: a replay would write no flight record, and no timeout would watch it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from alexnet2012.distributed.grad_sync import GradientSum
from alexnet2012.distributed.mesh import log
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.losses import loss_and_errors, split_loss_and_errors
from alexnet2012.utils.shard import Share

WARM_UP = 3  # steps before one is recorded: kernels are made, libraries set up


class Found(NamedTuple):
    """Of a batch, on its device and unread: the sum of its losses, and how many are mistaken."""

    loss: Tensor
    errors: Tensor


class Gradients:
    """Call it with a batch on every rank: afterwards each parameter's ``grad`` is that of the mean
    loss over the global batch. For :class:`alexnet2012.nn.optim.PaperSGD`, which takes gradients
    of bf16 for weights of float32.

    ``gather_logits``: whether every tower gathers them for the loss.
    """

    def __init__(self, model: AlexNet, *, gather_logits: bool = True) -> None:
        self._model, self._gather_logits = model, gather_logits
        self._sum = GradientSum(model, model.mesh)
        mesh = model.mesh
        take_gradients_as_they_are(model)
        self._on_gpu = mesh.device.type == "cuda"
        self._records = self._on_gpu and mesh.world_size == 1
        self._full, self._steps = 0, 0  # pictures of a whole batch, and how many there were
        self._recorded: _Recorded | None = None

    def __call__(self, images: Tensor, labels: Tensor, rows: Share) -> Found:
        """[n, 3, S, S], [n] and which rows of the global batch these are."""
        if not self._on_gpu or rows.size < self._full:  # the last of an epoch may be smaller
            return self._compute(images, labels, rows)
        if rows.size > self._full:
            self._full, self._steps, self._recorded = rows.size, 0, None
        self._steps += 1
        if self._steps <= WARM_UP:
            with trying_algorithms():
                return self._compute(images, labels, rows)
        if self._records and self._recorded is None:
            self._record(images, labels, rows)
        if self._recorded is None or not self._recorded.is_of(images, rows):
            return self._compute(images, labels, rows)
        return self._recorded.replayed(images, labels)

    def _record(self, images: Tensor, labels: Tensor, rows: Share) -> None:
        try:
            self._recorded = _Recorded(self._compute, self._model, images, labels, rows)
        except torch.OutOfMemoryError:  # a graph wants as much again as a step
            log.warning("no room for a CUDA graph: steps go on one kernel after the other")
            self._records = False

    def _compute(self, images: Tensor, labels: Tensor, rows: Share) -> Found:
        model = self._model
        if self._gather_logits:
            loss, errors = loss_and_errors(model(images, rows), labels)
        else:
            own_logits = model.own_logits(model.features(images, rows))
            loss, errors = split_loss_and_errors(own_logits, labels, model.fc8.rows, model.link)
        model.zero_grad()
        # The mean over the global batch: replicas with fewer rows then weigh less.
        (loss / rows.total).backward()
        self._sum.wait()
        return Found(loss.detach(), errors)


def take_gradients_as_they_are(model: AlexNet) -> None:
    """On a GPU weights of float32 get gradients of bf16 where their products are of bf16."""
    if model.fused and model.mesh.replicas == 1:  # sums over replicas need more digits
        for layer in model.layers().values():
            layer.weight.grad_dtype = model.types.activations


def fetching(*numbers: Tensor) -> Callable[[], list[float]]:
    """Numbers of a device, on their way from now on; a call of what is returned waits for them.

    A GPU may be given its next work meanwhile: that is not waited for.
    """
    there = torch.stack([number.double() for number in numbers])
    if not there.is_cuda:
        return there.tolist
    here = there.to("cpu", non_blocking=True)  # to pinned memory
    arrived = torch.cuda.Event()
    arrived.record()

    def fetched() -> list[float]:
        arrived.synchronize()
        return here.tolist()

    return fetched


@contextmanager
def trying_algorithms() -> Iterator[None]:
    """cuDNN times its algorithms for shapes that it has not seen, and stays with the fastest.

    The one that it would pick unseen takes twice as long for the first convolution of 1,024
    pictures. It costs some seconds, so small commands leave it.
    """
    before, torch.backends.cudnn.benchmark = torch.backends.cudnn.benchmark, True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


class _Recorded:
    """The work of a whole batch's step as a CUDA graph; a replay uses the same memory again."""

    def __init__(
        self,
        work: Callable[[Tensor, Tensor, Share], Found],
        model: AlexNet,
        images: Tensor,
        labels: Tensor,
        rows: Share,
    ) -> None:
        # Of the type that the net would make of them at once: fewer bytes to copy.
        self._images = images.to(model.types.activations, copy=True)
        self._labels, self._rows = labels.clone(), rows
        self._model, self._way = model, _way(model)
        self._graph = torch.cuda.CUDAGraph()
        # What the threads of DALI ask the driver for meanwhile is no part of it.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = work(self._images, self._labels, rows)
        self._grads = [(parameter, parameter.grad) for parameter in model.parameters()]

    def is_of(self, images: Tensor, rows: Share) -> bool:
        same = images.shape == self._images.shape and rows == self._rows
        return same and _way(self._model) == self._way

    def replayed(self, images: Tensor, labels: Tensor) -> Found:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, grad in self._grads:  # a smaller batch left its own there
            parameter.grad = grad
        return self._found


def _way(model: AlexNet) -> tuple[Any, ...]:
    """What of a net decides which work a step is."""
    return model.training, model.fused, *(p.requires_grad for p in model.parameters())
