"""Kernel rates and link speed of this machine, from a few real steps.

The layers are timed within the steps, in as many processes at once as the plan has on a machine:
on a CPU these share its arithmetic units and its memory. Seconds in exchanges are left out; the
link is timed by itself. On a GPU the clock is the GPU's, which has each step before it begins: it
waits for nothing, as in the graph that a training step is there.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn

from alexnet2012.config.schema import PlanConfig
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.launch import launch, reuse_memory
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.cost_model import Layout, Link, Work
from alexnet2012.nn.losses import loss_and_errors
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.nn.precision import allow_tf32
from alexnet2012.training.cuda_graph import cudnn_benchmark
from alexnet2012.training.train_step import keep_gradients_in_bf16

ROWS, GPU_ROWS, STEPS = 64, 1024, 3  # pictures at most, and how often
PAUSE_CYCLES = 2 * 10**8  # of a GPU, about 0.1 s: longer than it takes to hand a step over
SMALL_BYTES, LARGE_BYTES, MESSAGES = 2**12, 2**22, 10  # what times a link
UPDATE = "update"
Seconds = dict[tuple[str, str], float]  # by layer and direction


class Measured(NamedTuple):
    """Work of one process at the plan's rows; its link to a peer, where it has one on a CPU."""

    work: Work
    link: Link | None


def measure(config: PlanConfig, layout: Layout) -> Measured:
    """Start the processes, time them, and scale from the pictures that were timed to the plan's.

    Raises:
        RunError, ConfigError: as a training run would.
    """
    rows = min(GPU_ROWS if _on_gpu(config) else ROWS, layout.rows)
    processes = processes_here(config)
    with tempfile.TemporaryDirectory(prefix="alexnet2012-") as folder:
        answer = Path(folder, "seconds.json")
        launch(worker, processes, config, processes, rows, answer)
        found = json.loads(answer.read_text(encoding="utf-8"))
    # One process that held all towers did the work of each.
    part = 1 / layout.towers if processes == 1 else 1.0
    scale = part * layout.rows / found["rows"]
    layers = {name: (scale * there, scale * back) for name, there, back in found["layers"]}
    link = Link(*found["link"]) if found["link"] else None
    return Measured(Work(layers, part * found["update_s"]), link)


