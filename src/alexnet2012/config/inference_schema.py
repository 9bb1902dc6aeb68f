"""The typed configuration of what uses a trained net; see :mod:`alexnet2012.config.schema`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.schema import ranged


@dataclass
class PredictConfig:
    """The guesses of a net, or of several averaged, for any pictures."""

    checkpoint: Any = MISSING  # a run, a checkpoint or an exported .safetensors; or a list of them
    images: Any = MISSING  # a file, a folder or an address; or a list of them
    views: int = 10  # or 1
    guesses: int = ranged(5, low=1)
    json: bool = False
    sheet: str | None = None  # an HTML file of the pictures with their guesses
    batch_size: int = ranged(64, low=1)  # views at once
    device: Device = Device.auto
    decode_threads: int | None = ranged(None, low=1)  # null: one for each core


@dataclass
class ServeConfig:
    """A page that shows what a net makes of a picture."""

    checkpoint: str = MISSING  # a run, a checkpoint or an exported .safetensors
    host: str = "127.0.0.1"  # an address or name of this machine; 0.0.0.0: all of them
    port: int = ranged(8012, low=0, high=65535)  # 0: any that is free
    views: int = 10  # that the guesses average; or 1
    device: Device = Device.auto


@dataclass
class FeaturesConfig:
    """The last hidden activations of pictures, as a file."""

    checkpoint: str = MISSING
    images: Any = MISSING
    out: str = MISSING  # a .npy file; the names of the pictures go beside it
    batch_size: int = ranged(64, low=1)
    device: Device = Device.auto
    decode_threads: int | None = ranged(None, low=1)  # null: one for each core


@dataclass
class NearestConfig:
    """The pictures of a file of activations that are most like given ones."""

    features: str = MISSING
    images: Any = MISSING
    checkpoint: str | None = None  # null: where the features are from
    count: int = ranged(6, low=1)  # paper fig. 4
    json: bool = False
    batch_size: int = ranged(64, low=1)
    device: Device = Device.auto
    decode_threads: int | None = ranged(None, low=1)  # null: one for each core


@dataclass
class ExportConfig:
    """A net as one file."""

    checkpoint: str = MISSING
    format: ExportFormat = ExportFormat.safetensors
    out: str = MISSING


@dataclass
class ImportConfig:
    """A checkpoint made of somebody else's net."""

    source: str = MISSING  # a .caffemodel, or a state dict as torchvision's (.pth, .safetensors)
    out: str = MISSING  # a folder for the checkpoint
    mean: str | None = (
        None  # Caffe's mean image, a .binaryproto; null: its own, or ImageNet's colour
    )
    classes: str | None = None  # a text file of their names, one a line; null: numbers
    picture_size: int = ranged(256, low=1)  # pixels a side that pictures are brought to at first
