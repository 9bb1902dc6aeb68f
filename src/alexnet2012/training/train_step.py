"""One training step: forward, backward, gradient all-reduce over replicas, optimizer update."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor
from torch.profiler import record_function

from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.grad_sync import GradientSync
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.losses import loss_and_errors, split_loss_and_errors
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training.cuda_graph import CudaGraph, GraphedStep, Recorder, Sums, can_capture
from alexnet2012.utils.shard import Shard, padded_shard_size


class StepOutput(NamedTuple):
    """Loss and errors of one step, on the host."""

    global_loss: float  # cross-entropy summed over the global batch, the same on every rank
    loss: float  # summed over this replica's images
    errors: float  # top-1 errors among them; ties share the credit


class TrainStep:
    """Forward, backward and update. Collective: every rank calls it with its batch.

    Gradients are those of the mean loss over the global batch. ``gather_logits``: all-gather the
    logits of all classes for the loss; otherwise towers exchange four numbers per image.
    ``micro_batch``: accumulate the gradients of parts of a batch, each of at most this many images.
    ``cuda_graph``: on a GPU, capture steps as CUDA graphs and replay them. ``recorder``: captures
    them instead, on any device.
    """

    def __init__(
        self,
        model: AlexNet,
        optimizer: PaperSGD,
        *,
        gather_logits: bool = True,
        micro_batch: int | None = None,
        cuda_graph: bool = True,
        recorder: Callable[[], Recorder] | None = None,
    ) -> None:
        self.model, self.optimizer, self.gather_logits = model, optimizer, gather_logits
        self._micro_batch = micro_batch
        self._grad_sync = GradientSync(model, model.mesh)
        self._run = self._forward_backward if micro_batch is None else self._accumulate
        on_gpu = model.mesh.device.type == "cuda"
        if on_gpu and micro_batch is None:
            keep_gradients_in_bf16(model)
        if on_gpu and recorder is None and cuda_graph and can_capture(model):
            recorder = CudaGraph
        self._graphed = GraphedStep(model, self, recorder) if on_gpu or recorder else None

    def __call__(self, batch: Batch) -> StepOutput:
        """Train on one batch; the weights are unchanged if the global loss is not finite."""
        step = self if self._graphed is None else self._graphed
        sums = step.gradients(batch.images, batch.labels, batch.rows)
        numbers = start_copy_to_host(*sums)
        step.update(sums[0])  # enqueued on a GPU before the host has read the loss
        return StepOutput(*numbers())

    def close(self) -> None:
        """Free CUDA graphs, before the process group is destroyed."""
        if self._graphed is not None:
            self._graphed.close()

    def gradients(self, images: Tensor, labels: Tensor, rows: Shard) -> Sums:
        """[n, 3, S, S], [n] → global loss, loss, errors; ``grad`` is summed over replicas."""
        self.model.zero_grad()
        has_replicas = self.model.mesh.replicas > 1
        if has_replicas:
            self._grad_sync.discard()  # what a failed capture has left
        loss, errors = self._run(images, labels, rows)
        global_loss = loss
        if has_replicas:
            self._grad_sync.wait()
            global_loss = loss.clone()  # not summed over towers: theirs are equal
            self.model.mesh.sum_over_replicas([global_loss], "loss")
        return global_loss, loss, errors

    def update(self, global_loss: Tensor) -> None:
        with record_function("update"):
            self.optimizer.step(loss=global_loss)

    def _forward_backward(
        self, images: Tensor, labels: Tensor, rows: Shard
    ) -> tuple[Tensor, Tensor]:
        """[n, 3, S, S], [n] → summed loss [], top-1 errors []; adds to every ``grad``."""
        model = self.model
        with record_function("forward"):
            if self.gather_logits:
                loss, errors = loss_and_errors(model(images, rows), labels)
            else:
                logits = model.logits_shard(model.features(images, rows))
                loss, errors = split_loss_and_errors(logits, labels, model.fc8.rows, model.comm)
        with record_function("backward"):
            (loss / rows.total).backward()  # of the global batch: smaller replicas weigh less
        return loss.detach(), errors

    def _accumulate(self, images: Tensor, labels: Tensor, rows: Shard) -> tuple[Tensor, Tensor]:
        """The same in micro-batches: only one has its activations in memory at a time."""
        parts = self.micro_batches(rows)
        sizes = [part.size for part in parts]
        outputs: list[tuple[Tensor, Tensor]] = []
        for part, x, y in zip(parts, images.split(sizes), labels.split(sizes), strict=True):
            if outputs:
                self.model.rewind_dropout(rows)  # masks are those of the whole batch
            self._grad_sync.enabled = len(outputs) == len(parts) - 1  # once per step
            outputs.append(self._forward_backward(x, y, part))
        losses, errors = zip(*outputs, strict=True)
        return torch.stack(losses).sum(), torch.stack(errors).sum()

    def micro_batches(self, rows: Shard) -> list[Shard]:
        """Parts of this replica's rows: equally many on every replica, so ranks stay in step."""
        if self._micro_batch is None:
            return [rows]
        largest = padded_shard_size(rows.total, self.model.mesh.replicas)
        return rows.split(-(-largest // self._micro_batch))


def keep_gradients_in_bf16(model: AlexNet) -> None:
    """Keep gradients of float32 weights in bf16 if the forward pass computes in bf16."""
    if model.fused and model.mesh.replicas == 1:  # sums over replicas need more precision
        for layer in model.layers().values():
            layer.weight.grad_dtype = model.types.activations


def start_copy_to_host(*numbers: Tensor) -> Callable[[], list[float]]:
    """Start copying scalars to the host; the returned function waits only for that copy."""
    stacked = torch.stack([number.double() for number in numbers])
    if not stacked.is_cuda:
        return stacked.tolist
    on_host = stacked.to("cpu", non_blocking=True)  # to pinned memory
    arrived = torch.cuda.Event()
    arrived.record()

    def read() -> list[float]:
        arrived.synchronize()
        return on_host.tolist()

    return read
