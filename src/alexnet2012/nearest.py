"""Find the most similar images: ``python -m alexnet2012.nearest features=FILE.npy IMAGE …``.

FILE.npy is the output of ``alexnet2012.features``. Similarity is the Euclidean distance between
last hidden activations (paper sec. 6.1 and fig. 4).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet2012.cli.app import hydra_main
from alexnet2012.cli.args import collect_images
from alexnet2012.config.inference_schema import NearestConfig
from alexnet2012.config.schema import RunError
from alexnet2012.utils.text import printable

if TYPE_CHECKING:  # a mistake in the command is reported without torch
    from alexnet2012.inference.nearest import Neighbours


def run(config: NearestConfig, run_dir: Path) -> None:
    from alexnet2012.distributed.launch import reuse_memory
    from alexnet2012.inference.nearest import find_neighbours

    reuse_memory()
    results, rejected = find_neighbours(config)
    if config.json:
        pictures = [asdict(result) for result in results]
        failed = [image._asdict() for image in rejected]
        print(json.dumps({"pictures": pictures, "rejected": failed}, indent=1))
    else:
        for result in results:
            _print_neighbours(Console(), result)
    if rejected:
        raise RunError(
            f"{len(rejected)} of {len(results) + len(rejected)} images could not be used"
        )


def _print_neighbours(console: Console, result: Neighbours) -> None:
    console.print(Text(printable(result.image), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for name, distance in zip(result.nearest, result.distances, strict=True):
        table.add_row(f"{distance:.2f}", Text(printable(name)))
    console.print(table)


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("nearest", NearestConfig, run)


if __name__ == "__main__":
    main()
