"""The variants that benchmarks of a full-size step compare, and how they are timed."""

from __future__ import annotations

import json
import math
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack, nullcontext
from functools import cache
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from peers import COMPILED, PEERS, installed_peers, peer_net
from torch import Tensor, nn

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.enums import Device, Precision
from alexnet2012.config.schema import ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.launch import launch, reuse_memory
from alexnet2012.distributed.mesh import Mesh, single_process
from alexnet2012.nn.cost_model import LayerCounts, count_layers
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.nn.precision import DTYPES, allow_tf32
from alexnet2012.training.cuda_graph import WARM_UP, cudnn_benchmark
from alexnet2012.training.train_step import TrainStep
from alexnet2012.utils.shard import Shard

CLASSES, MATRIX, MATRIX_S = 1000, 1536, 0.5
TOGETHER = 20  # steps timed as one on a GPU, which executes them asynchronously
OURS, NO_EXCHANGES = "ours", "no exchanges"


class Arm(NamedTuple):
    """An implementation of the step, its number of processes and its precision."""

    kind: str
    processes: int
    precision: str
    width: float = 1.0  # for OURS only

    @property
    def name(self) -> str:
        processes = "1 process" if self.processes == 1 else f"{self.processes} processes"
        return f"{self.kind}, {processes}, {self.precision}"


def arms() -> list[Arm]:
    on_gpu = torch.cuda.is_available()
    precisions = ["fp32", *(["tf32"] if on_gpu else []), "bf16"]
    two = [2] if not on_gpu or torch.cuda.device_count() > 1 else []
    variants = [Arm(peer, 1, precision) for peer in installed_peers() for precision in precisions]
    for precision in precisions:
        variants += [Arm(OURS, processes, precision) for processes in (1, *two)]
        variants += [Arm(NO_EXCHANGES, processes, precision) for processes in two]
    return variants


class LocalCommunicator(Communicator):
    """Copies this tower's own shard in place of each peer's: no communication."""

    def all_gather(self, x: Tensor, layer: str, direction: str) -> list[Tensor]:
        return [x if tower == self.tower else x.clone() for tower in range(self.towers)]

    def reduce_scatter(self, shards: Sequence[Tensor], layer: str, direction: str) -> Tensor:
        total: Tensor = sum(shards[1:], shards[0])
        return total


def run_apart(work: Callable[..., None], processes: int, *args: Any) -> Any:
    """Run ``work(*args, answer)`` in new processes, so that no variant reuses another's memory.

    Returns the JSON that rank 0 wrote to the file ``answer``.
    """
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "found.json")
        if processes > 1:
            launch(work, processes, *args, answer)
        else:
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                pool.submit(work, *args, answer).result()
        return json.loads(answer.read_text(encoding="utf-8"))


class Timed(NamedTuple):
    """Times of one variant in one round."""

    step_s: list[float]  # in order
    exchange_s: list[float]  # part of it in exchanges, mean over the processes
    matrix_flops: float  # per second, of all processes together
    copied_bytes: float  # read and written per second by a copy on a GPU; infinite on a CPU
    first_step_s: float  # before the others: allocates memory, compiles

    @property
    def median_s(self) -> float:
        return statistics.median(self.step_s)

    @property
    def shares(self) -> list[float]:
        """Percentage of each step spent in exchanges."""
        return [100 * e / s for e, s in zip(self.exchange_s, self.step_s, strict=True)]


def time_together(alike: Sequence[Arm], batch: int, steps: int) -> list[Timed]:
    """One round of variants that have the same processes and precision."""
    return [Timed(*one) for one in run_apart(time_arms, alike[0].processes, alike, batch, steps)]


def time_arms(alike: Sequence[Arm], batch: int, steps: int, answer: Path) -> None:
    """Runs on each process; rank 0 writes the times of each variant, after warm-up steps."""
    mesh, graphs = joined(alike[0]), ExitStack()
    nets = [prepared(arm, batch, mesh, graphs) for arm in alike]
    mesh.barrier()
    product_flops = alike[0].processes * matrix_flops(alike[0], mesh.device)
    mesh.barrier()
    on_gpu = mesh.device.type == "cuda"
    first_s = []
    for _, step in nets:
        with cudnn_benchmark():  # also for the peers
            first_s.append(timed(step, 1, mesh.device, warm_up=False))
            for _ in range(WARM_UP + 1 if on_gpu else 0):
                step()
    copied = copied_bytes(mesh.device)
    times = [Timed([], [], product_flops, copied, seconds) for seconds in first_s]
    in_turns = list(zip(nets, times, strict=True))
    for _ in range(steps):
        in_turns.reverse()  # so that the order has no effect
        for (net, step), one in in_turns:
            before = exchanging_s(net)
            one.step_s.append(step_s(step, mesh, TOGETHER if on_gpu else 1))
            one.exchange_s.append(exchanging_s(net) - before)
    of_ranks = mesh.gather_objects([one.exchange_s for one in times], "seconds")
    for arm, one in enumerate(times):
        one.exchange_s[:] = map(
            statistics.mean, zip(*(rank[arm] for rank in of_ranks), strict=True)
        )
    if mesh.rank == 0:
        answer.write_text(json.dumps(times), encoding="utf-8")
    graphs.close()
    mesh.close()


def step_s(step: Callable[[], None], mesh: Mesh, times: int) -> float:
    """Mean seconds per step, from the start on all processes to the end of the last one."""

    def all_of_them() -> None:
        for _ in range(times):
            step()
        mesh.barrier()

    mesh.barrier()
    return timed(all_of_them, 1, mesh.device, warm_up=False) / times


