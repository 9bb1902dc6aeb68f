"""Imported models of Caffe and torchvision reproduce their original logits.

Tolerance: float32 against float64, 1e-5 of the largest logit; further assertions show that each
conversion matters.
"""

from __future__ import annotations

import argparse
import gzip
import io
import math
import os
import pickle
import re
from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import caffe
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from alexnet2012.checkpoint import manifest
from alexnet2012.config.enums import Activation, Device, ExportFormat, LayerOp
from alexnet2012.config.inference_schema import ExportConfig, ImportConfig
from alexnet2012.config.schema import ConfigError, ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.sources.photos import photograph
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.export import run as export_run
from alexnet2012.import_net import run
from alexnet2012.inference.importers.caffe import read_caffemodel
from alexnet2012.inference.importers.recipe_from_net import as_alexnet
from alexnet2012.inference.importers.torchvision import (
    from_state_dict,
    read_state_dict,
    to_state_dict,
)
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.nn.alexnet import AlexNet

RELATIVE = 1e-5
PAPER = load_recipe("paper")


def rgb_photos(size: int) -> NDArray[np.uint8]:
    """[3, P, P, 3] of real photographs."""
    names = ("chelsea", "coffee", "rocket")
    return np.stack([np.asarray(photograph(name).resize((size, size))) for name in names])


def relative(actual: Any, expected: Any) -> float:
    actual, expected = np.asarray(actual), np.asarray(expected)
    return float(abs(actual - expected).max() / abs(expected).max())


def logits_of(net: TrainedModel, pictures: NDArray[np.uint8]) -> NDArray[Any]:
    with torch.no_grad():
        return net.model(net.views(torch.from_numpy(pictures), 1)[:, 0]).numpy()


@pytest.mark.parametrize("old", [True, False], ids=["V1 layers", "new layers"])
@pytest.mark.parametrize("pool_first", [False, True], ids=["bvlc_alexnet", "caffenet"])
def test_an_imported_caffemodel_reproduces_caffes_logits(
    old: bool, pool_first: bool, tmp_path: Path
) -> None:
    rng = np.random.default_rng(1)
    layers = caffe.alexnet_layers(rng, pool_first=pool_first)
    bgr_mean = rng.uniform(90, 130, (3, 256, 256)).astype(np.float32)
    source, mean, classes = (tmp_path / name for name in ("a.caffemodel", "m.binaryproto", "c.txt"))
    source.write_bytes(caffe.caffemodel(layers, old=old))
    mean.write_bytes(caffe.binaryproto(bgr_mean))
    classes.write_text("n01440764 tench\n" + "\n".join("bcdef") + "\n")
    run(ImportConfig(str(source), str(tmp_path / "net"), str(mean), str(classes)), tmp_path)
    net = load_trained(tmp_path / "net", Device.cpu)
    assert net.classes == ("n01440764 tench", *"bcdef")

    pictures = rgb_photos(256)
    bgr = pictures[..., ::-1].transpose(0, 3, 1, 2) - bgr_mean
    crop = slice(14, 14 + 227)  # (256 - 227) // 2, as Caffe's data layer
    expected = caffe.forward(layers, bgr[:, :, crop, crop])
    assert relative(logits_of(net, pictures), expected) < RELATIVE
    # Without each conversion the logits differ.
    mirrored = logits_of(net, np.ascontiguousarray(pictures[..., ::-1]))
    assert relative(mirrored, expected) > 0.01
    net.model.recipe.lrn_across_towers = False
    apart = AlexNet(net.model.recipe, 6, model=net.model.config)
    apart.load_full_state_dict(net.model.full_state_dict())
    one_tower = TrainedModel(apart.eval(), net.classes, net.mean_image, None)
    assert relative(logits_of(one_tower, pictures),
                    expected) > 1e-4  # fmt: skip


