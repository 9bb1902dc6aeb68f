"""Predict the cost of training: ``python -m alexnet2012.plan [nodes=1] [gpus=2] [card=h100] …``.

Prints memory, operations, bytes and time of a training step on nodes × GPUs, which need not exist,
and the source of every speed that the prediction uses.
"""

from __future__ import annotations

import json
from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.schema import PlanConfig
from alexnet2012.utils.logs import announce


def run(config: PlanConfig, run_dir: Path) -> None:
    announce("counting the operations of the model")
    from rich.console import Console

    from alexnet2012.diagnostics.plan_tables import print_plan
    from alexnet2012.diagnostics.training_plan import plan_training

    plan = plan_training(config)
    if config.json:
        print(json.dumps(plan, indent=1))
    else:
        print_plan(plan, Console())


def main() -> None:
    hydra_main("plan", PlanConfig, run)


if __name__ == "__main__":
    main()
