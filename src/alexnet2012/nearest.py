"""Which pictures are most alike: ``python -m alexnet2012.nearest features=FILE.npy PICTURE …``.

FILE.npy is what ``alexnet2012.features`` wrote. Likeness is the distance between last hidden
activations (paper sec. 6.1 and fig. 4).
"""

from __future__ import annotations

import json
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import NearestConfig
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.features import Features, activations_of, digest
from alexnet2012.inference.images import collect_images, find_images
from alexnet2012.inference.trained_model import load_trained
from alexnet2012.ledger.nearest_neighbours import nearest
from alexnet2012.utils.text import printable


@dataclass(frozen=True)
class Answer:
    """A picture and those most like it, nearest first."""

    image: str
    nearest: list[str]
    distances: list[float]


def run(config: NearestConfig, run_dir: Path) -> None:
    """Print the most similar pictures, nearest first, of each picture.

    Raises:
        ConfigError: the features are none, or another net's.
        RunError: some pictures cannot be used; the others were answered.
    """
    reuse_memory()
    features = Features.load(Path(config.features).expanduser())
    names = find_images(config.images)
    given = config.checkpoint or features.checkpoint
    net = load_trained(Path(given).expanduser(), config.device)
    if digest(net) != features.net:
        remedy = f"is another net than that of {config.features}; write them again"
        raise ConfigError("checkpoint", given, remedy)
    used, queries, rejected = activations_of(net, names, config)
    among = torch.from_numpy(features.activations)
    found = nearest(queries, among, config.count)  # [N, k]
    apart = (queries[:, None].double() - among[found].double()).norm(dim=2)
    answers = [
        Answer(name, [features.files[index] for index in indices], distances)
        for name, indices, distances in zip(used, found.tolist(), apart.tolist(), strict=True)
    ]
    if config.json:
        about = {"pictures": [asdict(one) for one in answers]}
        print(json.dumps(about | {"rejected": [one._asdict() for one in rejected]}, indent=1))
    else:
        console = Console()
        for answer in answers:
            _show(console, answer)
    if rejected:
        raise RunError(f"{len(rejected)} of {len(names)} pictures could not be used")


def _show(console: Console, answer: Answer) -> None:
    console.print(Text(printable(answer.image), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=10, no_wrap=True)
    table.add_column(overflow="fold")
    for name, distance in zip(answer.nearest, answer.distances, strict=True):
        table.add_row(f"{distance:.2f}", Text(printable(name)))
    console.print(table)


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("nearest", NearestConfig, run)


if __name__ == "__main__":
    main()
