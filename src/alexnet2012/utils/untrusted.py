"""Read files that anybody may have written: of bounded size and depth, and never a pipe or device.

Every reader raises OSError if the file cannot be opened, and ValueError of one line if it is not
what it should be. Nothing is unpickled.
"""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # starting a command imports neither NumPy nor YAML
    import numpy.typing as npt

MAX_BYTES = 256 * 2**20  # of a file that is read into memory at once
_NESTED = (dict, list)
MAX_DEPTH = 100  # of nested lists and mappings; parsers of YAML in C overflow their stack


def open_regular(path: Path | str) -> io.BufferedReader:
    """Open a regular file for reading; a pipe would wait for a writer, and a device never ends."""
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    mode = os.fstat(descriptor).st_mode
    if not S_ISREG(mode):
        os.close(descriptor)
        raise ValueError(f"is {'a folder' if S_ISDIR(mode) else 'not a regular file'}; give a file")
    return os.fdopen(descriptor, "rb")


def read_bytes(path: Path | str, max_bytes: int = MAX_BYTES) -> bytes:
    with open_regular(path) as file:
        size = os.fstat(file.fileno()).st_size
        if size > max_bytes:
            raise ValueError(f"has {size:,} bytes, more than the limit of {max_bytes:,}")
        return file.read(max_bytes)


def read_text(path: Path | str) -> str:
    return read_bytes(path).decode("utf-8")


def parse_json(text: str) -> Any:
    try:
        value = json.loads(text)
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    level = [value]
    for _ in range(MAX_DEPTH):
        inner = (v.values() if isinstance(v, dict) else v for v in level if isinstance(v, _NESTED))
        if not (level := [item for items in inner for item in items]):
            return value
    raise ValueError("is nested too deeply")


def read_json(path: Path | str) -> Any:
    return parse_json(read_text(path))


def read_json_object(path: Path | str) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise ValueError("is not a JSON object")
    return value


def read_json_lines(path: Path | str) -> list[dict[str, Any]]:
    """The complete lines of a file of JSON objects; the last one may have been cut short."""
    records = []
    for number, line in enumerate(read_text(path).rpartition("\n")[0].splitlines(), start=1):
        try:
            record = parse_json(line)
        except ValueError as error:
            raise ValueError(f"line {number} cannot be read ({error})") from None
        if not isinstance(record, dict):
            raise ValueError(f"line {number} is not a JSON object")
        records.append(record)
    return records


def read_yaml(path: Path | str) -> Any:
    """Plain YAML: no tags that make objects, and no aliases, which a small file can multiply."""
    import yaml

    in_c: bool = yaml.__with_libyaml__  # five times as fast
    text, depth = read_text(path), 0
    try:
        for event in yaml.parse(text, Loader=yaml.CSafeLoader if in_c else yaml.SafeLoader):
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ValueError("is nested too deeply")
            if isinstance(event, yaml.AliasEvent):
                raise ValueError("has an alias")
        return yaml.load(text, Loader=yaml.CSafeLoader) if in_c else yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(" ".join(str(error).split())) from None


def read_array(path: Path | str) -> npt.NDArray[Any]:
    """A NumPy file with one array, of numbers only."""
    import numpy as np

    data = read_bytes(path)
    try:
        array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # NumPy raises almost anything on a damaged file
        raise ValueError(" ".join(str(error).split()) or type(error).__name__) from None
    if not isinstance(array, np.ndarray):
        raise ValueError("is not a file of one array")
    return array
