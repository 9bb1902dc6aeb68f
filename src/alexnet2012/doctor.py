"""Is this machine fit for a run? ``python -m alexnet2012.doctor [OVERRIDES of train] [--json]``

Takes what ``train`` takes (``data.store=…``, ``mesh.device=cpu``), and ``checkpoint=…``. One line a
check; ends with 1 if something is wrong. Under torchrun every rank looks at its own machine.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import torch
from rich.console import Console
from rich.markup import escape

from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, RunError, TrainConfig
from alexnet2012.diagnostics import machine_checks
from alexnet2012.diagnostics.machine_checks import Finding, Severity
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.mesh import Mesh, init_mesh, single_process, uses_gpus
from alexnet2012.distributed.process_env import under_torchrun

BATCH = 128  # pictures of a step of the paper
# What a tower brings to the exchanges of the paper's net, for each picture.
EXCHANGED = {"one number": 0, "fc7 and fc8": 2048, "fc6": 128 * 6 * 6, "conv3": 128 * 13 * 13}
REPEATS = 10
SLOW_S, SLOW_BYTES_PER_S = 0.01, 50e6
COLOURS = {Severity.ok: "green", Severity.warning: "yellow", Severity.wrong: "red"}


def examine(config: TrainConfig, run_dir: Path, mesh: Mesh, saved: str | None) -> list[Finding]:
    """This rank's machine, and what the run would read there."""
    checks: list[Callable[[], Finding]] = [
        lambda: machine_checks.device(mesh),
        *machine_checks.versions(),
        lambda: machine_checks.dali(mesh),
        lambda: machine_checks.normalisation(mesh),
        machine_checks.memory,
        lambda: machine_checks.disk(run_dir),
        machine_checks.shared_memory,
        machine_checks.open_files,
        lambda: machine_checks.store(Path(str(config.data.store)).expanduser()),
        machine_checks.commit,
    ]
    if saved is not None:
        checks.append(lambda: machine_checks.saved(Path(saved)))
    return [replace(machine_checks.found(check), rank=mesh.rank) for check in checks]


def exchanges(mesh: Mesh) -> list[Finding]:
    """Gathers between the towers, of the sizes of the paper's net. Collective."""
    comm, found = communicator_of(mesh), []
    for name, units in EXCHANGED.items():
        x = torch.ones(max(1, BATCH * units), device=mesh.device)
        seconds = []
        for _ in range(REPEATS):
            began = time.perf_counter()
            gathered = comm.all_gather(x, "doctor", name)
            float(gathered[comm.tower - 1][0])  # a peer's; waits for a GPU
            seconds.append(time.perf_counter() - began)
        median = sorted(seconds)[REPEATS // 2]
        said, slow = f"{1e3 * median:.2f} ms", median > SLOW_S
        if units:
            rate = x.nbytes / median
            said, slow = f"{said}, {rate / 1e6:,.0f} MB/s each way", rate < SLOW_BYTES_PER_S
        remedy = "slow: put both towers on one machine, end other programs" if slow else ""
        level = Severity.warning if slow else Severity.ok
        found.append(Finding(f"exchange of {name}", level, said, remedy, mesh.rank))
    return found


def measure(on: Device, answer: str) -> None:
    """On each of two ranks that were started for it."""
    mesh = init_mesh(2, device=on)
    found = exchanges(mesh)
    if mesh.rank == 0:
        Path(answer).write_text(as_json(found), encoding="utf-8")
    mesh.close()


def between_two(on: Device) -> list[Finding]:
    """The exchanges between two processes of this machine."""
    with tempfile.TemporaryDirectory() as folder:
        answer = Path(folder, "exchanges.json")
        try:
            launch(measure, 2, on, str(answer))
        except (ConfigError, RunError) as error:
            remedy = "two processes of this machine must reach each other on localhost"
            last_line = str(error).splitlines()[-1]
            return [Finding("exchanges", Severity.wrong, last_line, remedy)]
        rows = json.loads(answer.read_text(encoding="utf-8"))
    return [Finding(**{**row, "level": Severity(row["level"])}) for row in rows]


def as_json(findings: list[Finding]) -> str:
    rows = [{**asdict(finding), "level": finding.level.value} for finding in findings]
    return json.dumps(rows, indent=1)


def show(findings: list[Finding], ranks: int) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for finding in findings:
        colour, word = COLOURS[finding.level], finding.level.value
        where = f"rank {finding.rank}, " if ranks > 1 else ""
        said = f"{where}{finding.check}: {finding.said}"
        said += f"; {finding.remedy}" if finding.remedy else ""
        console.print(f"[{colour}]{word:8}[/{colour}]{escape(said)}")


def main() -> None:
    exit_on_error(_main, TrainConfig)


def _main() -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        sys.stdout.write(f"{__doc__}\nSettings: python -m alexnet2012.train --help\n")
        return
    saved = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
    others = [word for word in words if word != "--json" and not word.startswith("checkpoint=")]
    config, run_dir = compose_config("train", TrainConfig, others)
    torchrun, on = under_torchrun(), config.mesh.device
    if torchrun:
        mesh = init_mesh(config.mesh.towers, device=on)
    else:  # the device of a run with these settings
        mesh = single_process(on if uses_gpus(on, config.mesh.processes) else Device.cpu)
    found = examine(config, run_dir, mesh, saved[-1] if saved else None)
    if not torchrun:
        found += between_two(on)
    elif mesh.towers > 1:
        found += exchanges(mesh)
    findings = [finding for rank in mesh.gather_objects(found, "findings") for finding in rank]
    if mesh.rank == 0 and "--json" in words:
        sys.stdout.write(as_json(findings) + "\n")
    elif mesh.rank == 0:
        show(findings, mesh.world_size)
    mesh.close()
    sys.exit(any(finding.level is Severity.wrong for finding in findings))


if __name__ == "__main__":
    # What it starts is told by name, and __main__ is another program there.
    from alexnet2012 import doctor as this

    this.main()
