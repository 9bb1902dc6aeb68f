"""Predict the classes of images, and write the results as JSON or as a contact sheet in HTML."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from alexnet2012.config.inference_schema import PredictConfig
from alexnet2012.inference.images import RejectedImage, decode_images, jpeg_data_uri
from alexnet2012.inference.trained_model import (
    Prediction,
    TrainedModel,
    probabilities,
    top_predictions,
)
from alexnet2012.utils.files import naming
from alexnet2012.utils.templates import page_template
from alexnet2012.utils.text import printable

SHEET_PIXELS = 224  # a side of the images on a contact sheet


@dataclass(frozen=True)
class ImagePredictions:
    """An image and its most probable classes, best first."""

    image: str
    predictions: list[Prediction]
    thumbnail: str | None  # data URI, for a contact sheet


def predict_images(
    config: PredictConfig, models: Sequence[TrainedModel], names: Sequence[str]
) -> Iterator[ImagePredictions | RejectedImage]:
    """Predictions batch by batch; within a batch the rejected images come first."""
    sizes = sorted({len(trained.mean_image) for trained in models})
    batch_size = max(1, config.batch_size // config.views)
    for batch in decode_images(names, sizes, batch_size, config.decode_threads):
        yield from batch.rejected
        if not batch.names:
            continue
        rows = probabilities(models, batch.pixels, config.views)
        for index, name in enumerate(batch.names):
            predictions = top_predictions(models[0].classes, rows[index], config.guesses)
            thumbnail = None
            if config.sheet is not None:
                thumbnail = jpeg_data_uri(batch.pixels[sizes[-1]][index], SHEET_PIXELS)
            yield ImagePredictions(name, predictions, thumbnail)


def to_json(
    results: Sequence[ImagePredictions], rejected: Sequence[RejectedImage], views: int
) -> dict[str, Any]:
    return {
        "views": views,
        "pictures": [
            {
                "image": result.image,
                "guesses": [
                    {"class": prediction.name, "probability": prediction.probability}
                    for prediction in result.predictions
                ],
            }
            for result in results
        ],
        "rejected": [image._asdict() for image in rejected],
    }


def write_sheet(
    results: Sequence[ImagePredictions], rejected: Sequence[RejectedImage], views: int, path: Path
) -> None:
    """Write a contact sheet: one HTML file without external resources, all names escaped."""
    page = page_template("alexnet2012.inference.web", "sheet.html.jinja", printable=printable)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = page.render(results=results, rejected=rejected, views=views)
    with naming(path):
        path.write_text(text, encoding="utf-8")
