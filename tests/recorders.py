"""Stands in for a CUDA graph, which needs a GPU, and with exchanges one GPU per process."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from alexnet2012 import AlexNet
from alexnet2012.nn.optim import PaperSGD

T = TypeVar("T")


class NothingSent:
    """The work of a collective that does not run."""

    def wait(self) -> None:
        return None


class ComputesAgain:
    """A capture sends nothing and leaves no trace; a replay computes again in the same memory."""

    open = 0  # recorders that hold work

    def __init__(self, model: AlexNet, optimizer: PaperSGD) -> None:
        self._model, self._optimizer = model, optimizer
        self._work: Callable[[], Any] | None = None

    def capture(self, work: Callable[[], T]) -> T:
        state = self._state()
        before = [tensor.clone() for tensor in state]
        with pytest.MonkeyPatch.context() as patch:
            for collective in ("all_to_all_single", "all_reduce"):
                patch.setattr(dist, collective, lambda *_, **__: NothingSent())
            output = work()
        with torch.no_grad():
            for tensor, value in zip(state, before, strict=True):
                tensor.copy_(value)
        self._work, self._results = work, self._results_of(output)
        ComputesAgain.open += 1
        return output

    def replay(self) -> None:
        assert self._work is not None
        new = self._results_of(self._work())
        with torch.no_grad():
            for tensor, value in zip(self._results, new, strict=True):
                tensor.copy_(value)

    def close(self) -> None:
        ComputesAgain.open -= 1
        self._work = None

    def _state(self) -> list[Tensor]:
        parameters = list(self._model.parameters())
        velocities = [self._optimizer.velocity(parameter) for parameter in parameters]
        return [*parameters, *velocities, *(d.state for d in self._model.dropouts.values())]

    def _results_of(self, output: Any) -> list[Tensor]:
        grads = [p.grad for p in self._model.parameters() if p.grad is not None]
        return [*(output or ()), *grads]


class OutOfMemory(ComputesAgain):
    """As on a GPU without room for a graph."""

    def capture(self, work: Callable[[], T]) -> T:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB.\nOf it 0 free.")
