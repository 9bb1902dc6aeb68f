"""A short training run in which rank 1 has a fault. Imports little, so that ranks start fast."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from datetime import timedelta
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from recorders import ComputesAgain
from torch import Tensor

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.schema import ModelConfig, RunError
from alexnet2012.data.loaders import Batch
from alexnet2012.distributed.collectives import Communicator
from alexnet2012.distributed.watchdog import peers
from alexnet2012.distributed.watchdog.failure_report import FAILURES_DIR, write_failure
from alexnet2012.distributed.watchdog.flight_recorder import REPLAY, FlightEntry
from alexnet2012.nn import layers
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.training.train_step import TrainStep
from alexnet2012.utils.shard import Shard

SMALL = ModelConfig(width=1 / 24, input_size=64)
FAULT_STEP, FAULT_REPLAY = 3, 6


def killed() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


def crashed() -> None:
    raise ValueError("a bug in the code")


def slow() -> None:
    time.sleep(3600)


ACTIONS: dict[str, Callable[[], None]] = {
    action.__name__: action for action in (killed, stopped, crashed, slow)
}


def train(fault: str, folder: str) -> None:
    """A few steps of a small network; in one of them rank 1 fails between conv2 and conv3."""
    signal.signal(signal.SIGTERM, lambda *_: None)  # as in training, does not end a rank at once
    mesh = init_mesh(2, device="cpu", stall_s=2 if fault == "stopped" else 20)
    mesh.watchdog.folder = Path(folder)
    Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
    model = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    if fault == "slow":
        short_timeout = dist.new_group(timeout=timedelta(seconds=2))
        model.comm = Communicator(short_timeout, 2, mesh.tower, watchdog=mesh.watchdog)
    record = mesh.watchdog.this_rank.record

    def fail(*_: object) -> None:
        if fault in ACTIONS and mesh.rank == 1 and record.step == FAULT_STEP:
            while mesh.watchdog.peers[0].record.begun == record.begun:  # until rank 0 waits
                time.sleep(0.01)
            ACTIONS[fault]()

    model.conv2.register_forward_hook(fail)
    gather = layers.all_gather_to_sharded

    def skipping(x_shard: Tensor, comm: Communicator, layer: str) -> Tensor:
        if (fault, mesh.rank, record.step, layer) == ("skips", 1, FAULT_STEP, "fc7"):
            return torch.cat([x_shard, x_shard], 1)
        return gather(x_shard, comm, layer)

    layers.all_gather_to_sharded = skipping
    with mesh:
        for record.step in range(1, FAULT_STEP + 3):
            F.cross_entropy(
                model(torch.zeros(2, 3, 64, 64)), torch.zeros(2, dtype=torch.int64)
            ).backward()


def train_replayed(fault: str, folder: str) -> None:
    """Steps that are replayed from the fourth on; in a replay rank 1 fails between fc6 and fc7."""
    signal.signal(signal.SIGTERM, lambda *_: None)
    mesh = init_mesh(2, device="cpu", stall_s=2 if fault == "stopped" else 20)
    mesh.watchdog.folder = Path(folder)
    Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
    model = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    if fault == "slow":
        short_timeout = dist.new_group(timeout=timedelta(seconds=2))
        model.comm = Communicator(short_timeout, 2, mesh.tower, watchdog=mesh.watchdog)
    optimizer = PaperSGD(model, model.recipe.optimizer)
    step = TrainStep(model, optimizer, recorder=partial(ComputesAgain, model, optimizer))
    record = mesh.watchdog.this_rank.record

    def fail(*_: object) -> None:
        if mesh.rank == 1 and record.step == FAULT_REPLAY:
            while mesh.watchdog.peers[0].record.progress <= record.progress:  # rank 0 waits in fc7
                time.sleep(0.01)
            ACTIONS[fault]()

    model.fc6.register_forward_hook(fail)
    images, labels = torch.zeros(2, 3, 64, 64), torch.zeros(2, dtype=torch.int64)
    batch = Batch(images, labels, np.arange(2), Shard(0, 2, 2))
    with mesh:
        for record.step in range(1, FAULT_REPLAY + 3):
            step(batch)


def hang_in_a_replay(fault: str, folder: str) -> None:
    """Rank 1 stands still within a replay, in which nothing fails and nothing times out."""
    with init_mesh(2, device="cpu", timeout_s=3) as mesh:
        Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
        signal.signal(signal.SIGTERM, lambda *_: None)
        graph = [FlightEntry(0, 0, 8, layer, "forward", 0, 0) for layer in ("conv3", "fc6", "fc7")]
        record = mesh.watchdog.this_rank.record
        record.set_graph(graph, lambda: 3 - mesh.rank)
        record.begin("step", REPLAY, 24)
        time.sleep(3600)


def wait_as_in_nccl(fault: str, folder: str) -> None:
    """Rank 0 waits for rank 1 in a collective that never fails, as one of NCCL's."""
    with init_mesh(2, device="cpu", timeout_s=3 if fault == "slow" else 300) as mesh:
        Path(folder, f"{mesh.rank}.pid").write_text(str(os.getpid()))
        if mesh.rank == 1:
            while mesh.watchdog.peers[0].record.begun == 0:
                time.sleep(0.01)
            ACTIONS[fault]()
        signal.signal(signal.SIGTERM, lambda *_: None)  # Python handles it after the wait only
        mesh.watchdog.this_rank.record.begin("conv3", "forward", 0)
        time.sleep(3600)


def train_on_another_machine(rank: int, port: int, fault: str, folder: str) -> None:
    """A rank that takes itself to be on a machine of its own."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "1"}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port), FAILURES_DIR: folder}
    peers._machine = lambda: f"machine {rank}"
    try:
        train(fault, folder)
    except RunError as error:
        write_failure(error)
