"""Read the text of a Caffe network (``.prototxt``) as the message that Caffe makes of it.

Fields that no network here is described by are left out. Layers of the old format (``layers``)
become layers of the current one.

Source: caffe.proto of BVLC/caffe; protobuf.dev, "Text Format Language".
"""

from __future__ import annotations

import re
import struct
from typing import Any

from alexnet2012.utils.text import printable

MAX_DEPTH = 20
_FILLER = {"type": (1, str), "value": (2, float), "mean": (5, float), "std": (6, float)}
_SHAPE = {"dim": (1, int)}
_LAYER = {
    "name": (1, str), "type": (2, str),
    "transform_param": (100, {
        "scale": (1, float), "crop_size": (3, int), "mean_file": (4, str), "mean_value": (5, float),
    }),
    "convolution_param": (106, {
        "num_output": (1, int), "bias_term": (2, int), "pad": (3, int), "kernel_size": (4, int),
        "group": (5, int), "stride": (6, int), "weight_filler": (7, _FILLER),
        "bias_filler": (8, _FILLER), "pad_h": (9, int), "pad_w": (10, int), "kernel_h": (11, int),
        "kernel_w": (12, int), "stride_h": (13, int), "stride_w": (14, int), "dilation": (18, int),
    }),
    "data_param": (107, {"scale": (2, float), "mean_file": (3, str), "crop_size": (5, int)}),
    "dropout_param": (108, {"dropout_ratio": (1, float)}),
    "inner_product_param": (117, {
        "num_output": (1, int), "bias_term": (2, int), "weight_filler": (3, _FILLER),
        "bias_filler": (4, _FILLER),
    }),
    "lrn_param": (118, {
        "local_size": (1, int), "alpha": (2, float), "beta": (3, float), "norm_region": (4, int),
        "k": (5, float),
    }),
    "pooling_param": (121, {
        "pool": (1, int), "kernel_size": (2, int), "stride": (3, int), "pad": (4, int),
        "global_pooling": (12, int),
    }),
    "relu_param": (123, {"negative_slope": (1, float)}),
    "input_param": (143, {"shape": (1, _SHAPE)}),
}  # fmt: skip
_NET: dict[str, tuple[int, Any]] = {
    "input_dim": (4, int),
    "input_shape": (8, _SHAPE),
    "layer": (100, _LAYER),
    "layers": (100, _LAYER),
}
_ENUMS = {"false": 0, "true": 1, "MAX": 0, "AVE": 1, "STOCHASTIC": 2}
_ENUMS |= {"ACROSS_CHANNELS": 0, "WITHIN_CHANNEL": 1}
_OLD_TYPES = {  # of `layers`
    "CONVOLUTION": "Convolution", "DROPOUT": "Dropout", "INNER_PRODUCT": "InnerProduct",
    "POOLING": "Pooling", "RELU": "ReLU", "SIGMOID": "Sigmoid", "TANH": "TanH", "DATA": "Data",
    "IMAGE_DATA": "ImageData", "MEMORY_DATA": "MemoryData", "HDF5_DATA": "HDF5Data",
    "SOFTMAX": "Softmax", "SOFTMAX_LOSS": "SoftmaxWithLoss", "ACCURACY": "Accuracy",
    "CONCAT": "Concat", "SLICE": "Slice", "SPLIT": "Split", "ELTWISE": "Eltwise",
}  # fmt: skip
_TOKEN = re.compile(
    r"""\s*+(?:\#[^\n]*+\s*+)*+(?:(?P<text>"(?:[^"\\\n]|\\.)*"|'(?:[^'\\\n]|\\.)*')"""
    r"""|(?P<word>[\w.+-]+)|(?P<mark>[{}<>\[\]:,;])|(?P<end>$))"""
)
_CLOSING = {"{": "}", "<": ">"}


def encode_prototxt(text: str) -> bytes:
    """A NetParameter message with the fields above.

    Raises:
        ValueError: the text is no network; the message is one line with the number of the line.
    """
    return _Parser(text).message(_NET, "", 0)


class _Parser:
    def __init__(self, text: str) -> None:
        self.text, self.at, self.kind, self.token = text, 0, "", ""
        self.next()

    def next(self) -> None:
        match = _TOKEN.match(self.text, self.at)
        if match is None or match.lastgroup is None:
            raise self.error("cannot be read")
        self.at, self.kind, self.token = match.end(), match.lastgroup, match[match.lastgroup]

    def error(self, problem: str) -> ValueError:
        line = self.text.count("\n", 0, self.at) + 1
        near = printable(self.token[:40]) or "its end"
        return ValueError(f"line {line}, at {near}: {problem}")

    def message(self, fields: dict[str, tuple[int, Any]], end: str, depth: int) -> bytes:
        """All fields up to the mark that ends the message; those that are not known are skipped."""
        if depth > MAX_DEPTH:
            raise self.error("is nested too deeply")
        encoded = b""
        while not ((self.kind == "mark" and self.token == end) or (self.kind == "end" and not end)):
            if self.kind != "word":
                raise self.error("expected the name of a field")
            name = self.token
            number, kind = fields.get(name, (0, None))
            self.next()
            if self.token == ":" and self.kind == "mark":
                self.next()
            repeated = self.token == "[" and self.kind == "mark"
            if repeated:
                self.next()
            while True:
                value = self.value(kind, depth)
                if kind is not None:
                    encoded += self.field(number, kind, value, name)
                if not repeated:
                    break
                if self.kind != "mark" or self.token not in ",]":
                    raise self.error("expected , or ]")
                repeated = self.token == ","
                self.next()
                if not repeated:
                    break
            if self.kind == "mark" and self.token in ",;":
                self.next()
        if end:
            self.next()
        return encoded

    def value(self, kind: Any, depth: int) -> Any:
        if self.kind == "mark" and self.token in _CLOSING:
            end = _CLOSING[self.token]
            self.next()
            return self.message(kind if isinstance(kind, dict) else {}, end, depth + 1)
        if self.kind not in ("text", "word"):
            raise self.error("expected a value")
        value, is_text = self.token, self.kind == "text"
        self.next()
        while is_text and self.kind == "text":  # adjacent texts are one
            value = value[:-1] + self.token[1:]
            self.next()
        return value[1:-1] if is_text else value

    def field(self, number: int, kind: Any, value: Any, name: str) -> bytes:
        if isinstance(value, bytes) != isinstance(kind, dict):
            raise self.error(f"{name} has a value of another type")
        if kind is str:
            value = _OLD_TYPES.get(value, value).encode() if name == "type" else value.encode()
        elif kind is float:
            try:
                return _varint(number << 3 | 5) + struct.pack("<f", float(value))
            except (ValueError, OverflowError):
                raise self.error(f"{name} is not a number") from None
        elif kind is int:
            digits = str(_ENUMS.get(value, value))
            if not (digits.isascii() and digits.isdigit() and len(digits) < 10):
                raise self.error(f"{name} is not a whole number that can be read")
            return _varint(number << 3) + _varint(int(digits))
        content = bytes(value)
        return _varint(number << 3 | 2) + _varint(len(content)) + content


def _varint(value: int) -> bytes:
    encoded = b""
    while value > 127:
        encoded += bytes([value & 127 | 128])
        value >>= 7
    return encoded + bytes([value])