def test_bvlc_alexnet_has_the_layer_shapes_of_the_paper() -> None:
    data = caffe.caffemodel(caffe.alexnet_layers(np.random.default_rng(0)), old=True)
    recipe = as_alexnet(read_caffemodel(data), PAPER, "caffe").recipe
    for name, conv in recipe.convs.items():
        theirs = getattr(PAPER, name)
        same = ("kernel_size", "stride", "reads_both_towers", "after")
        assert [getattr(conv, key) for key in same] == [getattr(theirs, key) for key in same]
    assert (recipe.towers, recipe.pool, recipe.dropout_rate) == (2, PAPER.pool, 0.5)
    assert (recipe.input_size, recipe.conv1.padding) == (227, 0)
    assert (recipe.lrn.k, recipe.lrn.divide_by_window) == (1.0, True)


def test_lrn_across_towers_needs_one_process() -> None:
    recipe = load_recipe("paper")
    recipe.lrn_across_towers = True
    with pytest.raises(ConfigError, match="lrn_across_towers=true: needs all maps in one process"):
        AlexNet(recipe, 6, mesh=Mesh(torch.device("cpu"), towers=2, tower=1))


def _changed(index: int, **settings: Any) -> bytes:
    layers = caffe.alexnet_layers(np.random.default_rng(0))
    layers[index] |= settings
    return caffe.caffemodel(layers, old=True)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"\x0a\x01a", "contains no layers with weights"),
        (b"\xffbytes of no protocol buffer", "protocol buffer|a different type|is truncated"),
        (_changed(1)[:-200], "is truncated"),
        (_changed(2, type="Concat"), "layer relu1: type 3 is not supported"),
        (_changed(2, relu_param={"negative_slope": 0.1}), "relu1: leaky ReLU is not supported"),
        (_changed(3, lrn_param={"norm_region": 1}), "norm1: only LRN across channels"),
        (_changed(3, lrn_param={"local_size": 3}), "several LRN settings"),
        (_changed(4, pooling_param={"kernel_size": 3, "stride": 2, "pad": 1}), "pool1: only"),
        (_changed(1, convolution_param={"num_output": 7, "kernel_size": [11]}), "conv1: its wei"),
        (_changed(5, convolution_param={"num_output": 12, "kernel_size": [5], "pad": [2]}),
         r"conv2.weight: has shape \(12, 4, 5, 5\), this model needs \(12, 8, 5, 5\)"),
        (_changed(0, transform_param={"crop_size": 10**9}), "has an input of 1000000000 pixels"),
        (_changed(2, type="Data"), "every layer but the last must be followed"),
    ],
)  # fmt: skip
def test_an_unsupported_caffemodel_is_refused_and_the_layer_is_named(
    data: bytes, words: str, tmp_path: Path
) -> None:
    source = tmp_path / "net.caffemodel"
    source.write_bytes(data)
    with pytest.raises(ConfigError, match=words) as refusal:
        run(ImportConfig(str(source), str(tmp_path / "out")), tmp_path)
    assert refusal.value.key == "source"
    assert not (tmp_path / "out").exists()


