"""Train a network: ``alexnet2012 train [-m] [recipe=code145] [model=small] [seed=0,1,2] …``

Starts two processes by itself; under torchrun it is one of the ranks (``launch/torchrun.sh``).
``alexnet2012 train check …`` validates a configuration and prepares its store, without training.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from pathlib import Path

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode

from alexnet2012.checkpoint.run_dir import (
    AUTO,
    SUMMARY,
    check_run,
    check_start,
    is_finished,
    remove_unused,
)
from alexnet2012.cli.app import hydra_main
from alexnet2012.cli.errors import EVERY_RANK_REPORTS, exit_on_error
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, PrepareConfig, TrainConfig
from alexnet2012.distributed.consensus import run_on_rank_0
from alexnet2012.distributed.launch import exit_with_parent, launch, start_fork_server
from alexnet2012.distributed.process_env import current_process, under_torchrun
from alexnet2012.nn.map_sizes import map_sizes
from alexnet2012.utils.text import say

WORKER_MODULES = ("alexnet2012.training.worker",)
FINISHED = "already finished, left unchanged"


def run(config: TrainConfig, run_dir: Path) -> float:
    """Prepare the store if it does not exist yet, then train in ``mesh.processes`` processes.

    Returns the last top-1 validation error in %, which an optimising sweeper minimises.
    """
    if config.resume == AUTO and is_finished(config, run_dir):
        say(f"run directory: {run_dir}: {FINISHED}")
    else:
        processes = config.mesh.processes
        say(f"starting {processes} process{'es' if processes > 1 else ''} for {run_dir}")
        sys.stdout.flush()
        _check_and_prepare(config, run_dir)
        launch(worker, processes, config, run_dir)
        _say_end(config, run_dir)
    summary = json.loads((run_dir / SUMMARY).read_text(encoding="utf-8"))
    return float(summary["top1_error_pct"])


def _say_end(config: TrainConfig, run_dir: Path) -> None:
    say(f"run directory: {run_dir}")
    say(f"next: {_next_command(config, run_dir)}")


def _next_command(config: TrainConfig, run_dir: Path) -> str:
    """What a user may want to do after a run, as a command."""
    if HydraConfig.get().mode is RunMode.MULTIRUN:
        return f"alexnet2012 runs {_quoted(Path(HydraConfig.get().sweep.dir))}"
    if config.checkpoint.wanted:
        return f"alexnet2012 evaluate checkpoint={_quoted(run_dir)}"
    return f"alexnet2012 runs {_quoted(run_dir)}"


def _quoted(path: Path) -> str:
    """A path for a shell, relative if it is below the working directory."""
    below = path.is_relative_to(Path.cwd())
    return shlex.quote(str(path.relative_to(Path.cwd()) if below else path))


def worker(config: TrainConfig, run_dir: Path) -> None:
    from alexnet2012.training import worker  # torch, which the launching process does not import

    with worker.join_mesh(config) as mesh:
        worker.train(config, run_dir, mesh)


def torchrun_worker() -> None:
    """One rank of a run that torchrun started: every rank uses rank 0's configuration."""
    from alexnet2012.training import worker

    exit_with_parent()
    overrides = sys.argv[1:]
    if flags := [word for word in overrides if word.startswith("-")]:
        remedy = "flags do not work under torchrun; to sweep, use alexnet2012 train -m"
        raise ConfigError("arguments", flags[0], remedy)
    _check_restarts(overrides)
    words = [*overrides, f"mesh.processes={current_process().world_size}"]
    config, run_dir = compose_config("train", TrainConfig, words)
    with worker.join_mesh(config) as mesh:
        remedy = "start every rank with the same command"
        given = dict(word.split("=", 1) for word in overrides if "=" in word)
        mesh.check_same("command", given, remedy, within_replica=False)
        chosen = mesh.broadcast_object((config, run_dir), "configuration")
        config, run_dir = chosen  # type: ignore[misc]
        if run_on_rank_0(lambda: config.resume == AUTO and is_finished(config, run_dir), mesh):
            if mesh.rank == 0:
                say(f"run directory: {run_dir}: {FINISHED}")
        else:
            mesh.watchdog.first_on_rank_0(lambda: _check_and_prepare(config, run_dir))
            os.environ[EVERY_RANK_REPORTS] = "1"  # an error may now occur on one rank only
            try:
                worker.train(config, run_dir, mesh)
            finally:
                if mesh.rank == 0:
                    remove_unused(run_dir)
            if mesh.rank == 0:
                _say_end(config, run_dir)


def _check_restarts(overrides: list[str]) -> None:
    """Refuse restarts that would hang, or would start from scratch."""
    if os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") == "0":
        return
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
        # Restarted workers would read the addresses of the previous ones: pytorch issue 135712.
        remedy = "must be 1 in torchrun's environment for restarts; launch/torchrun.sh sets it"
        raise ConfigError("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", 0, remedy)
    if not any(word.startswith("hydra.run.dir=") for word in overrides):
        remedy = "must be set, because restarts resume from the checkpoints in this directory"
        raise ConfigError("hydra.run.dir", None, remedy)


def _check_and_prepare(config: TrainConfig, run_dir: Path) -> None:
    """Check the configuration, and prepare the store that the run reads unless it exists."""
    check_start(config, run_dir)
    map_sizes(config.recipe, config.model.input_size)  # fails early, before images are prepared
    if config.mesh.processes > 1 and not under_torchrun():
        start_fork_server(WORKER_MODULES)
    data = config.data
    if data.source is not None:
        from alexnet2012.data.preparation.prepare import prepare

        assert data.store is not None
        prepare(PrepareConfig(source=data.source, store=data.store, size=data.store_size))


def check(overrides: list[str]) -> None:
    """Everything before training: validate the configuration, prepare the store."""
    from alexnet2012.distributed.mesh import single_process
    from alexnet2012.nn.alexnet import AlexNet

    config, run_dir = compose_config("train", TrainConfig, overrides)
    _check_and_prepare(config, run_dir)
    mesh = single_process(Device.cpu)
    store, _ = check_run(config, run_dir, mesh)
    AlexNet(config.recipe, len(store.classes), model=config.model, mesh=mesh)


def main() -> None:
    if sys.argv[1:2] == ["check"]:
        exit_on_error(lambda: check(sys.argv[2:]), TrainConfig)
    elif under_torchrun():
        exit_on_error(torchrun_worker, TrainConfig, same_on_all_ranks=True)
    else:
        hydra_main("train", TrainConfig, run, remove_unused)


if __name__ == "__main__":
    # Cluster launchers pickle functions by module name; on the cluster, __main__ is another module.
    from alexnet2012 import train as this

    this.main()
