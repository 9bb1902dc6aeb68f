"""One process of a training run, from joining the other ranks to leaving them."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from alexnet2012.config.schema import TrainConfig
from alexnet2012.distributed.launch import reuse_memory, set_threads
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process
from alexnet2012.distributed.process_env import local_processes
from alexnet2012.nn.precision import allow_tf32
from alexnet2012.training.trainer import Trainer
from alexnet2012.utils.collector import after_imports
from alexnet2012.utils.logs import setup_logging


def join_mesh(config: TrainConfig) -> Mesh:
    mesh = config.mesh
    if mesh.processes == 1:  # whatever RANK and the like a job system has set
        return single_process(mesh.device)
    limits = {"timeout_s": mesh.timeout_s, "stall_s": mesh.stall_s}
    return init_mesh(mesh.towers, device=mesh.device, **limits)


def train(config: TrainConfig, run_dir: Path, mesh: Mesh) -> None:
    with process_settings(config, mesh):
        Trainer(config, mesh, run_dir).run()


@contextmanager
def process_settings(config: TrainConfig, mesh: Mesh) -> Iterator[None]:
    """Threads, memory, arithmetic and messages of a process that trains."""
    set_threads(local_processes())
    reuse_memory()
    allow_tf32(config.precision)
    setup_logging(mesh.rank)
    after_imports()
    try:
        yield
    finally:
        gc.collect()  # DALI pipelines are in reference cycles: a sweep would accumulate them
