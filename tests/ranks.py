"""Run a function in real processes that form a gloo group, under plain pytest.

The forkserver has loaded what ranks need, so two start in a fraction of a second; they meet through
a file, so tests can run side by side without fighting for ports.
"""

from __future__ import annotations

import multiprocessing as mp
import os
import tempfile
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import pytest

from alexnet2012.distributed.process_env import rank_env

TIMEOUT_S = 120
# torch loads the last for every optimizer and DTensor, and takes a second.
LOADED = [
    "pytest",
    "alexnet2012.distributed.launch",
    "alexnet2012.training.trainer",
    "torch._dynamo",
]


def load_server() -> None:
    """Start the forkserver; whoever starts it first in a process says what it loads."""
    mp.set_forkserver_preload(LOADED)
    forkserver.ensure_running()


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """``function(*args)`` on every rank; its results (arrays and plain data), rank 0 first."""
    load_server()
    context = mp.get_context("forkserver")
    with tempfile.TemporaryDirectory() as folder:
        pipes = [context.Pipe(duplex=False) for _ in range(world_size)]
        processes = [
            context.Process(
                target=_rank, args=(rank, world_size, folder, pipes[rank][1], function, args)
            )
            for rank in range(world_size)
        ]
        for process in processes:
            process.start()
        try:
            answers = [
                pipe.recv() if pipe.poll(TIMEOUT_S) else f"rank {rank}: no answer in {TIMEOUT_S} s"
                for rank, (pipe, _) in enumerate(pipes)
            ]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    failures = [answer for answer in answers if isinstance(answer, str)]
    if failures:
        pytest.fail("\n".join(failures))
    return [answer[0] for answer in answers]


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    answer: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    meeting = Path(folder, "rendezvous")
    os.environ.update(rank_env(rank, world_size, str(meeting)))
    try:
        if world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=meeting.as_uri(),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=60),
            )
        answer.send((function(*args),))
        if world_size > 1:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        answer.send(f"rank {rank}:\n{traceback.format_exc()}")
