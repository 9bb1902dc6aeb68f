"""Sheets of small pictures: a net's first kernels, and what it took for something else."""

# Shapes: K kernels of H×W pixels, P pixels a side of a picture

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

PICTURE_PIXELS, GAP_PIXELS, LINE_PIXELS = 128, 8, 14
COLUMNS = 4


@dataclass(frozen=True)
class Misclassified:
    """A picture that was taken for another class than its own."""

    file: str
    true: str
    guessed: str
    probability: float  # of the guess


def kernel_grids(
    weights: Tensor, towers: int = 2, columns: int = 16, zoom: int = 4
) -> list[Image.Image]:
    """Conv1's kernels, one picture a tower, as the paper's figure 3 lays them out.

    Each kernel is scaled by its own largest absolute weight, with zero at mid grey, so that a
    kernel that ignores colour shows no colour.

    Args:
        weights: [K, 3, H, W] of the whole net, tower 0's kernels first.
    """
    kernels = weights.detach().double().cpu().nan_to_num()
    peak = kernels.abs().amax(dim=(1, 2, 3), keepdim=True).clamp(min=1e-30)
    levels = ((0.5 + 0.5 * kernels / peak) * 255).round().byte().permute(0, 2, 3, 1).numpy()
    return [_tiled(part, columns, zoom) for part in np.array_split(levels, towers)]


def _tiled(kernels: npt.NDArray[Any], columns: int, zoom: int) -> Image.Image:
    """[K, H, W, 3] bytes → one picture, a transparent pixel between kernels."""
    count, height, width, _ = kernels.shape
    columns = min(columns, count)
    rows = -(-count // columns)
    sheet = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), dtype=np.uint8)
    for i, kernel in enumerate(kernels):
        top, left = i // columns * (height + 1), i % columns * (width + 1)
        sheet[top : top + height, left : left + width, :3] = kernel
        sheet[top : top + height, left : left + width, 3] = 255
    return Image.fromarray(sheet.repeat(zoom, 0).repeat(zoom, 1))


def misclassified_grid(guesses: Sequence[Misclassified]) -> Image.Image:
    """The pictures with their own class and the guess below each; blank where there is none."""
    rows = max(1, -(-len(guesses) // COLUMNS))
    width, height = PICTURE_PIXELS + GAP_PIXELS, PICTURE_PIXELS + 2 * LINE_PIXELS + GAP_PIXELS
    size = (COLUMNS * width + GAP_PIXELS, rows * height + GAP_PIXELS)
    sheet = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(11)
    for i, guess in enumerate(guesses):
        left = GAP_PIXELS + i % COLUMNS * width
        top = GAP_PIXELS + i // COLUMNS * height
        side = (PICTURE_PIXELS, PICTURE_PIXELS)
        with Image.open(guess.file) as picture:
            sheet.paste(picture.convert("RGB").resize(side, Image.Resampling.BOX), (left, top))
        lines = (f"is {guess.true}", f"guess {100 * guess.probability:.0f}% {guess.guessed}")
        for line, text in enumerate(lines):
            where = (left, top + PICTURE_PIXELS + line * LINE_PIXELS)
            colour = ("black", "#a01818")[line]
            draw.text(where, _fitting(text, font), fill=colour, font=font)
    return sheet


def _fitting(text: str, font: Any) -> str:
    """Cut to the width of a picture; a class may have any name."""
    text = "".join(c if c.isprintable() else "?" for c in text)[:PICTURE_PIXELS]
    if font.getlength(text) <= PICTURE_PIXELS:
        return text
    while text and font.getlength(f"{text}…") > PICTURE_PIXELS:
        text = text[:-1]
    return f"{text}…"


def kernel_pictures(
    weights: Tensor, towers: int = 2, columns: int = 16, zoom: int = 4
) -> list[str]:
    """Conv1's kernels [K, 3, H, W], one PNG data URI a tower; see :func:`sheets.kernel_sheets`."""
    return [data_uri(sheet) for sheet in kernel_grids(weights, towers, columns, zoom)]


def data_uri(picture: Image.Image) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")
