"""What a net takes pictures for: ``python -m alexnet2012.predict checkpoint=RUN PICTURE …``.

A picture is a file, a folder or an address. It goes the way of preparation, strict decoding and
all, so the net sees what it would see of it in a store.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from rich.bar import Bar
from rich.console import Console
from rich.table import Table
from rich.text import Text

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import PredictConfig
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.images import RejectedImage, collect_images, decode_images, find_images
from alexnet2012.inference.trained_model import (
    Prediction,
    TrainedModel,
    load_ensemble,
    probabilities,
    top_predictions,
)
from alexnet2012.ledger.report.svg import photo
from alexnet2012.utils.templates import page_template
from alexnet2012.utils.text import printable

BAR_COLUMNS = 30
SHEET_PIXELS = 224  # a side of the pictures on a contact sheet


@dataclass(frozen=True)
class ImagePredictions:
    """A picture and its likeliest classes, likeliest first."""

    image: str
    guesses: list[Prediction]
    thumbnail: str | None  # a data URI, for a contact sheet


def predict(config: PredictConfig, nets: Sequence[TrainedModel], names: Sequence[str]) -> Iterator[
    ImagePredictions | RejectedImage
]:  # fmt: skip
    """Guesses for the pictures, in order within a batch, and those that cannot be used."""
    sizes = sorted({len(net.mean_image) for net in nets})
    batch_size = max(1, config.batch_size // config.views)
    for batch in decode_images(names, sizes, batch_size, config.decode_threads):
        yield from batch.rejected
        if not batch.names:
            continue
        found = probabilities(nets, batch.pixels, config.views)
        for row, name in enumerate(batch.names):
            guesses = top_predictions(nets[0].classes, found[row], config.guesses)
            shown = config.sheet is not None
            picture = photo(batch.pixels[sizes[-1]][row], SHEET_PIXELS) if shown else None
            yield ImagePredictions(name, guesses, picture)


def run(config: PredictConfig, run_dir: Path) -> None:
    """Print the guesses, picture by picture.

    Raises:
        ConfigError: a net or a picture that is not there, or none of the pictures can be used.
        RunError: some cannot be used; the others were shown.
    """
    reuse_memory()
    names = find_images(config.images)
    nets = load_ensemble(config.checkpoint, config.device)
    guessed: list[ImagePredictions] = []
    rejected: list[RejectedImage] = []
    console = Console()
    for one in predict(config, nets, names):
        if isinstance(one, RejectedImage):
            rejected.append(one)
            print(printable(f"alexnet2012: {one.image}: {one.reason}"), file=sys.stderr)
            continue
        guessed.append(one)
        if not config.json:
            _show(console, one)
    if config.json:
        print(json.dumps(as_json(guessed, rejected, config.views), indent=1))
    if config.sheet is not None:
        write_sheet(guessed, rejected, config, Path(config.sheet).expanduser())
    if not guessed:
        raise ConfigError("images", config.images, "none of the pictures can be used")
    if rejected:
        raise RunError(f"{len(rejected)} of {len(names)} pictures could not be used")


def as_json(
    guessed: Sequence[ImagePredictions], rejected: Sequence[RejectedImage], views: int
) -> dict[str, object]:
    return {
        "views": views,
        "pictures": [
            {
                "image": one.image,
                "guesses": [{"class": g.name, "probability": g.probability} for g in one.guesses],
            }
            for one in guessed
        ],
        "rejected": [one._asdict() for one in rejected],
    }


def write_sheet(
    guessed: Sequence[ImagePredictions],
    rejected: Sequence[RejectedImage],
    config: PredictConfig,
    path: Path,
) -> None:
    """A contact sheet: one file, nothing fetched, all foreign text escaped."""
    page = page_template(
        "alexnet2012.inference.web", "sheet.html.jinja", printable=printable
    ).render(guessed=guessed, rejected=rejected, views=config.views)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")


def _show(console: Console, one: ImagePredictions) -> None:
    console.print(Text(printable(one.image), style="bold"), soft_wrap=True)
    table = Table.grid(padding=(0, 1))
    table.add_column(justify="right", min_width=8, no_wrap=True)
    table.add_column(min_width=BAR_COLUMNS)
    table.add_column(max_width=console.width - BAR_COLUMNS - 11, overflow="ellipsis", no_wrap=True)
    for guess in one.guesses:
        bar = Bar(1.0, 0.0, guess.probability, width=BAR_COLUMNS, color="cyan")
        table.add_row(f"{100 * guess.probability:.1f}%", bar, Text(printable(guess.name)))
    console.print(table)


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("predict", PredictConfig, run)


if __name__ == "__main__":
    main()
