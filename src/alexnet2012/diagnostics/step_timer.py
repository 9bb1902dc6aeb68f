"""Time the layers of a few real training steps, and the link between processes.

Layers are timed in as many concurrent processes as the plan has per machine, because processes on
a CPU share its cores and memory bandwidth. Time spent in exchanges is excluded; the link is timed
separately. On a GPU, CUDA events are used, and all kernels of a step are queued before the first
one runs, so that launch overhead does not count: in training a step is a CUDA graph.
"""

from __future__ import annotations

import gc
import json
import os
import tempfile
import time
from collections import defaultdict
from functools import partial
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

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
from alexnet2012.utils.logs import announce

MAX_IMAGES, MAX_GPU_IMAGES, STEPS = 64, 1024, 3
PAUSE_CYCLES = 2 * 10**8  # about 0.1 s on a GPU, longer than it takes to queue a step
SMALL_BYTES, LARGE_BYTES, MESSAGES = 2**12, 2**22, 10  # for the timing of a link
UPDATE = "update"
Seconds = dict[tuple[str, str], float]  # by layer and direction


def measure(config: PlanConfig, layout: Layout) -> tuple[Work, Link | None]:
    """Seconds of one process at the plan's batch size, and on a CPU the link to a peer if any.

    A few steps are timed in new processes, and the times scaled to the batch size.
    """
    rows = min(MAX_GPU_IMAGES if _on_gpu(config) else MAX_IMAGES, layout.rows)
    processes = local_processes(config)
    announce("timing training steps on this machine; card=… or tflops=… needs no timing")
    with tempfile.TemporaryDirectory(prefix="alexnet2012-") as folder:
        output = Path(folder, "seconds.json")
        launch(worker, processes, config, processes, rows, output)
        timings = json.loads(output.read_text(encoding="utf-8"))
    # A single process held all towers and did the work of each.
    share = 1 / layout.towers if processes == 1 else 1.0
    scale = share * layout.rows / timings["rows"]
    layers = {
        name: (scale * forward_s, scale * backward_s)
        for name, forward_s, backward_s in timings["layers"]
    }
    link = Link(*timings["link"]) if timings["link"] else None
    return Work(layers, share * timings["update_s"]), link


