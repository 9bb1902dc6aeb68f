"""Grids of small images: first-layer kernels, and misclassified images."""

# Shapes: K kernels of H×W pixels

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

IMAGE_PIXELS, GAP_PIXELS, LINE_PIXELS = 128, 8, 14
COLUMNS = 4


@dataclass(frozen=True)
class Misclassified:
    """An image whose predicted class is wrong."""

    file: str
    true: str
    predicted: str
    probability: float  # of the prediction


def kernel_grids(
    weights: Tensor, towers: int = 2, columns: int = 16, zoom: int = 4
) -> list[Image.Image]:
    """Grids of conv1's kernels, one image per tower, as in the paper's figure 3.

    ``weights`` [K, 3, H, W] has tower 0's kernels first. Each kernel is scaled by its largest
    absolute weight, with zero at mid grey, so that one without colour selectivity appears grey.
    """
    kernels = weights.detach().double().cpu().nan_to_num()
    peak = kernels.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    levels = ((0.5 + 0.5 * kernels / peak) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [_tiled(part, columns, zoom) for part in np.array_split(levels, towers)]


def _tiled(kernels: npt.NDArray[Any], columns: int, zoom: int) -> Image.Image:
    """[K, H, W, 3] bytes → one image, with transparent lines of one pixel between kernels."""
    count, height, width, _ = kernels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        grid[top : top + height, left : left + width] = np.insert(kernel, 3, 255, axis=2)
    return Image.fromarray(grid.repeat(zoom, 0).repeat(zoom, 1))


def misclassified_grid(mistakes: Sequence[Misclassified]) -> Image.Image:
    """A grid of images, each above its true and predicted class; blank without mistakes."""
    rows = max(1, -(-len(mistakes) // COLUMNS))
    width, height = IMAGE_PIXELS + GAP_PIXELS, IMAGE_PIXELS + 2 * LINE_PIXELS + GAP_PIXELS
    size = (COLUMNS * width + GAP_PIXELS, rows * height + GAP_PIXELS)
    grid = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(grid), ImageFont.load_default(11)
    for i, mistake in enumerate(mistakes):
        left, top = GAP_PIXELS + i % COLUMNS * width, GAP_PIXELS + i // COLUMNS * height
        side = (IMAGE_PIXELS, IMAGE_PIXELS)
        with Image.open(mistake.file) as image:
            grid.paste(image.convert("RGB").resize(side, Image.Resampling.BOX), (left, top))
        prediction = f"predicted: {100 * mistake.probability:.0f}% {mistake.predicted}"
        for text, colour in ((f"true: {mistake.true}", "black"), (prediction, "#a01818")):
            position = (left, top + IMAGE_PIXELS)
            draw.text(position, _truncated(text, font), fill=colour, font=font)
            top += LINE_PIXELS
    return grid


def _truncated(text: str, font: Any) -> str:
    """The text cut to the width of an image; class names may be of any length."""
    text = "".join(c if c.isprintable() else "?" for c in text)[:IMAGE_PIXELS]
    if font.getlength(text) <= IMAGE_PIXELS:
        return text
    while text and font.getlength(f"{text}…") > IMAGE_PIXELS:
        text = text[:-1]
    return f"{text}…"


def kernel_pictures(
    weights: Tensor, towers: int = 2, columns: int = 16, zoom: int = 4
) -> list[str]:
    """Conv1's kernels [K, 3, H, W] as PNG data URIs, one per tower; see :func:`kernel_grids`."""
    grids = kernel_grids(weights, towers, columns, zoom)
    return [data_uri(grid, "PNG", optimize=True) for grid in grids]


def data_uri(image: Image.Image, kind: str, **options: Any) -> str:
    """The image as a ``data:`` URI; ``kind`` and ``options`` are those of Pillow's ``save``."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"
