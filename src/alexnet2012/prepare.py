"""Make a store: ``python -m alexnet2012.prepare source=FOLDER store=STORE [size=256]``."""

from __future__ import annotations

from pathlib import Path

from alexnet2012.config import PrepareConfig
from alexnet2012.data.store import prepare
from alexnet2012.launcher import hydra_main


def run(config: PrepareConfig, run_dir: Path) -> None:
    store = prepare(config)
    print(f"{store.root}: {store.description}")


def main() -> None:
    hydra_main("prepare", PrepareConfig, run)


if __name__ == "__main__":
    main()
