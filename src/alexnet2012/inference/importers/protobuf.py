"""Parse protocol buffers without a schema: fields are looked up by number.

Source: protobuf.dev, "Encoding".
"""

from __future__ import annotations

from collections import defaultdict

import numpy as np
import numpy.typing as npt

MAX_FIELDS = 2_000_000  # of a message: more would take more memory than the file by far


class Message:
    """A protocol buffer's fields by number: varints as integers, all other types as bytes."""

    def __init__(self, data: memoryview) -> None:
        self._fields: dict[int, list[int | memoryview]] = defaultdict(list)
        at = fields = 0
        while at < len(data):
            key, at = _varint(data, at)
            fields += 1
            if fields > MAX_FIELDS:
                raise ValueError(f"has a message of more than {MAX_FIELDS:,} fields")
            wire_type = key & 7
            if wire_type == 0:
                value, at = _varint(data, at)
                self._fields[key >> 3].append(value)
                continue
            if wire_type == 2:
                size, at = _varint(data, at)
            elif wire_type in (1, 5):
                size = 8 if wire_type == 1 else 4
            else:
                raise ValueError("is not a protocol buffer")
            if at + size > len(data):
                raise ValueError("is truncated")
            self._fields[key >> 3].append(data[at : at + size])
            at += size

    def messages(self, number: int) -> list[Message]:
        return [Message(value) for value in self._bytes(number)]

    def message(self, number: int) -> Message:
        """The last message of a field, or an empty message, whose fields have their defaults."""
        return (self.messages(number) or [Message(memoryview(b""))])[-1]

    def text(self, number: int) -> str:
        return "".join(self.texts(number))

    def texts(self, number: int) -> list[str]:
        """All values of a repeated field."""
        return [bytes(value).decode("utf-8", "replace") for value in self._bytes(number)]

    def raw(self, number: int) -> memoryview | None:
        """The last value, or None if the field is missing."""
        return next(reversed(self._bytes(number)), None)

    def integer(self, number: int, default: int) -> int:
        """The last value: a repeated setting, such as a stride, has one value per dimension."""
        return (self.integers(number) or [default])[-1]

    def integers(self, number: int) -> list[int]:
        """All values, packed or not."""
        values: list[int] = []
        for field in self._fields[number]:
            if isinstance(field, int):
                values.append(field)
            else:  # packed
                at = 0
                while at < len(field):
                    value, at = _varint(field, at)
                    values.append(value)
        return values

    def floats(self, number: int) -> npt.NDArray[np.float32]:
        """All values, packed or not."""
        return np.frombuffer(b"".join(self._bytes(number)), dtype="<f4")

    def doubles(self, number: int) -> npt.NDArray[np.float64]:
        return np.frombuffer(b"".join(self._bytes(number)), dtype="<f8")

    def number(self, number: int, default: float) -> float:
        # The shortest decimal of the float32, as the file's author wrote it: .0001, not 9.9999e-05.
        values = self.floats(number)
        return float(str(values[-1])) if len(values) else default

    def _bytes(self, number: int) -> list[memoryview]:
        values = self._fields[number]
        if any(isinstance(value, int) for value in values):
            raise ValueError(f"field {number} has a different type than in the format's schema")
        return [value for value in values if not isinstance(value, int)]


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    """The varint at an offset, and the offset after it."""
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise ValueError("is not a protocol buffer, or is truncated")
        byte = data[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
