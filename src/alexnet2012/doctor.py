"""Check this machine before training: ``python -m alexnet2012.doctor [OVERRIDES] [--json]``

Takes the overrides of ``train`` (``data.store=…``, ``mesh.device=cpu``), and ``checkpoint=…``.
Prints one line per check; the exit code is 1 if a check fails. Under torchrun every rank checks
its own machine.
"""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.markup import escape

from alexnet2012.cli.errors import EVERY_RANK_REPORTS, exit_on_error
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Device
from alexnet2012.config.schema import TrainConfig
from alexnet2012.config.validation import user_path
from alexnet2012.distributed.devices import uses_gpus
from alexnet2012.distributed.process_env import current_process, under_torchrun
from alexnet2012.utils.logs import announce
from alexnet2012.utils.text import printable


def main() -> None:
    exit_on_error(_main, TrainConfig, same_on_all_ranks=True)


def _main() -> None:
    words = sys.argv[1:]
    if {"-h", "--help"} & {*words}:
        sys.stdout.write(f"{__doc__}\nSettings: python -m alexnet2012.train --help\n")
        return
    checkpoints = [word.partition("=")[2] for word in words if word.startswith("checkpoint=")]
    overrides = [word for word in words if word != "--json" and not word.startswith("checkpoint=")]
    config, run_dir = compose_config("train", TrainConfig, overrides)
    if current_process().rank == 0:
        announce("checking this machine")
    # After the settings, in which a mistake is reported without torch.
    from alexnet2012.diagnostics import machine_checks
    from alexnet2012.diagnostics.machine_checks import Severity
    from alexnet2012.distributed.mesh import init_mesh, single_process

    colours = {Severity.ok: "green", Severity.warning: "yellow", Severity.wrong: "red"}
    torchrun, device = under_torchrun(), config.mesh.device
    if torchrun:
        mesh = init_mesh(config.mesh.towers, device=device)
        os.environ[EVERY_RANK_REPORTS] = "1"  # an error may now occur on one rank only
    else:  # the device that a run with these settings would use
        mesh = single_process(device if uses_gpus(device, config.mesh.processes) else Device.cpu)
    checkpoint = user_path("checkpoint", checkpoints[-1]) if checkpoints else None
    local = machine_checks.check_machine(config, run_dir, mesh, checkpoint)
    if not torchrun:
        local += machine_checks.time_local_exchanges(device)
    elif mesh.towers > 1:
        local += machine_checks.time_exchanges(mesh)
    findings = [finding for rank in mesh.gather_objects(local, "findings") for finding in rank]
    if mesh.rank == 0 and "--json" in words:
        sys.stdout.write(machine_checks.to_json(findings) + "\n")
    elif mesh.rank == 0:
        console = Console(highlight=False, soft_wrap=True)
        for finding in findings:
            rank = f"rank {finding.rank}, " if mesh.world_size > 1 else ""
            remedy = f"; {finding.remedy}" if finding.remedy else ""
            line = escape(printable(f"{rank}{finding.check}: {finding.message}{remedy}"))
            console.print(f"[{colours[finding.level]}]{finding.level.value:8}[/]{line}")
    mesh.close()
    sys.exit(any(finding.level is Severity.wrong for finding in findings))


if __name__ == "__main__":
    main()
