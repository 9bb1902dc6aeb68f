"""Prove a run without training it again: ``alexnet2012 verify RUN [segments=3]``.

Compares the files of a run with each other, replays random stretches between its checkpoints and
compares records and weights. ``alexnet2012 ledger verify`` does this for the verdicts of a
reproduction, which it recomputes from the errors of its runs.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from alexnet2012.cli.app import hydra_main
from alexnet2012.cli.args import named
from alexnet2012.config.schema import RunError, VerifyConfig
from alexnet2012.utils.logs import announce
from alexnet2012.utils.text import say

if TYPE_CHECKING:
    from alexnet2012.diagnostics.verify_run import Proof

SHOWN = 20  # findings that are printed


def run(config: VerifyConfig, run_dir: Path) -> None:
    announce("reading the run")
    from alexnet2012.diagnostics.verify_run import verify_run

    proof = verify_run(config)
    if config.json:
        print(json.dumps(proof.as_json(), indent=1))
    else:
        _print(proof)
    if proof.findings:
        count = len(proof.findings)
        raise RunError(f"{config.run}: not proven: {count} difference{'s' * (count > 1)}")
    if not proof.proven:
        raise RunError(f"{config.run}: not proven: there is nothing that can be replayed")


def _print(proof: Proof) -> None:
    from alexnet2012.diagnostics.verify_run import steps_text

    for finding in proof.findings[:SHOWN]:
        say(str(finding))
    if len(proof.findings) > SHOWN:
        say(f"and {len(proof.findings) - SHOWN} more; --json lists them")
    say(f"files: {proof.records} records, {proof.checkpoints} checkpoints, {proof.images} images")
    for stretch in proof.replayed:
        weights, steps = stretch["weights"], steps_text(stretch["first"], stretch["last"])
        of_weights = "; weights not compared" if weights is None else f", weights {weights}"
        say(f"replayed: {steps}: records {stretch['records']}{of_weights}")
    if proof.evaluated:
        say("evaluated: the validation images, with the weights at the end")
    for line in proof.not_compared:
        say(f"not compared: {line}")
    share = 100 * proof.steps_replayed / max(1, proof.steps)
    time = f"{proof.seconds:.1f} s"
    if proof.train_s:
        time += f", {100 * proof.seconds / proof.train_s:.0f}% of the training time"
    say(f"{proof.steps_replayed} of {proof.steps} steps replayed ({share:.1f}%), in {time}")
    if proof.proven:
        say(f"proven: nothing that was compared differs (seed={proof.seed})")


def main() -> None:
    sys.argv[1:] = named("run", sys.argv[1:])
    hydra_main("verify", VerifyConfig, run)


if __name__ == "__main__":
    main()
