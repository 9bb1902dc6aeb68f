"""Time exchanges between towers at the sizes of the paper's network."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path

import torch

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.diagnostics.machine_checks import Finding, Severity, from_json, to_json
from alexnet2012.distributed.collectives import communicator_of
from alexnet2012.distributed.launch import launch
from alexnet2012.distributed.mesh import Mesh, init_mesh

BATCH = 128  # images per step, as in the paper
# Floats that one tower contributes per image to the exchanges of the paper's network.
FLOATS_PER_IMAGE = {
    "one number": 0,
    "fc7 and fc8": 2048,
    "fc6": 128 * 6 * 6,
    "conv3": 128 * 13 * 13,
}
REPEATS = 10
SLOW_S, SLOW_BYTES_PER_S = 0.01, 50e6


def time_exchanges(mesh: Mesh) -> list[Finding]:
    """Time an all-gather between the towers for each size. Collective."""
    comm, findings = communicator_of(mesh), []
    for name, floats in FLOATS_PER_IMAGE.items():
        x = torch.ones(max(1, BATCH * floats), device=mesh.device)
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            gathered = comm.all_gather(x, "doctor", name)
            float(gathered[comm.tower - 1][0])  # reads a peer's part, which waits for a GPU
            seconds.append(time.perf_counter() - start)
        median = sorted(seconds)[REPEATS // 2]
        message, slow = f"{1e3 * median:.2f} ms", median > SLOW_S
        if floats:
            rate = x.nbytes / median
            message = f"{message}, {rate / 1e6:,.0f} MB/s each way"
            slow = rate < SLOW_BYTES_PER_S
        remedy = "slow; place both towers on one machine, and stop other programs" if slow else ""
        level = Severity.warning if slow else Severity.ok
        findings.append(Finding(f"exchange of {name}", level, message, remedy, mesh.rank))
    return findings


def time_local_exchanges(device: Device) -> list[Finding]:
    """Time the exchanges between two processes that are started on this machine."""
    with tempfile.TemporaryDirectory() as folder:
        output = Path(folder, "exchanges.json")
        try:
            launch(_worker, 2, device, str(output))
        except (ConfigError, RunError) as error:
            message = str(error).splitlines()[-1]
            remedy = "two processes on this machine must be able to connect over localhost"
            return [Finding("exchanges", Severity.wrong, message, remedy)]
        return from_json(output.read_text(encoding="utf-8"))


def _worker(device: Device, output: str) -> None:
    """Runs on each of the two ranks; rank 0 writes the findings."""
    mesh = init_mesh(2, device=device)
    findings = time_exchanges(mesh)
    if mesh.rank == 0:
        Path(output).write_text(to_json(findings), encoding="utf-8")
    mesh.close()
