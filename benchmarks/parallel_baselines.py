"""Parallel baselines for the paper's scheme: the same training step, distributed in other ways.

Each scheme gets the whole batch on every process and selects its part; all give the weights that
one process would give. torch's SGD updates them all, so that only the scheme differs.

Shapes: N images of the global batch, P processes, T towers of the network.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.grad_sync import GradientSync
from alexnet2012.distributed.mesh import Mesh, init_mesh
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.shard import Shard


def sgd(parameters: Iterable[Tensor]) -> torch.optim.Optimizer:
    """SGD with the hyperparameters of sec. 5 of the paper."""
    return torch.optim.SGD(parameters, lr=0.01, momentum=0.9, weight_decay=0.0005)


class Scheme(ABC):
    """A model distributed over the processes of this run. Build and use it on every rank."""

    def __init__(
        self,
        recipe: RecipeConfig,
        num_classes: int,
        model: ModelConfig,
        *,
        seed: int = 0,
        precision: Precision = Precision.fp32,
        device: str = "auto",
    ) -> None:
        self._arguments: dict[str, Any] = {
            "recipe": recipe,
            "num_classes": num_classes,
            "model": model,
            "seed": seed,
            "precision": precision,
        }
        self._device = device
        self._build()

    @abstractmethod
    def _build(self) -> None: ...

    @abstractmethod
    def step(self, images: Tensor, labels: Tensor) -> None:
        """Forward, backward and update: [N, 3, S, S], [N]."""

    @abstractmethod
    def full_state_dict(self) -> dict[str, Tensor]:
        """The parameters of the whole model, on every rank. Collective."""

    def _net(self, towers: int) -> AlexNet:
        return AlexNet(mesh=init_mesh(towers, device=self._device), **self._arguments)

    @property
    def _towers(self) -> int:
        towers: int = self._arguments["recipe"].towers
        return towers


class Towers(Scheme):
    """The paper's scheme: each process holds one tower and processes the whole batch."""

    def _build(self) -> None:
        self._model = self._net(self._towers)
        self._sums = GradientSync(self._model, self._model.mesh)
        self._optimizer = sgd(self._model.parameters())

    def step(self, images: Tensor, labels: Tensor) -> None:
        rows = _rows(len(images), self._model.mesh)
        logits = self._model(images[rows.start : rows.stop], rows)
        loss = F.cross_entropy(logits, labels[rows.start : rows.stop], reduction="sum")
        self._optimizer.zero_grad()
        (loss / len(images)).backward()
        self._sums.wait()
        self._optimizer.step()

    def full_state_dict(self) -> dict[str, Tensor]:
        return self._model.full_state_dict()


class Replicas(Towers):
    """Plain data parallelism: each process holds the whole model and processes N/P images."""

    @property
    def _towers(self) -> int:
        return 1


class DDP(Scheme):
    """Data parallelism by torch's DistributedDataParallel, which reduces gradients in buckets."""

    def _build(self) -> None:
        self._model = self._net(towers=1)
        self._parallel = self._distribute(self._model)
        self._optimizer = sgd(self._parallel.parameters())

    def _distribute(self, model: AlexNet) -> torch.nn.Module:
        return DistributedDataParallel(model)

    def step(self, images: Tensor, labels: Tensor) -> None:
        rows = _rows(len(images), self._model.mesh)
        logits = self._parallel(images[rows.start : rows.stop], rows)
        loss = F.cross_entropy(
            logits, labels[rows.start : rows.stop]
        )  # a mean; DDP averages it over P
        self._optimizer.zero_grad()
        loss.backward()
        self._optimizer.step()

    def full_state_dict(self) -> dict[str, Tensor]:
        return self._model.full_state_dict()


class FSDP2(DDP):
    """Each process holds 1/P of every parameter and gathers those of a layer when it is used."""

    def _distribute(self, model: AlexNet) -> torch.nn.Module:
        model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
        model.fused = False  # its kernels read biases after FSDP has freed them
        for layer in model.layers().values():
            fully_shard(layer)
        fully_shard(model)
        return model

    def full_state_dict(self) -> dict[str, Tensor]:
        return {n: p.detach().full_tensor() for n, p in self._model.named_parameters()}  # type: ignore[attr-defined]


class OneWeirdTrick(Scheme):
    """Data-parallel convs, fully connected layers split by towers; gathers the batch before fc6.

    Source: Krizhevsky 2014, "One weird trick for parallelizing convolutional neural networks",
    scheme (a).
    """

    def _build(self) -> None:
        self._convs, self._units = self._net(towers=1), self._net(self._towers)
        convs = list(self._arguments["recipe"].convs)
        of_convs, of_units = (
            [p for n, p in net.named_parameters() if (n.split(".")[0] in convs) is wanted]
            for net, wanted in ((self._convs, True), (self._units, False))
        )
        self._sums = [GradientSync(net, net.mesh) for net in (self._convs, self._units)]
        self._optimizer = sgd([*of_convs, *of_units])

    def step(self, images: Tensor, labels: Tensor) -> None:
        own, rows = (_rows(len(images), net.mesh) for net in (self._convs, self._units))
        maps = _GatherRows.apply(  # type: ignore[no-untyped-call]
            self._convs.conv_features(images[own.start : own.stop]), self._units.comm
        )
        units = self._units
        logits = units.gather_logits(units.logits_shard(units.hidden_features(maps, rows)))
        loss = F.cross_entropy(logits, labels[rows.start : rows.stop], reduction="sum")
        self._optimizer.zero_grad()
        (loss / len(images)).backward()
        for sums in self._sums:
            sums.wait()
        self._optimizer.step()

    def full_state_dict(self) -> dict[str, Tensor]:
        convs, units = self._convs.full_state_dict(), self._units.full_state_dict()
        by_data = self._arguments["recipe"].convs
        return {n: (convs if n.split(".")[0] in by_data else units)[n] for n in convs}


class _GatherRows(torch.autograd.Function):
    """Forward: [n, ...] → [T·n, ...].  Backward: this tower's rows, summed over towers."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, comm: Communicator) -> Tensor:
        ctx.comm = comm
        return torch.cat(comm.all_gather(x, "batch", "forward"))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        parts = grads[0].chunk(ctx.comm.towers)
        return ctx.comm.reduce_scatter(parts, "batch", "backward"), None


SCHEMES: dict[str, type[Scheme]] = {
    "towers": Towers,
    "replicas": Replicas,
    "ddp": DDP,
    "fsdp2": FSDP2,
    "one weird trick": OneWeirdTrick,
}


def _rows(batch: int, mesh: Mesh) -> Shard:
    """Rows of the batch that belong to this process's replica."""
    if batch % mesh.world_size:
        remedy = f"must divide evenly over {mesh.world_size} processes"
        raise ConfigError("batch", batch, remedy)
    count = batch // mesh.replicas
    return Shard(mesh.replica * count, (mesh.replica + 1) * count, batch)
