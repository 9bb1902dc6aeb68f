"""Pictures that somebody names: files, folders and addresses, as a store would keep them.

Legend: n pictures of a batch, P pixels a side of a stored picture.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import requests
import torch
from hydra._internal.utils import get_args_parser
from torch import Tensor

from alexnet2012.config.compose import quoted
from alexnet2012.config.schema import ConfigError, PrepareConfig
from alexnet2012.data.preparation.decode import convert_to_stored
from alexnet2012.data.sources.base import IMAGE_SUFFIXES, MAX_FILE_BYTES, Entry

TIMEOUTS_S = (10.0, 30.0)  # to connect, to wait for more
DOWNLOAD_S = 120.0  # for a whole picture
_SCHEMES = ("http://", "https://")


class RejectedImage(NamedTuple):
    """A picture that cannot be used, and why."""

    image: str
    reason: str


@dataclass(frozen=True)
class DecodedBatch:
    """A batch of pictures, and those that fell out of it."""

    names: list[str]
    pixels: dict[int, Tensor]  # by P: uint8 [n, P, P, 3]
    rejected: list[RejectedImage]


def collect_images(words: Sequence[str]) -> list[str]:
    """Command-line words as Hydra reads them: bare names are ``images=…``, ``--json`` is a setting.

    So a shell's ``*.jpg`` works, whatever the files are called.
    """
    words = ["json=true" if word == "--json" else word for word in words]
    overrides = get_args_parser().parse_known_args(words)[0].overrides
    bare = [word for word in overrides if "=" not in word or _is_address(word) or _exists(word)]
    others = [word for word in words if word not in bare]
    return [*others, f"images=[{','.join(map(quoted, bare))}]"] if bare else others


def find_images(images: Any) -> list[str]:
    """The names of all pictures: files, what lies in folders at any depth, addresses.

    Raises:
        ConfigError: a path that is not there, or a folder without pictures.
    """
    found: list[str] = []
    for given in images if isinstance(images, list) else [images]:
        # Of os.path, as Path's raises for a ~ that is no user's but part of a name.
        name, path = str(given), Path(os.path.expanduser(str(given)))  # noqa: PTH111
        if _is_address(name):
            found.append(name)
        elif path.is_dir():
            inside = [
                str(file)
                for file in sorted(path.rglob("*"))
                if file.suffix.lower() in IMAGE_SUFFIXES
                and not any(part.startswith(".") for part in file.relative_to(path).parts)
                and file.is_file()
            ]
            if not inside:
                kinds = " ".join(sorted(IMAGE_SUFFIXES))
                raise ConfigError("images", name, f"a folder without pictures ({kinds})")
            found += inside
        elif path.is_file():
            found.append(str(path))
        else:
            raise ConfigError("images", name, "does not exist; give files, folders or addresses")
    if not found:
        raise ConfigError("images", images, "names none; give files, folders or addresses")
    return found


def decode_images(
    names: Sequence[str], sizes: Sequence[int], batch_size: int, threads: int | None
) -> Iterator[DecodedBatch]:
    """Batches of the pictures, each at every size P of ``sizes``, as a store would keep it.

    ``threads``: None for one a core.
    """
    with ThreadPoolExecutor(threads or len(os.sched_getaffinity(0))) as pool:
        for start in range(0, len(names), batch_size):
            part = names[start : start + batch_size]
            outcomes = list(pool.map(partial(_decode, sizes=sizes), part))
            good = [(n, o) for n, o in zip(part, outcomes, strict=True) if not isinstance(o, str)]
            yield DecodedBatch(
                [name for name, _ in good],
                {
                    size: torch.from_numpy(np.stack([pixels[size] for _, pixels in good]))
                    for size in sizes
                    if good
                },
                [
                    RejectedImage(n, o)
                    for n, o in zip(part, outcomes, strict=True)
                    if isinstance(o, str)
                ],
            )


def stored_pixels(data: bytes, size: int) -> npt.NDArray[np.uint8]:
    """What a store would keep of the bytes of a picture file: [P, P, 3].

    Raises:
        ValueError: why they are no usable picture, in one line.
    """
    return convert_to_stored(data, size, PrepareConfig().quality).pixels


def _decode(name: str, sizes: Sequence[int]) -> dict[int, Any] | str:
    """The pixels by size, or why there are none."""
    try:
        data = _downloaded(name) if _is_address(name) else Entry(name, 0, name).read()
        return {size: stored_pixels(data, size) for size in sizes}
    except requests.RequestException as error:
        return _plainly(error)
    except OSError as error:
        return str(error.strerror or error)
    except ValueError as error:
        return str(error)


def _downloaded(address: str) -> bytes:
    """Raises ValueError or a RequestException: the server refuses, sends too much or too slowly."""
    until = time.monotonic() + DOWNLOAD_S
    with requests.get(address, stream=True, timeout=TIMEOUTS_S) as response:
        if not response.ok:
            raise ValueError(f"the server answers {response.status_code} {response.reason}")
        data = bytearray()
        for chunk in response.iter_content(1 << 16):
            data += chunk
            if len(data) > MAX_FILE_BYTES:
                raise ValueError(f"more than {MAX_FILE_BYTES:,} bytes")
            if time.monotonic() > until:
                raise ValueError(f"did not arrive within {DOWNLOAD_S:.0f} s")
        return bytes(data)


def _plainly(error: requests.RequestException) -> str:
    if isinstance(error, requests.Timeout):
        return "the server does not answer"
    if isinstance(error, requests.ConnectionError):
        return "no network, or the server cannot be reached"
    return " ".join(str(error).split())


def _is_address(word: str) -> bool:
    return word.lower().startswith(_SCHEMES)


def _exists(word: str) -> bool:
    try:
        return Path(word).exists()
    except (OSError, ValueError):  # too long for a name, say
        return False
