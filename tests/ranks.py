"""Run a function in real processes that form a gloo group, under plain pytest.

A forkserver has imported what ranks need, so that two start in a fraction of a second. They
rendezvous through a file, so tests can run in parallel without competing for ports.
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
# torch imports torch._dynamo for every optimizer and DTensor, which takes a second.
PRELOADED = [
    "pytest",
    "alexnet2012.distributed.launch",
    "alexnet2012.training.trainer",
    "torch._dynamo",
    "tests.warm",  # if the working directory is the repository
]


def load_server() -> None:
    """Start the forkserver; only the first start in a process sets what it preloads."""
    mp.set_forkserver_preload(PRELOADED)
    forkserver.ensure_running()


def run_ranks(world_size: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """The results of ``function(*args)`` on every rank (arrays, plain data), rank 0 first."""
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
            results = [
                pipe.recv() if pipe.poll(TIMEOUT_S) else f"rank {rank}: no result in {TIMEOUT_S} s"
                for rank, (pipe, _) in enumerate(pipes)
            ]
        finally:
            for process in processes:
                process.join(5)
                process.kill()
    failures = [result for result in results if isinstance(result, str)]
    if failures:
        pytest.fail("\n".join(failures))
    return [result[0] for result in results]


def _rank(
    rank: int,
    world_size: int,
    folder: str,
    pipe: Any,
    function: Callable[..., Any],
    args: tuple[Any, ...],
) -> None:
    import torch
    import torch.distributed as dist

    torch.set_num_threads(1)
    rendezvous_file = Path(folder, "rendezvous")
    os.environ.update(rank_env(rank, world_size, str(rendezvous_file)))
    try:
        if world_size > 1:
            dist.init_process_group(
                "gloo",
                init_method=rendezvous_file.as_uri(),
                rank=rank,
                world_size=world_size,
                timeout=timedelta(seconds=60),
            )
        pipe.send((function(*args),))
        if world_size > 1:
            dist.barrier()
            dist.destroy_process_group()
    except BaseException:
        pipe.send(f"rank {rank}:\n{traceback.format_exc()}")