def torchvision_alexnet(kernels: tuple[int, ...], units: int, classes: int) -> nn.ModuleDict:
    """The layers of torchvision.models.alexnet, with fewer kernels, under the same names."""
    a, b, c, d, e = kernels
    pool = nn.MaxPool2d(kernel_size=3, stride=2)
    features = nn.Sequential(
        *(nn.Conv2d(3, a, 11, stride=4, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(a, b, 5, padding=2), nn.ReLU(), pool),
        *(nn.Conv2d(b, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, d, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(d, e, 3, padding=1), nn.ReLU(), pool),
    )
    classifier = nn.Sequential(
        *(nn.Dropout(), nn.Linear(e * 36, units), nn.ReLU()),
        *(nn.Dropout(), nn.Linear(units, units), nn.ReLU()),
        nn.Linear(units, classes),
    )
    return nn.ModuleDict({"features": features, "classifier": classifier}).eval()


def torchvision_logits(net: nn.ModuleDict, pictures: NDArray[np.uint8]) -> Tensor:
    """ToTensor, Normalize, and the forward of torchvision.models.AlexNet."""
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = (torch.from_numpy(pictures).float() / 255 - mean) / std
    x = net["features"](x.permute(0, 3, 1, 2))
    return net["classifier"](F.adaptive_avg_pool2d(x, (6, 6)).flatten(1))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_an_imported_state_dict_reproduces_torchvisions_logits(suffix: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9)
    source = tmp_path / f"alexnet{suffix}"
    if suffix == ".pth":
        torch.save(theirs.state_dict(), source)
    else:
        save_file(theirs.state_dict(), source)
    run(ImportConfig(str(source), str(tmp_path / "net")), tmp_path)
    net = load_trained(tmp_path / "net", Device.cpu)
    assert net.classes == tuple("012345678")
    pictures = rgb_photos(256)
    with torch.no_grad():
        expected = torchvision_logits(theirs, pictures[:, 16:240, 16:240]).numpy()
    assert relative(logits_of(net, pictures), expected) < RELATIVE
    with torch.no_grad():
        net.model.get_parameter("fc8.weight").div_(2)  # undo the conversion
    assert relative(logits_of(net, pictures), expected) > 0.01


def _exported(checkpoint: Path, out: Path) -> dict[str, Tensor]:
    export_run(ExportConfig(str(checkpoint), ExportFormat.torchvision, str(out)), out.parent)
    state: dict[str, Tensor] = torch.load(out, weights_only=True)
    return state


def test_an_imported_model_is_exported_under_torchvisions_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, source = _net().eval(), tmp_path / "alexnet.pth"
    torch.save(theirs.state_dict(), source)
    run(ImportConfig(str(source), str(tmp_path / "net")), tmp_path)
    state = _exported(tmp_path / "net", tmp_path / "back.pth")
    assert "input: normalised as by torchvision\n" in capsys.readouterr().out
    for name, value in theirs.state_dict().items():
        torch.testing.assert_close(state[name], value, rtol=1e-6, atol=0)
    again = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9)
    again.load_state_dict(state)  # strictly: no other names
    pictures = rgb_photos(224)
    with torch.no_grad():
        expected = torchvision_logits(theirs, pictures)
        assert relative(torchvision_logits(again, pictures), expected) < RELATIVE
    assert_same(read_state_dict(tmp_path / "back.pth"), again)


def test_a_model_with_a_mean_image_of_its_own_is_exported_for_pixels_minus_that_image(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    torch.save(_net().state_dict(), tmp_path / "alexnet.pth")
    bgr_mean = np.random.default_rng(1).uniform(90, 130, (3, 256, 256)).astype(np.float32)
    mean, out = tmp_path / "mean.binaryproto", tmp_path / "net"
    mean.write_bytes(caffe.binaryproto(bgr_mean))
    run(ImportConfig(str(tmp_path / "alexnet.pth"), str(out), str(mean)), tmp_path)
    state = _exported(out, tmp_path / "back.pth")
    assert "input: RGB values 0-255 minus the model's mean image" in capsys.readouterr().out
    theirs, net = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9), load_trained(out, Device.cpu)
    theirs.load_state_dict(state)
    pictures = rgb_photos(256)
    with torch.no_grad():
        x = theirs["features"](net.views(torch.from_numpy(pictures), 1)[:, 0])
        logits = theirs["classifier"](x.flatten(1))
    assert relative(logits, logits_of(net, pictures)) < RELATIVE


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"conv1.after": [LayerOp.activation, LayerOp.lrn, LayerOp.max_pool]},
         "conv1 is followed by activation, lrn, max_pool, unlike torchvision's alexnet; use onnx"),
        ({"conv1.padding": 0}, "the kernels of conv1 have another size, stride or padding"),
        ({"conv5.present": False, "conv4.after": [LayerOp.activation, LayerOp.max_pool]},
         "its layers are conv1, conv2, conv3, conv4, fc6, fc7, fc8"),
        ({"conv2.reads_both_towers": False, "towers": 2}, "conv2 reads only the maps of its own"),
        ({"pool.stride": 3}, "its pooling has size 3 and stride 3"),
        ({"activation": Activation.tanh}, "its activation is tanh"),
        ({"input_size": 227}, "its input has 227 pixels a side"),
        ({"fc8_bottleneck.present": True}, "it has a layer fc8_bottleneck"),
        ({}, None),
    ],
)  # fmt: skip
def test_a_model_that_torchvision_cannot_compute_is_not_exported_under_its_names(
    change: dict[str, Any], words: str | None
) -> None:
    state = torchvision_alexnet((8, 8, 8, 8, 8), 8, 3).state_dict()
    model = as_alexnet(from_state_dict(state), load_recipe("paper"), "torchvision")
    for key, value in change.items():
        group, _, name = key.rpartition(".")
        target = model.config if key in ("activation", "input_size") else model.recipe
        setattr(getattr(target, group) if group else target, name, value)
    model.recipe.fc8_bottleneck.units = 2
    changed = AlexNet(model.recipe, 3, model=model.config)
    mean = np.zeros((256, 256, 3), np.float32)
    if words is None:
        assert to_state_dict(changed, mean).keys() == state.keys()
        return
    with pytest.raises(ValueError, match=words):
        to_state_dict(changed, mean)


