"""Run the reproduction and write its report: ``python -m alexnet2012.reproduce [source=FOLDER] …``.

The results are ``OUT/report.html`` and ``OUT/ledger.json``; see
:mod:`alexnet2012.ledger.reproduction`.
"""

from __future__ import annotations

from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.schema import ReproduceConfig, RunError


def run(config: ReproduceConfig, run_dir: Path) -> None:
    from alexnet2012.ledger.reproduction import Reproduce

    failed = Reproduce(config).run()
    if failed:
        raise RunError(f"{failed} part(s) failed; see the warnings in the report")


def main() -> None:
    hydra_main("reproduce", ReproduceConfig, run)


if __name__ == "__main__":
    main()
