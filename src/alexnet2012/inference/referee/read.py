"""Read the network of a file of any format."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from safetensors import SafetensorError, safe_open

from alexnet2012.config.enums import Device
from alexnet2012.config.schema import ConfigError
from alexnet2012.inference.importers.cuda_convnet import read_definition
from alexnet2012.inference.importers.file_kinds import FileKind, network_kind
from alexnet2012.inference.referee.caffe import read_caffe
from alexnet2012.inference.referee.network import (
    Network,
    checked,
    network_of_recipe,
    pixels_of_mean,
)
from alexnet2012.inference.referee.onnx import read_onnx
from alexnet2012.inference.referee.tensors import read_tensors
from alexnet2012.inference.trained_model import METADATA, load_trained
from alexnet2012.utils.untrusted import read_bytes

MAX_BYTES = 2**30  # of a file that is read into memory: a full-size AlexNet has a quarter
MAX_TEXT = 2**22  # of the text of a network
IMPORTED = ("caffe", "torchvision")  # recipes that import_net makes


def read_network(
    path: Path,
    prototxt: Path | None = None,
    entry: str | None = None,
    params: Path | None = None,
) -> Network:
    """The network at ``path``: a model of this package, or a file of another library.

    Args:
        prototxt: the text of the network of a ``.caffemodel``.
        entry: which network of a state dict with several.
        params: the parameters of the training of a definition of the 2012 code, ``.cfg``.

    Raises:
        ConfigError: it is none of these, or damaged; the message is one line.
        OSError: it cannot be read.
    """
    try:
        if path.is_dir():
            return _own(path)
        if path.suffix == ".cfg":
            return _definition(path, params)
        kind = network_kind(path)
        if kind in (FileKind.torch, FileKind.safetensors):
            return _own(path) if _has_recipe(path, kind) else read_tensors(path, entry)
        if kind is FileKind.onnx:
            return read_onnx(read_bytes(path, MAX_BYTES))
        if kind is FileKind.prototxt:
            return read_caffe(None, _text(path))
        if path.suffix == ".caffemodel":
            text = None if prototxt is None else _text(prototxt)
            return read_caffe(read_bytes(path, MAX_BYTES), text)
    except ConfigError as error:
        if error.key == "params":
            raise ConfigError("--params", error.value, error.remedy) from error
        raise ConfigError("NET", path, error.remedy) from error
    except ValueError as error:
        raise ConfigError("NET", path, str(error)) from error
    remedy = "is not a file of torch.save, safetensors, ONNX or Caffe, nor a run or checkpoint"
    raise ConfigError("NET", path, remedy)


def _definition(path: Path, params: Path | None) -> Network:
    if params is None:
        raise ValueError("needs the parameters of its training; add --params layer-params.cfg")
    definition = read_definition(path, params)
    network = network_of_recipe(
        definition.recipe, definition.classes, source="a definition of the 2012 code"
    )
    # The programs that fed the network had the rest, of which the recipe has other values.
    training = {k: v for k, v in (network.training or {}).items() if k.startswith("optimizer.")}
    return checked(replace(network, pixels=None, training=training))


def _text(path: Path) -> str:
    try:
        return read_bytes(path, MAX_TEXT).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path.name} is not a text in UTF-8") from error


def _has_recipe(path: Path, kind: FileKind) -> bool:
    """Whether it is a file of ``export``, which holds its recipe."""
    if kind is not FileKind.safetensors:
        return False
    try:
        with safe_open(path, framework="np") as file:
            return METADATA in (file.metadata() or {})
    except SafetensorError:
        return False


def _own(path: Path) -> Network:
    trained = load_trained(path, Device.cpu)
    recipe, classes = trained.model.recipe, trained.model.num_classes
    pixels = pixels_of_mean(trained.mean_image, 1.0)
    source = f"a model of this package, of recipe {recipe.name}"
    network = network_of_recipe(recipe, classes, trained.model.config, source=source)
    network = replace(network, pixels=pixels)
    if recipe.name in IMPORTED:  # how it was trained is not in what it was imported from
        network = replace(
            network,
            convolutions=[replace(c, init_std=None, init_bias=None) for c in network.convolutions],
            linears=[replace(c, init_std=None, init_bias=None) for c in network.linears],
            training=None,
            trained=True,
        )
    return checked(network)
