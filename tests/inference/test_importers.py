"""Imported models of Caffe and torchvision reproduce their original logits.

Tolerance: float32 against float64, 1e-5 of the largest logit; further assertions show that each
conversion matters.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import caffe
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch import Tensor, nn

from alexnet2012.checkpoint import manifest
from alexnet2012.config.enums import Device
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.sources.photos import photograph
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.import_net import run
from alexnet2012.inference.importers.caffe import read_caffemodel
from alexnet2012.inference.importers.recipe_from_net import as_alexnet
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
        (b"", "contains no layers with weights"),
        (b"a text that is no protocol buffer", "protocol buffer|a different type|is truncated"),
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


def _state(**changes: Tensor) -> dict[str, Tensor]:
    state = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9).state_dict()
    return state | {name.replace("_", "."): value for name, value in changes.items()}


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (_state(features_3_weight=torch.zeros(10, 3, 5, 5)),
         r"features.3.weight has shape \[10, 3, 5, 5\] and must .*6, 5, 5\].*two-tower"),
        (_state(classifier_1_weight=torch.zeros(12, 99)), r"must have \[rows, 180\]"),
        (_state(features_1_running_mean=torch.zeros(3)), "features.1.running.mean is unexpected"),
        ({}, "classifier.1.bias is missing"),
        (AlexNet, "cannot be loaded as tensors"),  # a pickled class
        ([1], "does not contain a state dict"),
    ],
)  # fmt: skip
def test_a_state_dict_with_other_names_or_shapes_is_refused(
    state: Any, words: str, tmp_path: Path
) -> None:
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
        (ImportConfig(str(source), str(out), mean=str(text)), "mean=.*classes.txt"),
        (ImportConfig(str(source), str(out), picture_size=200), "picture_size=200: must be at"),
    ):
        with pytest.raises(ConfigError, match=words):
            run(config, tmp_path)
    assert not out.exists()
    run(ImportConfig(str(source), str(out)), tmp_path)
    assert manifest.read_progress(out).step == 0