def local_processes(config: PlanConfig) -> int:
    """How many processes to time: those of one machine, limited to the cores of this one.

    A multiple of the towers; or 1, which then holds all towers, if there are too few cores.
    """
    if _on_gpu(config):
        return 1  # GPUs share nothing
    cores = len(os.sched_getaffinity(0))
    return max(1, min(config.gpus, cores) // config.mesh.towers * config.mesh.towers)


def _on_gpu(config: PlanConfig) -> bool:
    return single_process(config.mesh.device).device.type == "cuda"


def worker(config: PlanConfig, processes: int, rows: int, output: Path) -> None:
    """Runs on each rank; rank 0 writes the times of the slowest rank."""
    reuse_memory()
    allow_tf32(config.precision)
    towers, device = config.mesh.towers, config.mesh.device
    mesh = single_process(device) if processes == 1 else init_mesh(towers, device=device)
    try:
        seconds, rows = _time_steps_that_fit(config, mesh, rows)
        slowest = torch.tensor(list(seconds.values()), dtype=torch.float64)
        link = None
        if mesh.world_size > 1:
            dist.all_reduce(slowest, dist.ReduceOp.MAX)
            link = time_link(mesh)
        if mesh.rank == 0:
            by_key = dict(zip(seconds, slowest.tolist(), strict=True))
            names = dict.fromkeys(name for name, _ in by_key if name != UPDATE)
            timings = {
                "rows": rows,
                "layers": [(n, by_key[n, "forward"], by_key[n, "backward"]) for n in names],
                "update_s": by_key[UPDATE, ""],
                "link": link,
            }
            output.write_text(json.dumps(timings), encoding="utf-8")
    finally:
        mesh.close()


def _time_steps_that_fit(config: PlanConfig, mesh: Mesh, rows: int) -> tuple[Seconds, int]:
    """Halve the number of images until a step fits in GPU memory."""
    while True:
        try:
            return time_steps(config, mesh, rows), rows
        except torch.OutOfMemoryError:
            if rows == 1:
                raise
        rows //= 2
        gc.collect()  # the model and its hooks form a reference cycle
        torch.cuda.empty_cache()


def time_steps(
    config: PlanConfig, mesh: Mesh, rows: int, timer: type[LayerTimer] | None = None
) -> Seconds:
    """Mean seconds per step of each layer and its epilogue, exchanges excluded."""
    model = AlexNet(
        config.recipe, config.classes, model=config.model, mesh=mesh, precision=config.precision
    )
    optimizer = PaperSGD(model, config.recipe.optimizer)
    optimizer.set_rates(LearningRates(1e-9, 1e-9))
    if config.nodes * config.gpus == config.mesh.towers:  # else gradients are summed in float32
        keep_gradients_in_bf16(model)
    generator, size = torch.Generator().manual_seed(0), config.model.input_size
    images = 50 * torch.randn(rows, 3, size, size, generator=generator)
    images = images.to(mesh.device).contiguous(memory_format=torch.channels_last)
    labels = torch.zeros(rows, dtype=torch.long, device=mesh.device)
    laps = (timer or LayerTimer)(model)
    for step in range(1 + STEPS):
        if step == 1:  # the first step is a warm-up: it allocates memory and compiles kernels
            laps.seconds.clear()
        laps.begin()
        with cudnn_benchmark():
            loss, _ = loss_and_errors(model(images), labels)
            laps.end_forward()
            optimizer.zero_grad()
            (loss / rows).backward()
        laps.end_backward()
        optimizer.step()
        laps.end()
    return {key: seconds / STEPS for key, seconds in laps.seconds.items()}


class LayerTimer:
    """Seconds per layer and direction, read at the boundaries of layers; exchanges are excluded."""

    def __init__(self, model: AlexNet) -> None:
        self.seconds: Seconds = defaultdict(float)
        self._model, self._names, self._layer = model, list(model.layers()), ""
        self._on_gpu = model.mesh.device.type == "cuda"
        # (the layer and direction that end here, seconds or a CUDA event)
        self._readings: list[tuple[tuple[str, str], Any]] = []
        for name, layer in model.layers().items():
            layer.register_forward_pre_hook(partial(self._enter, name))

    def begin(self) -> None:
        if self._on_gpu:
            torch.cuda._sleep(PAUSE_CYCLES)
        self._layer = self._names[0]
        self.lap("", "")

    def end_forward(self) -> None:
        self.lap(self._layer, "forward")

    def end_backward(self) -> None:
        self.lap(self._names[0], "backward")

    def end(self) -> None:
        """End a step, after its weight update."""
        self.lap(UPDATE, "")
        if self._on_gpu:
            torch.cuda.synchronize()
        for (_, before), (key, after) in pairwise(self._readings):
            elapsed_s = before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
            self.seconds[key] += elapsed_s
        self._readings.clear()

    def lap(self, name: str, direction: str) -> None:
        """Attribute the time since the last call to ``name``."""
        now: Any
        if self._on_gpu:
            now = torch.cuda.Event(enable_timing=True)
            now.record()
        else:
            now = time.perf_counter() - self._model.comm.traffic.training_seconds()
        self._readings.append(((name, direction), now))

    def _enter(self, name: str, module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        self.lap(self._layer, "forward")
        self._layer = name
        if inputs[0].requires_grad:  # the last gradient that the layer computes
            inputs[0].register_hook(lambda grad: self.lap(name, "backward"))


def time_link(mesh: Mesh) -> Link:
    """Bandwidth and latency between processes of one machine, from small and large exchanges."""
    comm = Communicator(mesh.tower_group, mesh.towers, mesh.tower)
    if mesh.towers == 1:
        comm = Communicator(mesh.data_group, mesh.replicas, mesh.replica)

    def seconds(size: int) -> float:
        times, x = [], torch.zeros(size // 4)
        for _ in range(MESSAGES):
            mesh.barrier()
            start = time.perf_counter()
            comm.reduce_scatter(comm.all_gather(x, "link", "there"), "link", "back")
            times.append((time.perf_counter() - start) / 2)
        return median(times)

    small_s, large_s = seconds(SMALL_BYTES), seconds(LARGE_BYTES)
    peers = comm.towers - 1
    bytes_per_s = peers * (LARGE_BYTES - SMALL_BYTES) / max(large_s - small_s, 1e-9)
    return Link(bytes_per_s, small_s / peers)
