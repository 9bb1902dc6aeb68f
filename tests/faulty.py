"""A short training in which rank 1 has a fault; imports little, so that ranks start soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.schema import ModelConfig, RunError
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.watchdog import peers
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR, write_failure
from alexnet2012.nn import layers

SMALL = ModelConfig(width=1 / 24, input_size=64)
FAULT_STEP = 3


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crashed() -> None:
    raise ValueError("a mistake in the code")


def slow() -> None:
    time.sleep(3600)


ACTS: dict[str, Callable[[], None]] = {
    act.__name__: act for act in (killed, stopped, crashed, slow)
}


def train(fault: str, folder: str) -> None:
    """A few steps of a small net; in one of them rank 1 has its fault, between conv2 and conv3."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # does not end a rank at once in a training
    mesh = init_mesh(2, device="cpu", stall_s=2 if fault == "stopped" else 20)
    mesh.watchdog.folder = Path(folder)
    Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
    net = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    if fault == "slow":
        impatient = dist.new_group(timeout=timedelta(seconds=2))
        net.comm = Communicator(impatient, 2, mesh.tower, watchdog=mesh.watchdog)
    record = mesh.watchdog.own.record

    def act(*_: object) -> None:
        if fault in ACTS and mesh.rank == 1 and record.step == FAULT_STEP:
            while mesh.watchdog.peers[0].record.begun == record.begun:  # until rank 0 waits
                time.sleep(0.01)
            ACTS[fault]()

    net.conv2.register_forward_hook(act)
    gather = layers.all_gather_to_sharded

    def skipping(x_shard: Tensor, comm: Communicator, layer: str) -> Tensor:
        if (fault, mesh.rank, record.step, layer) == ("skips", 1, FAULT_STEP, "fc7"):
            return torch.cat([x_shard, x_shard], 1)
        return gather(x_shard, comm, layer)

    layers.all_gather_to_sharded = skipping
    with mesh:
        for record.step in range(1, FAULT_STEP + 3):
            F.cross_entropy(
                net(torch.zeros(2, 3, 64, 64)), torch.zeros(2, dtype=torch.int64)
            ).backward()


def wait_out_of_reach(fault: str, folder: str) -> None:
    """Rank 0 waits in conv3 as one does with NCCL, whose exchanges never fail; for rank 1."""
    with init_mesh(2, device="cpu", timeout_s=3 if fault == "slow" else 300) as mesh:
        Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
        if mesh.rank == 1:
            while mesh.watchdog.peers[0].record.begun == 0:
                time.sleep(0.01)
            ACTS[fault]()
        signal.signal(signal.SIGTERM, lambda *_: None)  # comes to Python when the wait is over
        mesh.watchdog.own.record.begin("conv3", "forward", 0)
        time.sleep(3600)


def elsewhere(rank: int, port: int, fault: str, folder: str) -> None:
    """A rank on a machine of its own, as far as it can tell."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), FAILURES_DIR: folder}
    peers._machine = lambda: f"machine {rank}"
    try:
        train(fault, folder)
    except RunError as error:
        write_failure(error)
