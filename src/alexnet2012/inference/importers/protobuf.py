"""Protocol buffers without their schema: fields by number, as they lie in the bytes.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt


class Message:
    """The fields of a protocol buffer, by number; varints are numbers, all others bytes.

    Raises:
        ValueError: these bytes are none.
    """

    def __init__(self, data: memoryview) -> None:
        self._found: dict[int, list[int | memoryview]] = defaultdict(list)
        at = 0
        while at < len(data):
            key, at = _varint(data, at)
            kind = key & 7
            if kind == 0:
                value, at = _varint(data, at)
                self._found[key >> 3].append(value)
                continue
            if kind == 2:
                size, at = _varint(data, at)
            elif kind in (1, 5):
                size = 8 if kind == 1 else 4
            else:
                raise ValueError("is no protocol buffer")
            if at + size > len(data):
                raise ValueError("ends early")
            self._found[key >> 3].append(data[at : at + size])
            at += size

    def messages(self, number: int) -> list[Message]:
        return [Message(value) for value in self._bytes(number)]

    def message(self, number: int) -> Message:
        """The last one, or an empty one, whose every field has its default."""
        return (self.messages(number) or [Message(memoryview(b""))])[-1]

    def text(self, number: int) -> str:
        return "".join(bytes(value).decode("utf-8", "replace") for value in self._bytes(number))

    def integer(self, number: int, default: int) -> int:
        """The last of them: a setting that may be repeated has one for each direction."""
        return (self.integers(number) or [default])[-1]

    def integers(self, number: int) -> list[int]:
        found: list[int] = []
        for value in self._found[number]:
            if isinstance(value, int):
                found.append(value)
            else:  # packed
                at = 0
                while at < len(value):
                    one, at = _varint(value, at)
                    found.append(one)
        return found

    def floats(self, number: int) -> npt.NDArray[np.float32]:
        """All of them, packed or not."""
        return np.frombuffer(b"".join(self._bytes(number)), dtype="<f4")

    def doubles(self, number: int) -> npt.NDArray[np.float64]:
        return np.frombuffer(b"".join(self._bytes(number)), dtype="<f8")

    def number(self, number: int, default: float) -> float:
        # As its shortest decimal, .0001 and not 9.9999997e-05: what the author of the net wrote.
        found = self.floats(number)
        return float(str(found[-1])) if len(found) else default

    def _bytes(self, number: int) -> list[memoryview]:
        values = self._found[number]
        if any(isinstance(value, int) for value in values):
            raise ValueError(f"field {number} is of another type than Caffe's")
        return [value for value in values if not isinstance(value, int)]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The number at a place, and the place after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("is no protocol buffer, or ends early")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
