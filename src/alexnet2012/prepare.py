"""Prepare a data set: ``python -m alexnet2012.prepare source=SOURCE store=STORE [size=256]``.

SOURCE is `photos`, `cifar10`, `imagenette`, `tinyimagenet`, or a folder, tar or zip of images:
class folders, ILSVRC, Kaggle's and other published layouts. STORE is the folder to create.
"""

from __future__ import annotations

import textwrap
from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.schema import PrepareConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.utils.text import say


def run(config: PrepareConfig, run_dir: Path) -> None:
    store = prepare(config)
    say(f"{store.root}:")
    say(textwrap.fill(store.description, 78, initial_indent="  ", subsequent_indent="  "))


def main() -> None:
    hydra_main("prepare", PrepareConfig, run)


if __name__ == "__main__":
    main()
