"""A training step as CUDA graphs, captured once on all ranks and replayed from then on.

A step of 128 images takes less time on the GPU than Python needs to launch its kernels. One graph
holds forward, backward, the exchanges between towers and the sums over replicas. The update is a
second one, so that the host can read the loss and prepare the next step while it runs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from alexnet2012.config.schema import RunError
from alexnet2012.distributed.watchdog.flight_recorder import REPLAY, FlightEntry
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.kernels.autograd import kernels_available
from alexnet2012.utils.logs import log
from alexnet2012.utils.shard import Shard

WARM_UP = 3  # eager steps before the capture: they compile kernels and initialize libraries
MAX_EXCHANGES = 4096  # of a step
Sums = tuple[Tensor, Tensor, Tensor]  # [] each: global loss, loss, top-1 errors
T = TypeVar("T")


class Step(Protocol):
    """The two parts of a training step."""

    def gradients(self, images: Tensor, labels: Tensor, rows: Shard) -> Sums: ...
    def update(self, global_loss: Tensor) -> None: ...


class Recorder(Protocol):
    """Captures work without running it, and runs it at each replay, in the same memory."""

    def capture(self, work: Callable[[], T]) -> T: ...
    def replay(self) -> None: ...
    def close(self) -> None: ...


class CudaGraph:
    """The recorder of a GPU. NCCL's collectives can be captured, gloo's cannot."""

    def __init__(self) -> None:
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], T]) -> T:
        # thread_local: DALI's threads may call the CUDA driver during the capture. The outer
        # context restores the stream, which a failed capture leaves changed.
        outer = torch.cuda.stream(torch.cuda.current_stream())
        with outer, torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
            return work()

    def replay(self) -> None:
        self._graph.replay()

    def close(self) -> None:
        self._graph.reset()


def can_capture(model: AlexNet) -> bool:
    """Whether ``CudaGraph`` can capture steps: update kernels check the loss on the device."""
    has_kernels = kernels_available(model.mesh.device, model.types.parameters)
    return has_kernels and (model.mesh.world_size == 1 or dist.get_backend() == "nccl")


class GraphedStep:
    """Wraps a training step: runs it eagerly at first, then replays it. Collective.

    Whether a step is replayed depends on the size of the global batch, so all ranks decide alike:
    batches smaller than the largest one so far (the last batch of an epoch) run eagerly. Without a
    ``recorder`` all do.
    """

    def __init__(
        self, model: AlexNet, eager: Step, recorder: Callable[[], Recorder] | None = CudaGraph
    ) -> None:
        self._model, self._eager, self._recorder = model, eager, recorder
        self._full_batch = self._full_steps = 0  # images in a full batch, steps of that size
        self._graphs: _Graphs | None = None
        self._replaying: _Graphs | None = None  # in this step

    def gradients(self, images: Tensor, labels: Tensor, rows: Shard) -> Sums:
        self._replaying = None
        if rows.total < self._full_batch:
            return self._eager.gradients(images, labels, rows)
        if rows.total > self._full_batch:
            self.close()
            self._full_batch, self._full_steps = rows.total, 0
        self._full_steps += 1
        if self._full_steps <= WARM_UP:
            with cudnn_benchmark():
                return self._eager.gradients(images, labels, rows)
        if self._graphs is None and self._recorder is not None:
            self._capture(self._recorder, images, labels, rows)
        if self._graphs is None or not self._graphs.fit(images, rows):
            return self._eager.gradients(images, labels, rows)
        self._replaying = self._graphs
        return self._replaying.replay_gradients(images, labels)

    def update(self, global_loss: Tensor) -> None:
        if self._replaying is not None:
            self._replaying.replay_update()
        else:
            self._eager.update(global_loss)

    def close(self) -> None:
        """Free the graphs: destroying a process group waits for graphs with its collectives."""
        if self._graphs is not None:
            self._graphs.close()
        self._graphs = self._replaying = None

    def _capture(
        self, recorder: Callable[[], Recorder], images: Tensor, labels: Tensor, rows: Shard
    ) -> None:
        """Capture the step on all ranks; if one of them cannot, none does."""
        mesh, problem = self._model.mesh, None
        try:
            self._graphs = _Graphs(self._model, self._eager, recorder, images, labels, rows)
        except RunError:
            raise
        except RuntimeError as error:  # a graph needs as much memory again as an eager step
            problem = str(error).partition("\n")[0]
        problems = mesh.gather_objects(problem, "capture")
        failed = [rank for rank, text in enumerate(problems) if text is not None]
        if failed:
            self.close()
            self._recorder = None
            if mesh.rank == 0:
                text = "training continues without CUDA graphs; rank %d cannot capture a step: %s"
                log.warning(text, failed[0], problems[failed[0]])
            return
        assert self._graphs is not None
        exchanges, begun = self._graphs.exchanges, self._graphs.begun
        named = {f"exchange {e.position}": f"{e.name}, {e.sent_bytes} bytes" for e in exchanges}
        remedy = "start every rank with the same code and library versions"
        mesh.check_same("captured step", named, remedy, within_replica=True)
        mesh.watchdog.this_rank.record.set_graph(exchanges, lambda: int(begun))


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


class _Graphs:
    """A captured step; every replay uses the same input, output and gradient memory."""

    def __init__(
        self,
        model: AlexNet,
        step: Step,
        recorder: Callable[[], Recorder],
        images: Tensor,
        labels: Tensor,
        rows: Shard,
    ) -> None:
        # Stored in the network's activation type: fewer bytes to copy.
        self._images = images.to(model.types.activations, copy=True)
        self._labels, self._rows = labels.clone(), rows
        self._model, self._step, self._mode = model, step, _mode(model)
        self.exchanges: list[FlightEntry] = []
        # How many of them a replay has begun: written by the GPU, read by the watchdog.
        self.begun = torch.zeros((), dtype=torch.int64, pin_memory=images.is_cuda)
        self._counts = torch.arange(MAX_EXCHANGES + 2, device=images.device)
        self._gradients, self._update = recorder(), recorder()
        self._sums = self._gradients.capture(self._captured_gradients)
        self._grads = [(parameter, parameter.grad) for parameter in model.parameters()]
        self._update.capture(lambda: step.update(self._sums[0]))
        self._sent_bytes = sum(exchange.sent_bytes for exchange in self.exchanges)

    def _captured_gradients(self) -> Sums:
        """Run the eager step; its exchanges and bytes are recorded as those of each replay."""
        comm = self._model.comm
        self.exchanges.clear()
        with (
            comm.traffic.apart() as self._traffic,
            self._model.mesh.watchdog.capturing(self._begin),
        ):
            sums = self._step.gradients(self._images, self._labels, self._rows)
        if self.exchanges:
            self._count(len(self.exchanges) + 1)  # all have ended
        return sums

    def _begin(self, layer: str, direction: str, sent_bytes: int) -> None:
        position = len(self.exchanges) + 1
        self.exchanges.append(FlightEntry(0, 0, sent_bytes, layer, direction, 0, 0, position))
        self._count(position)

    def _count(self, begun: int) -> None:
        self.begun.copy_(self._counts[begun], non_blocking=True)

    def fit(self, images: Tensor, rows: Shard) -> bool:
        same = images.shape == self._images.shape and rows == self._rows
        return same and _mode(self._model) == self._mode

    def replay_gradients(self, images: Tensor, labels: Tensor) -> Sums:
        self._images.copy_(images)
        self._labels.copy_(labels)
        self.begun.zero_()  # the last replay has ended: its loss has been read
        with self._model.mesh.watchdog.exchange("step", REPLAY, self._sent_bytes):
            self._gradients.replay()
        self._model.comm.traffic.add_bytes(self._traffic)
        for parameter, grad in self._grads:  # an eager step may have replaced them
            parameter.grad = grad
        return self._sums

    def replay_update(self) -> None:
        self._update.replay()

    def close(self) -> None:
        self._gradients.close()
        self._update.close()


def _mode(model: AlexNet) -> tuple[Any, ...]:
    """State of the model that decides which kernels a step runs."""
    return model.training, model.fused, *(p.requires_grad for p in model.parameters())