def _net() -> nn.ModuleDict:
    torch.manual_seed(0)
    return torchvision_alexnet((6, 10, 8, 7, 5), 12, 9)


def _prefixed(prefix: str, at: str = "") -> Callable[[nn.Module], dict[str, Tensor]]:
    """A state dict whose names have a prefix, at the start or after the first part."""

    def wrap(net: nn.Module) -> dict[str, Tensor]:
        state = net.state_dict()
        if not at:
            return {prefix + name: value for name, value in state.items()}
        return {name.replace(at, at + prefix, 1): value for name, value in state.items()}

    return wrap


def _below(*keys: str, prefix: str = "", **others: Any) -> Callable[[nn.Module], Any]:
    """A state dict below several keys, with other things beside it."""

    def wrap(net: nn.Module) -> Any:
        inner: Any = _prefixed(prefix)(net)
        for key in reversed(keys):
            inner = {"epoch": 90, key: inner, **others}
        return inner

    return wrap


def _averaged(net: nn.Module) -> Any:
    """As torchvision's reference scripts save it: the averages differ from the last weights."""
    average = {f"module.{name}": value for name, value in net.state_dict().items()}
    last = {name: value + 1 for name, value in net.state_dict().items()}
    return {"model": last, "model_ema": {"n_averaged": torch.tensor(7), **average}}


class Settings(dict):  # type: ignore[type-arg]
    """As yacs, EasyDict and Lightning keep settings: a class of somebody's program."""

    __getattr__ = dict.__getitem__


class Meter:
    """Any object of a training script."""

    def __init__(self) -> None:
        self.values, self.kind = [1.0, 2.0], Path("a")


class Losses(list):  # type: ignore[type-arg]
    """A subclass of a list."""


