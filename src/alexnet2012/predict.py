"""Classify images: ``python -m alexnet2012.predict checkpoint=RUN IMAGE …``.

IMAGE is a file, a folder or a URL. Images receive the preprocessing of the training data, strict
decoding included.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet2012.cli.app import hydra_main
from alexnet2012.cli.args import collect_images
from alexnet2012.config.inference_schema import PredictConfig
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.utils.text import printable

if TYPE_CHECKING:  # a mistake in the command is reported without torch
    from alexnet2012.inference.images import RejectedImage
    from alexnet2012.inference.predict import ImagePredictions

BAR_COLUMNS = 30


def run(config: PredictConfig, run_dir: Path) -> None:
    from alexnet2012.distributed.launch import reuse_memory
    from alexnet2012.inference.images import find_images
    from alexnet2012.inference.predict import ImagePredictions, predict_images, to_json, write_sheet
    from alexnet2012.inference.trained_model import load_ensemble

    reuse_memory()
    names = find_images(config.images)
    models = load_ensemble(config.checkpoint, config.device)
    results: list[ImagePredictions] = []
    rejected: list[RejectedImage] = []
    console = Console()
    for result in predict_images(config, models, names):
        if not isinstance(result, ImagePredictions):
            rejected.append(result)
            print(printable(f"alexnet2012: {result.image}: {result.reason}"), file=sys.stderr)
            continue
        results.append(result)
        if not config.json:
            _print_predictions(console, result)
    if config.json:
        print(json.dumps(to_json(results, rejected, config.views), indent=1))
    if config.sheet is not None:
        write_sheet(results, rejected, config.views, Path(config.sheet))
    if not results:
        raise ConfigError("images", config.images, "none of the images can be used")
    if rejected:
        raise RunError(f"{len(rejected)} of {len(names)} images could not be used")


def _print_predictions(console: Console, result: ImagePredictions) -> None:
    console.print(Text(printable(result.image), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=8, no_wrap=True)
    table.add_column(min_width=BAR_COLUMNS)
    table.add_column(max_width=console.width - BAR_COLUMNS - 11, overflow="ellipsis", no_wrap=True)
    for prediction in result.predictions:
        bar = Bar(1.0, 0.0, prediction.probability, width=BAR_COLUMNS, color="cyan")
        name = Text(printable(prediction.name))
        table.add_row(f"{100 * prediction.probability:.1f}%", bar, name)
    console.print(table)


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("predict", PredictConfig, run)


if __name__ == "__main__":
    main()
