"""Typed configuration of the commands that use a trained model.

As in :mod:`alexnet2012.config.schema`, the comments are the help texts.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import MISSING

from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.schema import path_field, ranged


@dataclass
class PredictConfig:
    """Predictions of a model, or of an ensemble, for any images."""

    # a run, a checkpoint or an exported .safetensors; or a list of them
    checkpoint: Any = path_field()
    images: Any = MISSING  # a file, a folder or a URL; or a list of them
    views: int = 10  # crops averaged per image, 1 or 10
    guesses: int = ranged(5, low=1)  # predictions shown per image
    json: bool = False  # print JSON instead of a table
    # HTML file to write, with the images and their predictions
    sheet: str | None = path_field(None)
    batch_size: int = ranged(64, low=1)  # views per forward pass
    device: Device = Device.auto  # where the model runs; auto selects CUDA if available
    decode_threads: int | None = ranged(None, low=1)  # decoder threads; null: one per core


@dataclass
class ServeConfig:
    """A web page that shows the predictions and activations of a model."""

    checkpoint: str = path_field()  # a run, a checkpoint or an exported .safetensors
    # address or host name to listen on; 0.0.0.0 accepts connections from other machines
    host: str = "127.0.0.1"
    port: int = ranged(8012, low=0, high=65535)  # TCP port; 0 selects a free one
    views: int = 10  # crops averaged per image, 1 or 10
    device: Device = Device.auto  # where the model runs; auto selects CUDA if available


@dataclass
class FeaturesConfig:
    """The last hidden activations of images, as a file."""

    checkpoint: str = path_field()  # a run, a checkpoint or an exported .safetensors
    images: Any = MISSING  # a file, a folder or a URL; or a list of them
    out: str = path_field()  # .npy file to write; the file names of the images go to OUT.json
    batch_size: int = ranged(64, low=1)  # images per forward pass
    device: Device = Device.auto  # where the model runs; auto selects CUDA if available
    decode_threads: int | None = ranged(None, low=1)  # decoder threads; null: one per core


@dataclass
class NearestConfig:
    """Nearest neighbours of images, among the images of a features file."""

    features: str = path_field()  # .npy file written by `features`
    images: Any = MISSING  # query images: a file, a folder or a URL; or a list of them
    # model for the query images; null: the one in the features file
    checkpoint: str | None = path_field(None)
    count: int = ranged(6, low=1)  # neighbours per query image; 6 in paper fig. 4
    json: bool = False  # print JSON instead of a table
    batch_size: int = ranged(64, low=1)  # images per forward pass
    device: Device = Device.auto  # where the model runs; auto selects CUDA if available
    decode_threads: int | None = ranged(None, low=1)  # decoder threads; null: one per core


@dataclass
class ExportConfig:
    """A trained model as one file."""

    checkpoint: str = path_field()  # a run, a checkpoint or an exported .safetensors
    # tensors; a graph for ONNX Runtime or torch; or tensors under torchvision's names
    format: ExportFormat = ExportFormat.safetensors
    out: str = path_field()  # file to write


@dataclass
class ImportConfig:
    """A checkpoint from a Caffe or torchvision model, or a recipe from a 2012 definition."""

    # a .caffemodel, torchvision's weights (.pth, .safetensors), or a definition of the 2012 code
    # (layers-145.cfg)
    source: str = path_field()
    out: str = path_field()  # folder of the new checkpoint, or of the recipe and its schedule
    # mean image of Caffe (.binaryproto); null: the one in the source, or ImageNet's mean colour
    mean: str | None = path_field(None)
    # text file of class names, one per line; null: class numbers
    classes: str | None = path_field(None)
    # which network of a file with several, as model or model_ema; null: the averaged weights if any
    entry: str | None = None
    # side in pixels to which images are resized before cropping
    picture_size: int = ranged(256, low=1)
    # the file with the training parameters of a definition (layer-params-145.cfg)
    params: str | None = path_field(None)
    # side in pixels of the input of a definition, which does not have it; null: 32 if it has ten
    # classes, otherwise 224
    input_size: int | None = ranged(None, low=1)