ARGS = argparse.Namespace(lr=0.01, data=Path("imagenet"), device=torch.device("cpu"))
OPTIMIZER = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.01}]}
WRAPPINGS: dict[str, Callable[[nn.Module], Any]] = {
    "plain": nn.Module.state_dict,
    "dict": lambda net: dict(net.state_dict()),
    "parameters": lambda net: dict(net.named_parameters()),
    "half": lambda net: net.half().float().half().state_dict(),
    "PyTorch's ImageNet example": lambda net: {
        "epoch": 90, "arch": "alexnet", "best_acc1": torch.tensor(56.5), "optimizer": OPTIMIZER,
        "state_dict": _prefixed("module.", at="features.")(net),
    },
    "DataParallel": lambda net: nn.DataParallel(net).state_dict(),
    "DataParallel of features": _prefixed("module.", at="features."),
    "torch.compile": _prefixed("_orig_mod."),
    "compiled features": _prefixed("_orig_mod.", at="features."),
    "compiled DataParallel": _prefixed("_orig_mod.module."),
    "DataParallel, compiled": _prefixed("module._orig_mod."),
    "twice DataParallel": _prefixed("module.module."),
    "FSDP": _prefixed("_fsdp_wrapped_module.", at="classifier."),
    "checkpointed layers": _prefixed("_checkpoint_wrapped_module.", at="features."),
    "model.": _prefixed("model."),
    "net.": _prefixed("net."),
    "net.module.": _prefixed("net.module."),
    "model.net._orig_mod.": _prefixed("model.net._orig_mod."),
    "backbone.": _prefixed("backbone."),
    "in a Sequential": _prefixed("1."),
    "state_dict": _below("state_dict", optimizer=OPTIMIZER),
    "model_state_dict": _below("model_state_dict", optimizer_state_dict=OPTIMIZER, loss=0.5),
    "model": _below("model", optimizer=OPTIMIZER, prefix="module."),
    "state_dict_ema": _below("state_dict_ema"),
    "net": _below("net", acc=56.5, prefix="module."),
    "weights": _below("weights"),
    "Lightning": _below("state_dict", prefix="model.", hyper_parameters=Settings(lr=0.1)),
    "two keys": _below("checkpoint", "state_dict", prefix="module."),
    "four keys": _below("a", "b", "c", "d"),
    "in a list": lambda net: [{"epoch": 1}, net.state_dict()],
    "in a tuple": lambda net: (net.state_dict(), 90),
    "features and classifier": lambda net: {
        name: child.state_dict() for name, child in net.named_children()
    },
    "reference scripts": _below("model", args=ARGS, lr_scheduler={"last_epoch": 3}),
    "averaged weights": _averaged,
    "NumPy's numbers": _below("state_dict", best=np.float64(56.5), curve=np.ones(3)),
    "objects": _below("model", args=ARGS, meter=Meter(), losses=Losses([1]), c=Settings(a=1)),
    "defaultdict": _below("model", history=defaultdict(list, loss=[1.0])),
    "whole module": lambda net: net,
    "whole DataParallel": nn.DataParallel,
    "module in a dict": lambda net: {"net": net, "epoch": 3},
}  # fmt: skip


SOURCES_OF_MODULES = {"whole module", "whole DataParallel", "module in a dict"}  # in old files
LEGACY = [(wrapping, True) for wrapping in WRAPPINGS if wrapping not in SOURCES_OF_MODULES]


@pytest.mark.parametrize(("wrapping", "legacy"), [*((w, False) for w in WRAPPINGS), *LEGACY])
def test_weights_are_found_in_every_wrapping(wrapping: str, legacy: bool, tmp_path: Path) -> None:
    net, source = _net(), tmp_path / "alexnet.pth"
    torch.save(WRAPPINGS[wrapping](net), source, _use_new_zipfile_serialization=not legacy)
    assert_same(read_state_dict(source), net)


def assert_same(state: Mapping[str, Tensor], net: nn.Module) -> None:
    assert state.keys() == net.state_dict().keys()
    assert all(torch.equal(state[name], value) for name, value in net.state_dict().items())


@pytest.mark.parametrize("name", ["net.safetensors", "net.bin", "net.pth", "net"])
def test_a_file_of_safetensors_is_known_by_its_content(name: str, tmp_path: Path) -> None:
    net = _net()
    save_file(_prefixed("model.")(net), tmp_path / name)
    assert_same(read_state_dict(tmp_path / name), net)


