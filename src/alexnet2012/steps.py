"""One training step: forward, backward, and the sum over replicas, of a batch.

Where nothing is exchanged on a GPU, it is recorded once as a CUDA graph and replayed: a step of 128
pictures is over before Python could launch its kernels one by one. Steps with exchanges run as they
are: a replay would write no flight record, and no timeout would watch it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from alexnet2012.gradients import GradientSum
from alexnet2012.losses import loss_and_errors, split_loss_and_errors
from alexnet2012.model import AlexNet
from alexnet2012.sharding import Share

WARM_UP = 3  # steps of a shape before it is recorded: kernels are made, libraries set up


class Found(NamedTuple):
    """Of a batch, on its device and unread: the sum of its losses, and how many are mistaken."""

    loss: Tensor
    errors: Tensor


class Gradients:
    """Call it with a batch on every rank: afterwards each parameter's ``grad`` is that of the mean
    loss over the global batch.

    ``gather_logits``: whether every tower gathers them for the loss.
    """

    def __init__(self, model: AlexNet, *, gather_logits: bool = True) -> None:
        self._model, self._gather_logits = model, gather_logits
        self._sum = GradientSum(model, model.mesh)
        mesh = model.mesh
        if model.fused and mesh.replicas == 1:  # sums over replicas need more digits
            for layer in model.layers().values():
                layer.weight.grad_dtype = model.types.activations
        self._records = mesh.device.type == "cuda" and mesh.world_size == 1
        self._alike: tuple[object, int] = (None, 0)  # a shape, and how many steps it has been so
        self._recorded: _Recorded | None = None

    def __call__(self, images: Tensor, labels: Tensor, rows: Share) -> Found:
        """[n, 3, S, S], [n] and which rows of the global batch these are."""
        if not self._records:
            return self._compute(images, labels, rows)
        shape = (images.shape, images.stride(), images.dtype, rows)
        if self._recorded is not None and self._recorded.shape == shape:
            return self._recorded.replayed(images, labels)
        before, steps = self._alike
        self._alike = shape, steps + 1 if shape == before else 1
        if self._alike[1] <= WARM_UP:
            return self._compute(images, labels, rows)
        self._recorded = _Recorded(self._compute, self._model, shape, images, labels, rows)
        return self._recorded.replayed(images, labels)

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


class _Recorded:
    """The work of a step of one shape as a CUDA graph; a replay uses the same memory again."""

    def __init__(
        self,
        work: Callable[[Tensor, Tensor, Share], Found],
        model: AlexNet,
        shape: object,
        images: Tensor,
        labels: Tensor,
        rows: Share,
    ) -> None:
        self.shape = shape
        self._images, self._labels = images.clone(), labels.clone()
        self._graph = torch.cuda.CUDAGraph()
        # What the threads of DALI ask the driver for meanwhile is no part of it.
        with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            self._found = work(self._images, self._labels, rows)
        self._grads = [(parameter, parameter.grad) for parameter in model.parameters()]

    def replayed(self, images: Tensor, labels: Tensor) -> Found:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self._graph.replay()
        for parameter, grad in self._grads:  # a step of another shape left its own there
            parameter.grad = grad
        return self._found
