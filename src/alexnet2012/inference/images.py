"""Load the images named by a user (files, folders, URLs) with the preprocessing of a store.

Shapes: n images of a batch, P pixels a side of a stored image.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import TimeoutError as FutureTimeout
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import requests
import torch
from PIL import Image
from torch import Tensor

from alexnet2012.cli.args import is_url
from alexnet2012.config.schema import ConfigError, PrepareConfig
from alexnet2012.data.preparation.decode import convert_to_stored
from alexnet2012.data.sources.base import IMAGE_SUFFIXES, MAX_FILE_BYTES, Entry
from alexnet2012.tracking.image_grids import data_uri
from alexnet2012.utils.threads import in_background, map_in_background

TIMEOUTS_S = (10.0, 30.0)  # to connect, and between two chunks
DOWNLOAD_S = 120.0  # for a whole image


class RejectedImage(NamedTuple):
    """An image that cannot be used, and the reason."""

    image: str
    reason: str


class DecodedBatch(NamedTuple):
    """A batch of decoded images, and the rejected ones of the same batch."""

    names: list[str]
    pixels: dict[int, Tensor]  # by P: uint8 [n, P, P, 3]
    rejected: list[RejectedImage]


def find_images(images: Any) -> list[str]:
    """The names of all images: files, image files at any depth of folders, and URLs."""
    names: list[str] = []
    for given in images if isinstance(images, list) else [images]:
        # os.path and not Path.expanduser, which raises if a leading ~ names no user.
        name, path = str(given), Path(os.path.expanduser(str(given)))  # noqa: PTH111
        if is_url(name):
            names.append(name)
        elif path.is_dir():
            files = [
                str(file)
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and file.is_file()
            ]
            if not files:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise ConfigError("images", name, f"the folder contains no images ({kinds})")
            names += files
        elif path.is_file():
            names.append(str(path))
        else:
            raise ConfigError("images", name, "does not exist; give files, folders or URLs")
    if not names:
        raise ConfigError("images", images, "no images given; give files, folders or URLs")
    return names


def decode_images(
    names: Sequence[str], sizes: Sequence[int], batch_size: int, threads: int | None
) -> Iterator[DecodedBatch]:
    """Decode images in batches, each image at every size P in ``sizes``."""
    threads = threads or len(os.sched_getaffinity(0))
    for start in range(0, len(names), batch_size):
        batch = names[start : start + batch_size]
        decoding = map_in_background(partial(_decode, sizes=sizes), batch, threads)
        results = list(zip(batch, decoding, strict=True))
        decoded = [(name, pixels) for name, pixels in results if not isinstance(pixels, str)]
        yield DecodedBatch(
            [name for name, _ in decoded],
            {
                size: torch.from_numpy(np.stack([pixels[size] for _, pixels in decoded]))
                for size in sizes
                if decoded
            },
            [RejectedImage(name, text) for name, text in results if isinstance(text, str)],
        )


def stored_pixels(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """Decode an image file to the pixels that a store would hold: uint8 [P, P, 3]."""
    return convert_to_stored(data, size, PrepareConfig().quality).pixels


def jpeg_data_uri(pixels: Tensor, side: int = 96) -> str:
    """A thumbnail of ``side`` × ``side`` pixels as a JPEG data URI; ``pixels``: uint8 [P, P, 3]."""
    image = Image.fromarray(pixels.cpu().numpy()).resize((side, side), Image.Resampling.BOX)
    return data_uri(image, "JPEG", quality=85)


def _decode(name: str, sizes: Sequence[int]) -> dict[int, Any] | str:
    """The pixels by size, or the reason why the image is rejected."""
    try:
        data = _download(name) if is_url(name) else Entry(name, 0, name).read()
        return {size: stored_pixels(data, size) for size in sizes}
    except requests.Timeout:
        return "the server did not respond in time"
    except requests.ConnectionError:
        return "the server cannot be reached, or there is no network"
    except requests.RequestException as error:
        return " ".join(str(error).split())
    except OSError as error:
        return str(error.strerror or error)
    except ValueError as error:
        return str(error)


def _download(url: str) -> bytes:
    """The bytes at a URL; ValueError if all of it, redirects and headers too, takes too long."""
    try:
        return in_background(lambda: _received(url), "download").result(DOWNLOAD_S)
    except FutureTimeout:
        raise ValueError(f"the download took longer than {DOWNLOAD_S:.0f} s") from None


def _received(url: str) -> bytes:
    deadline = time.monotonic() + DOWNLOAD_S
    with requests.get(url, stream=True, timeout=TIMEOUTS_S) as response:
        if not response.ok:
            raise ValueError(f"the server answered {response.status_code} {response.reason}")
        data = bytearray()
        for chunk in response.iter_content(1 << 16):
            data += chunk
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"larger than {MAX_FILE_BYTES:,} bytes")
            if time.monotonic() > deadline:  # nobody waits for it any more
                break
        return bytes(data)