@pytest.mark.parametrize("wrapping", [
    "half", "DataParallel", "DataParallel of features", "torch.compile", "compiled features",
    "compiled DataParallel", "FSDP", "net.", "model.net._orig_mod.", "in a Sequential",
])  # fmt: skip
def test_safetensors_may_have_the_same_prefixes(wrapping: str, tmp_path: Path) -> None:
    net, source = _net(), tmp_path / "net.safetensors"
    save_file(WRAPPINGS[wrapping](net), source)
    assert_same(read_state_dict(source), net)


@pytest.mark.parametrize(("entry", "change"), [(None, 0), ("model_ema", 0), ("model", 1)])
def test_of_two_networks_the_averaged_one_is_read_unless_another_is_selected(
    entry: str | None, change: int, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    net, source = _net(), tmp_path / "model_90.pth"
    torch.save(_averaged(net), source)
    state = read_state_dict(source, entry)
    bias = net.state_dict()["classifier.6.bias"]
    torch.testing.assert_close(state["classifier.6.bias"], bias + change)
    told = f"{source}: uses the weights at model_ema, not at model"
    assert caplog.messages == ([told] if entry is None else [])


def test_of_two_equal_networks_one_has_to_be_selected(tmp_path: Path) -> None:
    net, source = _net(), tmp_path / "net.pth"
    state = {"teacher": net.state_dict(), "student": _net().state_dict()}
    torch.save(state, source)
    with pytest.raises(ValueError, match="contains several networks: teacher, student; select one"):
        read_state_dict(source)
    with pytest.raises(ValueError, match="entry=tutor is not one of its entries: teacher, stud"):
        read_state_dict(source, "tutor")
    assert_same(read_state_dict(source, "student"), net)


class Bomb:
    """Unpickled it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.mark), "w")


@pytest.mark.parametrize("legacy", [False, True], ids=["zip", "legacy"])
def test_code_beside_the_weights_is_not_run(legacy: bool, tmp_path: Path) -> None:
    net, source, mark = _net(), tmp_path / "net.pth", tmp_path / "code ran"
    loaded = {"model": net.state_dict(), "args": Bomb(mark)}
    torch.save(loaded, source, _use_new_zipfile_serialization=not legacy)
    assert_same(read_state_dict(source), net)
    assert not mark.exists()
    torch.load(source, weights_only=False)["args"].close()
    assert mark.exists()  # the bomb works


def _zip(*names: str, compression: int = ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with ZipFile(buffer, "w", compression) as archive:
        for name in names:
            archive.writestr(name, b"content" * 100)
    return buffer.getvalue()


def _saved(value: Any, legacy: bool = False, **options: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer, _use_new_zipfile_serialization=not legacy, **options)
    return buffer.getvalue()


def _with(name: str, value: Tensor) -> bytes:
    return _saved(_net().state_dict() | {name: value})


STRETCHED = torch.ones(1).expand(10**10)  # would take 40 GB
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a2146\nsize 244418560\n"
NO_MODELS: dict[str, tuple[bytes, str]] = {
    "empty": (b"", "is empty; copy or download it again"),
    "zeros": (bytes(10_000), "begins with zeros, as an interrupted download does"),
    "page": (b"<!DOCTYPE html>\n<html><head>", r"is a web page \(HTML\)"),
    "page after blanks": (b"\n\n  <html lang=en>\xc3\xa9", r"is a web page \(HTML\)"),
    "page in another code": ("<html><title>café".encode("latin-1"), r"is a web page \(HTML\)"),
    "one long line": ("é".encode() * 4000, "is a text"),
    "blank": (b" \n\t\n", r"is a text \(\)"),
    "one byte": (b"\x80", "is a plain pickle"),
    "long page": (b"<html>" + "é\n".encode() * 9000, r"is a web page \(HTML\)"),
    "error of a store": (b'<?xml version="1.0"?><Error>', "is an XML text, often the error mess"),
    "error of an API": (b'{"error": "Not found"}', "is a JSON text"),
    "answer": (b"Entry not found", r"is a text \(Entry not found\)"),
    "escapes": ("\u202eNot\tfound".encode(), "not a file of torch.save, of safetensors or of C"),
    "LFS pointer": (LFS, "is a Git LFS pointer, not the model itself; run git lfs pull"),
    "annex pointer": (b"/annex/objects/MD5E-s1--0.pth\n", "is a git-annex pointer"),
    "prototxt": (b'name: "AlexNet"\nlayer {\n  name: "conv1"\n', "is the text of a Caffe network"),
    "pickle": (pickle.dumps({"a": 1}, protocol=2), "is a plain pickle, which could run any code"),
    "newer pickle": (pickle.dumps(_net().state_dict()), "is a plain pickle"),
    "gzip": (gzip.compress(b"a"), "is compressed with gzip; unpack it"),
    "tar": (b"a" + bytes(256) + b"ustar" + bytes(250), "is a tar archive; unpack it"),
    "HDF5": (b"\x89HDF\r\n\x1a\n", "is an HDF5 file, as of Keras"),
    "npy": (b"\x93NUMPY\x01\x00", "is a NumPy array"),
    "npz": (_zip("a.npy", "b.npy"), "is an archive of NumPy arrays"),
    "ONNX": (b"\x08\x08\x12\x07pytorch", "is an ONNX graph"),
    "TFLite": (b"\x1c\0\0\0TFL3", "is a TensorFlow Lite model"),
    "PNG": (b"\x89PNG\r\n", "is a PNG image"),
    "zip": (_zip("a/net.pth", "a/\x1b[1mnotes"), "is a zip archive of 2 files, such as a/net.pth"),
    "repacked": (_zip("a/data.pkl", compression=ZIP_DEFLATED), "was packed again by another prog"),
    "TorchScript": (_zip("a/data.pkl", "a/constants.pkl"), "is a TorchScript program"),
    "torch.export": (_zip("a/models/model.json"), "is a program of torch.export"),
    "half a zip": (_saved(_net().state_dict())[:9000], "is a damaged or incomplete zip archive"),
    "half an old file": (_saved(_net().state_dict(), legacy=True)[:9000], "is damaged or incompl"),
    "no torch file": (_zip("a/data.pkl", "a/version"), "is damaged or incomplete"),
    "half a safetensors": ((999).to_bytes(8, "little") + b'{"a"', "is an incomplete safetensors"),
    "no safetensors": ((9).to_bytes(8, "little") + b'{"a": [1}', "is damaged or incomplete"),
    "old module": (_saved(_net(), legacy=True), "Python objects that cannot be read without runni"),
    "protocol 4": (_saved(_net().state_dict(), pickle_protocol=4), "saved with pickle_protocol=4"),
    "protocol 5 before torch 1.6": (_saved(_net().state_dict(), legacy=True, pickle_protocol=5),
                                    "is a plain pickle"),
    "class": (_saved(AlexNet), "contains no tensors"),
    "list": (_saved([1]), "contains no tensors"),
    "nothing": (_saved({}), "contains no tensors"),
    "our names": (_saved({"conv1.weight": torch.ones(1), "fc8.bias": torch.ones(1)}),
                  "has parameter names as in this package; load it with AlexNet.load_full_state"),
    "our module": (_saved(AlexNet("paper", 2, model=ModelConfig(width=1 / 24, input_size=64))),
                   "has parameter names as in this package"),
    "another network": (_saved({"layer1.0.conv1.weight": torch.ones(1)}),
                        r"contains 1 tensors \(layer1.0.conv1.weight, …\), but none of torchv"),
    "escapes in names": (_saved({"\x1b[1mweight": torch.ones(1)}), r"\(\\x1b\[1mweight, …\)"),
    "sparse": (_with("classifier.6.weight", torch.ones(9, 12).to_sparse()), "is not a dense float"),
    "integers": (_with("classifier.6.bias", torch.ones(9, dtype=torch.int8)), "is not a dense flo"),
    "meta": (_with("classifier.6.bias", torch.ones(9, device="meta")), r"tensor \(meta\)"),
    "stretched": (_with("classifier.6.bias", STRETCHED), "is damaged or incomplete"),
    "NaN": (_with("classifier.6.bias", torch.full((9,), math.nan)), "its fc8 contains numbers tha"),
    "batch norm": (_with("features.1.running_mean", torch.ones(6)), "running_mean is unexpected"),
    "batch norm in a module": (_saved(nn.ModuleDict({
        "features": nn.Sequential(*_net()["features"], nn.BatchNorm2d(5)),
        "classifier": _net()["classifier"]})), "features.13.* is unexpected"),
    "incomplete": (_saved({"features.0.bias": torch.ones(6)}), "classifier.1.bias is missing"),
}  # fmt: skip


OTHER_SUFFIXES = [
    (kind, suffix)
    for kind in ("empty", "page", "LFS pointer", "half a zip", "class", "half a safetensors")
    for suffix in (".safetensors", ".caffemodel")
]


@pytest.mark.parametrize(("kind", "suffix"), [*((k, ".pth") for k in NO_MODELS), *OTHER_SUFFIXES])
def test_a_file_that_is_no_model_is_named_for_what_it_is(
    kind: str, suffix: str, tmp_path: Path
) -> None:
    data, words = NO_MODELS[kind]
    source = tmp_path / f"net{suffix}"
    source.write_bytes(data)
    with pytest.raises(ConfigError) as refusal:
        run(ImportConfig(str(source), str(tmp_path / "out")), tmp_path)
    message = str(refusal.value)
    assert re.search(words, message), message
    assert message.isprintable()  # one line, without terminal escapes
    assert "weights_only" not in message
    assert refusal.value.key == "source"
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder", "pipe", "device"])
def test_what_is_no_regular_file_is_refused(kind: str, tmp_path: Path) -> None:
    source = tmp_path / "net.pth"
    if kind == "folder":
        source.mkdir()
    elif kind == "pipe":
        os.mkfifo(source)
    else:
        source.symlink_to("/dev/zero")
    words = "is a folder" if kind == "folder" else "is not a regular file"
    with pytest.raises(ConfigError, match=words):
        run(ImportConfig(str(source), str(tmp_path / "out")), tmp_path)


def _state(**changes: Tensor) -> dict[str, Tensor]:
    state = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9).state_dict()
    return state | {name.replace("_", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (_state(features_3_weight=torch.zeros(10, 3, 5, 5)),
         r"features.3.weight has shape \[10, 3, 5, 5\] and must .*6, 5, 5\].*two-tower"),
        (_state(classifier_1_weight=torch.zeros(12, 99)), r"must have \[rows, 180\]"),
    ],
)  # fmt: skip
def test_a_state_dict_with_other_shapes_is_refused(state: Any, words: str, tmp_path: Path) -> None:
    source = tmp_path / "net.pth"
    torch.save(state, source)
    with pytest.raises(ConfigError, match=words):
        run(ImportConfig(str(source), str(tmp_path / "out")), tmp_path)


def test_an_import_overwrites_nothing_and_checks_its_settings(tmp_path: Path) -> None:
    source, out, text = (tmp_path / name for name in ("net.pth", "out", "classes.txt"))
    torch.save(_state(), source)
    text.write_text("cat\ndog\n")
    for config, words in (
        (ImportConfig(str(source), str(tmp_path)), "already exists"),
        (
            ImportConfig(str(source), str(out), classes=str(text)),
            "lists 2 classes, but the model has",
        ),
        (ImportConfig(str(source), str(out), mean=str(text)), "mean=.*classes.txt: is a text"),
        (ImportConfig(str(source), str(out), classes=str(source)), "is not a text file in UTF-8"),
        (ImportConfig(str(source), str(out), picture_size=200), "picture_size=200: must be at"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(config, tmp_path)
    assert not out.exists()
    run(ImportConfig(str(source), str(out)), tmp_path)
    assert manifest.read_progress(out).step == 0