def exchanging_s(net: nn.Module) -> float:
    return net.comm.traffic.training_seconds() if isinstance(net, AlexNet) else 0.0


def joined(arm: Arm) -> Mesh:
    """Set this process up as in training, and join the mesh of the variant."""
    allow_tf32(Precision(arm.precision))
    if arm.kind in (OURS, NO_EXCHANGES, COMPILED):  # as another allocator does for careful users
        reuse_memory()
    return init_mesh(2)  # one process computes both towers


def prepared(
    arm: Arm, batch: int, mesh: Mesh, graphs: ExitStack
) -> tuple[nn.Module, Callable[[], None]]:
    """The model of a variant, and a function that runs a step of it on a batch of noise.

    ``graphs`` frees the CUDA graphs of the step.
    """
    context: Any = nullcontext()
    if arm.kind in PEERS:
        net = peer_net(arm.kind, CLASSES, mesh.device)
        rates: dict[str, Any] = {"lr": 0.01, "momentum": 0.9, "weight_decay": 0.0005}
        fused = True if arm.kind == COMPILED else None
        optimizer: torch.optim.Optimizer = torch.optim.SGD(net.parameters(), **rates, fused=fused)
        if arm.precision == "bf16":
            context = torch.autocast(mesh.device.type, torch.bfloat16)
    else:
        settings: dict[str, Any] = {"model": ModelConfig(width=arm.width), "mesh": mesh}
        net = AlexNet("paper", CLASSES, precision=arm.precision, **settings)
        if arm.kind == NO_EXCHANGES:
            net.comm = LocalCommunicator(mesh.tower_group, mesh.towers, mesh.tower)
        optimizer = PaperSGD(net, load_recipe("paper").optimizer)
        optimizer.set_rates(LearningRates(0.01, 0.01))
    draw = torch.Generator().manual_seed(0)
    images = (50 * torch.randn(batch, 3, 224, 224, generator=draw)).to(mesh.device)
    images = images.contiguous(
        memory_format=torch.channels_last
    )  # the layout of the input pipeline
    labels = torch.randint(CLASSES, (batch,), generator=draw).to(mesh.device)

    def plain_step() -> None:
        optimizer.zero_grad()
        with context:
            loss = F.cross_entropy(net(images), labels)
        loss.backward()
        optimizer.step()

    if not isinstance(net, AlexNet):
        return net, plain_step
    step = TrainStep(net, optimizer)
    graphs.callback(step.close)
    one_batch = Batch(images, labels, np.arange(batch), Shard(0, batch, batch))
    return net, lambda: step(one_batch)


def matrix_flops(arm: Arm, device: torch.device) -> float:
    """Best FLOP/s of a square matrix product while the other processes do the same."""
    dtype = DTYPES[Precision(arm.precision)].activations
    size = MATRIX if device.type == "cpu" else 8 * MATRIX
    a = torch.randn(size, size, device=device).to(dtype)
    fastest, until = float("inf"), time.perf_counter() + MATRIX_S
    while time.perf_counter() < until:
        fastest = min(fastest, timed(lambda: a @ a, 1, device, warm_up=False))
    return 2 * size**3 / fastest


def copied_bytes(device: torch.device) -> float:
    """Best bytes/s, read and written, of a copy within a GPU's memory."""
    if device.type != "cuda":
        return float("inf")
    source, target = (torch.empty(2**28, device=device).normal_() for _ in range(2))
    fastest = min(timed(lambda: target.copy_(source), 1, device) for _ in range(20))
    return 2 * source.nbytes / fastest


def timed(
    work: Callable[[], Any], times: int, device: torch.device, *, warm_up: bool = True
) -> float:
    def finish() -> None:
        if device.type == "cuda":
            torch.cuda.synchronize()

    if warm_up:
        work()
    finish()
    began = time.perf_counter()
    for _ in range(times):
        work()
    finish()
    return time.perf_counter() - began


def floor_s(batch: int, number_bytes: int, flops: float, copied: float) -> float:
    """Lower bound of a step's seconds at these rates; ``number_bytes`` per activation.

    A matrix product takes the longer of its arithmetic and its memory traffic. The layers after it
    take one pass: forward reads the maps and writes the result; backward reads the gradient and the
    maps and writes a gradient. The update reads w, v and g and writes w and v, in float32.
    """
    layers, flops_of = audited(), layer_flops()
    seconds = 0.0
    for index, layer in enumerate(layers):
        operands = batch * (math.prod(layer.input_shape) + layer.neurons) + layer.weights
        products = 2 if index == 0 else 3  # forward, weight gradient, input gradient
        one = batch * flops_of[layer.name] / products
        seconds += products * max(one / flops, number_bytes * operands / copied)
        if index + 1 < len(layers):
            result = math.prod(layers[index + 1].input_shape)
            touched = batch * (layer.neurons + result + result + 2 * layer.neurons)
            seconds += number_bytes * touched / copied
    weights = sum(layer.weights + layer.biases for layer in layers)
    return seconds + 5 * 4 * weights / copied


def layer_flops(width: float = 1.0) -> dict[str, int]:
    """Multiplications and additions of one image's step, by layer.

    Backward counts twice the forward pass, except in conv1, which needs no input gradient.
    """
    layers = enumerate(audited(width))
    return {layer.name: 2 * layer.multiply_adds * (2 if i == 0 else 3) for i, layer in layers}


@cache
def audited(width: float = 1.0) -> list[LayerCounts]:
    net = AlexNet("paper", CLASSES, model=ModelConfig(width=width), mesh=single_process(Device.cpu))
    return count_layers(net)