def processes_here(config: PlanConfig) -> int:
    """Those of a machine, as far as this one has cores for whole nets of them.

    One where it has not, which then holds all towers; one on CUDA, where GPUs share nothing.
    """
    if _on_gpu(config):
        return 1
    cores = len(os.sched_getaffinity(0))
    return max(1, min(config.gpus, cores) // config.mesh.towers * config.mesh.towers)


def _on_gpu(config: PlanConfig) -> bool:
    return single_process(config.mesh.device).device.type == "cuda"


def worker(config: PlanConfig, processes: int, rows: int, answer: Path) -> None:
    """One process: rank 0 writes the slowest rank's seconds."""
    reuse_memory()
    allow_tf32(config.precision)
    on = config.mesh.device
    mesh = single_process(on) if processes == 1 else init_mesh(config.mesh.towers, device=on)
    try:
        seconds, rows = _time_what_fits(config, mesh, rows)
        slowest = torch.tensor(list(seconds.values()), dtype=torch.float64)
        link = None
        if mesh.world_size > 1:
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            link = time_link(mesh)
        if mesh.rank == 0:
            by_key = dict(zip(seconds, slowest.tolist(), strict=True))
            names = dict.fromkeys(name for name, _ in by_key if name != UPDATE)
            found = {
                "rows": rows,
                "layers": [(n, by_key[n, "forward"], by_key[n, "backward"]) for n in names],
                "update_s": by_key[UPDATE, ""],
                "link": link,
            }
            answer.write_text(json.dumps(found), encoding="utf-8")
    finally:
        mesh.close()


def _time_what_fits(config: PlanConfig, mesh: Mesh, rows: int) -> tuple[Seconds, int]:
    """With as many pictures as a GPU has room for, where one holds the towers of several."""
    while True:
        try:
            return time_steps(config, mesh, rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        gc.collect()  # the net and its hooks hold each other
        torch.cuda.empty_cache()


def time_steps(
    config: PlanConfig, mesh: Mesh, rows: int, clock: type[Laps] | None = None
) -> Seconds:
    """Mean seconds of a step, without those in exchanges, for each layer with what follows it."""
    net = AlexNet(
        config.recipe,
        config.classes,
        model=config.model,
        mesh=mesh,
        precision=config.precision,
    )
    optimizer = PaperSGD(net, config.recipe.optimizer)
    optimizer.set_rates(LearningRates(1e-9, 1e-9))
    if config.nodes * config.gpus == config.mesh.towers:  # replicas sum theirs as float32
        keep_gradients_in_bf16(net)
    draw, side = torch.Generator().manual_seed(0), config.model.input_size
    images = 50 * torch.randn(rows, 3, side, side, generator=draw)
    images = images.to(mesh.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(rows, dtype=torch.long, device=mesh.device)
    laps = (clock or Laps)(net)
    for step in range(1 + STEPS):
        if step == 1:  # the first one is not counted: memory is fetched, kernels are made
            laps.seconds.clear()
        laps.begin()
        with cudnn_benchmark():
            loss, _ = loss_and_errors(net(images), labels)
            laps.end_forward()
            optimizer.zero_grad()
            (loss / rows).backward()
        laps.end_backward()
        optimizer.step()
        laps.end()
    return {key: seconds / STEPS for key, seconds in laps.seconds.items()}


class Laps:
    """A clock that stands still in exchanges, read where one layer ends and the next begins."""

    def __init__(self, net: AlexNet) -> None:
        self.seconds: Seconds = defaultdict(float)
        self._net, self._names, self._layer = net, list(net.layers()), ""
        self._on_gpu = net.mesh.device.type == "cuda"
        # Of the clock, with what ends there: seconds, or a GPU's events.
        self._readings: list[tuple[tuple[str, str], Any]] = []
        for name, layer in net.layers().items():
            layer.register_forward_pre_hook(self._entering(name))

    def begin(self) -> None:
        """Of a step."""
        if self._on_gpu:
            torch.cuda._sleep(PAUSE_CYCLES)
        self._layer = self._names[0]
        self.lap("", "")

    def end_forward(self) -> None:
        self.lap(self._layer, "forward")

    def end_backward(self) -> None:
        self.lap(self._names[0], "backward")

    def end(self) -> None:
        """Of a step, after its update."""
        self.lap(UPDATE, "")
        if self._on_gpu:
            torch.cuda.synchronize()
        for (_, before), (key, after) in pairwise(self._readings):
            passed = before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
            self.seconds[key] += passed
        self._readings.clear()

    def lap(self, name: str, direction: str) -> None:
        """What has passed since the last lap belongs to ``name``."""
        self._readings.append(((name, direction), self._now()))

    def _entering(self, name: str) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
        def hook(module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self.lap(self._layer, "forward")
            self._layer = name
            if inputs[0].requires_grad:  # its gradient is the last thing that the layer computes
                inputs[0].register_hook(lambda grad: self.lap(name, "backward"))

        return hook

    def _now(self) -> Any:
        if not self._on_gpu:
            return time.perf_counter() - self._net.comm.traffic.training_seconds()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event


def time_link(mesh: Mesh) -> Link:
    """Between the processes of one machine: an exchange and its return, small and large."""
    group, parts, part = (
        (mesh.tower_group, mesh.towers, mesh.tower)
        if mesh.towers > 1
        else (mesh.data_group, mesh.replicas, mesh.replica)
    )
    comm = Communicator(group, parts, part)

    def seconds(size: int) -> float:
        times, own = [], torch.zeros(size // 4)
        for _ in range(MESSAGES):
            mesh.barrier()
            began = time.perf_counter()
            comm.reduce_scatter(comm.all_gather(own, "link", "there"), "link", "back")
            times.append((time.perf_counter() - began) / 2)
        return median(times)

    small_s, large_s = seconds(SMALL_BYTES), seconds(LARGE_BYTES)
    peers = parts - 1
    bytes_per_s = peers * (LARGE_BYTES - SMALL_BYTES) / max(large_s - small_s, 1e-9)
    return Link(bytes_per_s, small_s / peers)
