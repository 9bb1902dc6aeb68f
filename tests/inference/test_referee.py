"""The referee names what was changed in a network, and nothing else."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import caffe
import nets
import numpy as np
import pytest
import torch
from definitions import written
from nets import OURS, TIMM, TORCHVISION, state_dict
from safetensors.torch import save, save_file
from torch import nn

from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError, ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.import_net import run as import_run
from alexnet2012.inference.onnx_graph import onnx_model
from alexnet2012.inference.referee.compare import Comparison, compare
from alexnet2012.inference.referee.network import network_of_recipe
from alexnet2012.inference.referee.read import read_network
from alexnet2012.inference.trained_model import TrainedModel, export_metadata
from alexnet2012.nn.alexnet import AlexNet

Names = set[tuple[str, str]]
WIDTH = ("", "width")
SMALL: Names = {WIDTH, ("", "input size")}  # of our own networks here
LRN_LAYERS = ("conv1", "conv2")
RECIPES = {name: load_recipe(name) for name in ("paper", "code145")}


def found(comparison: Comparison, reference: str) -> Names:
    return {(d.layer, d.item) for d in comparison.differences if reference in d.differs_from}


def in_both(item: str, layers: tuple[str, ...] = LRN_LAYERS) -> Names:
    return {(layer, item) for layer in layers}


def own(base: str, changes: Mapping[str, Any], classes: int = 1000) -> TrainedModel:
    """A network of a recipe, a sixteenth as wide, for 64 pixels."""
    recipe, config = deepcopy(RECIPES[base]), ModelConfig(width=1 / 16, input_size=64)
    for key, value in changes.items():
        group, _, name = key.rpartition(".")
        target: Any = recipe
        for part in group.split(".") if group else ():
            target = config if part == "model" else getattr(target, part)
        setattr(target, name, value)
    mean = np.random.default_rng(0).uniform(60, 160, (64, 64, 3)).astype(np.float32)
    model = AlexNet(recipe, classes, model=config).eval()
    return TrainedModel(model, tuple(map(str, range(classes))), mean, None)


def onnx(trained: TrainedModel, path: Path) -> Path:
    mean = np.ascontiguousarray(trained.mean_image.transpose(2, 0, 1))
    with torch.no_grad():
        model = trained.model.requires_grad_(False)
        path.write_bytes(onnx_model(model, mean, "{}").SerializeToString())
    return path


def safetensors(trained: TrainedModel, path: Path) -> Path:
    state = {**trained.model.full_state_dict(), "mean_image": torch.from_numpy(trained.mean_image)}
    path.write_bytes(save(state, {"alexnet2012": export_metadata(trained)}))
    return path


FORMATS = {"onnx": onnx, "safetensors": safetensors}


@pytest.mark.parametrize("base", ["paper", "code145"])
@pytest.mark.parametrize("form", FORMATS)
def test_our_own_networks_do_not_differ(form: str, base: str, tmp_path: Path) -> None:
    path = FORMATS[form](own(base, {}), tmp_path / f"net.{form}")
    comparison = compare(read_network(path))
    assert found(comparison, base) == SMALL
    (other,) = {"paper", "code145"} - {base}
    architecture = {("conv1", "border"), ("conv1", "order"), ("conv2", "spatial norm"),
                    *in_both("LRN alpha"),
                    *in_both("initial weights", ("conv3", "conv4", "conv5"))}  # fmt: skip
    training = {d for d in found(comparison, other) if d[1].startswith(("augment", "shuffle"))}
    assert found(comparison, other) - training == SMALL | architecture
    assert bool(training) == (form == "safetensors")
    assert not any(text in comparison.unknown for text in ("border", "stride", "dropout"))


RELU, LRN, POOL = LayerOp.activation, LayerOp.lrn, LayerOp.max_pool
POOLED = ("conv1", "conv2", "conv5")
PLANTED: list[tuple[str, dict[str, Any], Names]] = [
    ("paper", {"conv1.padding": 0}, {("conv1", "border")}),
    ("code145", {"conv1.overhang": False}, {("conv1", "border")}),
    ("paper", {"conv2.kernel_size": 3}, {("conv2", "kernel size")}),
    ("paper", {"conv1.stride": 2}, {("conv1", "stride")}),
    ("paper", {"conv4.reads_both_towers": True}, {("conv4", "reads")}),
    ("paper", {"fc7.reads_both_towers": False}, {("fc7", "reads")}),
    ("paper", {"lrn.k": 1.0}, in_both("LRN k")),
    ("code145", {"lrn.beta": 0.5}, in_both("LRN beta")),
    ("code145", {"lrn.alpha": 5e-4}, in_both("LRN alpha")),
    ("paper", {"lrn.size": 3}, in_both("LRN size")),
    ("paper", {"lrn_across_towers": True}, in_both("LRN windows")),
    ("paper", {"conv1.after": [RELU, POOL, LRN]}, {("conv1", "order")}),
    ("paper", {"conv1.after": [RELU, POOL]}, {("conv1", "LRN")}),
    ("paper", {"conv5.after": [POOL, RELU]}, set()),  # computes the same
    ("paper", {"pool.size": 2}, in_both("pool size", POOLED)),
    ("paper", {"conv2.after": [RELU, LRN, LayerOp.spatial_norm, POOL]},
     {("conv2", "spatial norm")}),
    ("code145", {"spatial_norm.size": 3, "spatial_norm.alpha": 1e-3 * 9 / 25},
     {("conv2", "spatial norm size")}),
    ("paper", {"model.activation": Activation.tanh}, {("", "activation")}),
    ("paper", {"conv2.kernels": 320}, {("conv2", "kernels")}),
    ("code145", {"fc6.units": 3072}, {("fc6", "units")}),
    ("paper", {"dropout_rate": 0.3}, {("", "dropout")}),
    ("paper", {"conv4.init_bias": 0.0}, {("conv4", "initial biases")}),
    ("paper", {"conv3.init_std": 0.03}, {("conv3", "initial weights")}),
    ("paper", {"conv5.present": False, "conv4.after": [RELU, POOL]},
     {("conv5", "layer"), ("conv4", "pool")}),
    ("paper", {"conv6.present": True}, {("conv6", "layer")}),
]  # fmt: skip
ONLY_OURS: list[tuple[str, dict[str, Any], Names]] = [
    ("paper", {"augment.lighting": False}, {("", "augment.lighting")}),
    ("code145", {"optimizer.weight_decay": 0.0}, {("", "optimizer.weight_decay")}),
    ("paper", {"dropout_rate": 0.0}, {("", "dropout")}),
]


def _id(value: object) -> str:
    return " ".join(value) if isinstance(value, dict) else ""


@pytest.mark.parametrize(("base", "changes", "expected"), PLANTED, ids=_id)
def test_one_change_to_our_network_is_named_from_its_onnx_file(
    base: str, changes: dict[str, Any], expected: Names, tmp_path: Path
) -> None:
    comparison = compare(read_network(onnx(own(base, changes), tmp_path / "net.onnx")))
    names = {(layer.removesuffix(" (extra)"), item) for layer, item in found(comparison, base)}
    assert names == SMALL | expected


@pytest.mark.parametrize(
    ("base", "changes", "expected"), [PLANTED[0], PLANTED[10], PLANTED[-1], *ONLY_OURS], ids=_id
)
def test_one_change_is_named_from_a_file_with_its_recipe(
    base: str, changes: dict[str, Any], expected: Names, tmp_path: Path
) -> None:
    path = safetensors(own(base, changes), tmp_path / "net.safetensors")
    assert found(compare(read_network(path)), base) == SMALL | expected


def test_the_mean_and_the_classes_are_named(tmp_path: Path) -> None:
    trained = own("paper", {}, classes=10)
    colour = replace(trained, mean_image=np.full((64, 64, 3), 120, np.float32))
    for form, write in FORMATS.items():
        comparison = compare(read_network(write(colour, tmp_path / f"net.{form}")))
        assert found(comparison, "paper") == SMALL | {("", "mean"), ("fc8", "classes")}
    (mean,) = (d for d in comparison.differences if d.item == "mean")
    assert (mean.file, mean.paper) == ("mean colour", "mean image")


@pytest.mark.parametrize("recipe", ["paper", "code145", "code146_2011"])
def test_parameters_are_those_of_the_network_that_is_built(recipe: str) -> None:
    settings = load_recipe(recipe)
    with torch.device("meta"):
        model = AlexNet(settings, 1000, mesh=Mesh(torch.device("meta")))
    shapes = model.full_shapes()
    network = network_of_recipe(settings, 1000)
    counts = {layer.name: layer.parameters for layer in network.layers}
    assert counts == {
        name: sum(int(np.prod(shapes[f"{name}.{part}"])) for part in ("weight", "bias"))
        for name in model.layers()
    }
    assert recipe == "code146_2011" or sum(filter(None, counts.values())) == 60_965_224


# State dicts


def saved(state: Mapping[str, Any], path: Path) -> Path:
    if path.suffix == ".safetensors":
        save_file({name: value.contiguous() for name, value in state.items()}, path)
    else:
        torch.save(dict(state), path)
    return path


LAYOUTS = {"torchvision": TORCHVISION, "timm": TIMM, "ours": OURS}


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_state_dict_of_the_papers_shapes_does_not_differ(
    layout: str, suffix: str, tmp_path: Path
) -> None:
    network = read_network(saved(state_dict(LAYOUTS[layout]), tmp_path / f"net{suffix}"))
    comparison = compare(network)
    assert found(comparison, "paper") == found(comparison, "code145") == {WIDTH}
    # Nothing is guessed of what tensors cannot tell.
    unknown = ", ".join(comparison.unknown)
    for words in ("stride", "border", "LRN", "pools", "dropout", "pixels", "optimizer"):
        assert words in unknown
    assert network.trained


STATES: list[tuple[dict[str, Any], Names]] = [
    ({"kernels": (6, 24, 24, 24, 16)}, {("conv2", "kernels")}),
    ({"sizes": (7, 5, 3, 3, 3)}, {("conv1", "kernel size")}),
    ({"groups": (1, 1, 1, 2, 2)}, {("conv2", "reads")}),
    ({"units": (192, 256)}, {("fc6", "units")}),
    ({"classes": 10}, {("fc8", "classes")}),
    ({"channels": 1}, {("conv1", "channels")}),
    ({"maps": 5}, {("fc6", "maps read")}),
]


@pytest.mark.parametrize(("change", "expected"), STATES, ids=_id)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_one_change_of_a_shape_is_named(
    layout: str, change: dict[str, Any], expected: Names, tmp_path: Path
) -> None:
    path = saved(state_dict(LAYOUTS[layout], **change), tmp_path / "net.pth")
    assert found(compare(read_network(path)), "paper") == {WIDTH} | expected


def test_missing_layers_and_biases_and_batch_normalisation_are_named(tmp_path: Path) -> None:
    state = state_dict(without=["features.3.bias"])
    path = saved(state, tmp_path / "net.pth")
    assert found(compare(read_network(path)), "paper") == {WIDTH, ("conv2", "biases")}
    norm = {f"features.1.{part}": torch.ones(6) for part in ("weight", "bias", "running_mean")}
    norm["features.1.num_batches_tracked"] = torch.tensor(3)
    path = saved(state_dict() | norm, tmp_path / "net.pth")
    named = {WIDTH, ("", "batch normalisation (of 1)")}
    assert found(compare(read_network(path)), "paper") == named
    plain = {"features.1.weight": torch.ones(6), "features.1.bias": torch.ones(6)}
    path = saved(state_dict() | plain | {"prelu.weight": torch.ones(1)}, tmp_path / "net.pth")
    assert found(compare(read_network(path)), "paper") == {
        WIDTH,
        ("", "normalisation with parameters (of 1)"),
        ("", "parameters of no layer: prelu.weight"),
    }
    fewer = state_dict(TORCHVISION[:3] + TORCHVISION[4:], kernels=(6, 16, 24, 16),
                       sizes=(11, 5, 3, 3), groups=(1, 2, 1, 2))  # fmt: skip
    path = saved(fewer, tmp_path / "net.pth")
    assert found(compare(read_network(path)), "paper") == {WIDTH, ("conv4", "layer")}


def test_initial_values_are_seen_in_a_network_that_was_not_trained(tmp_path: Path) -> None:
    path = saved(state_dict(OURS, initial=(0.03, 1.0)), tmp_path / "net.pth")
    network = read_network(path)
    assert not network.trained
    names = found(compare(network), "paper")
    assert {("conv1", "initial biases"), ("conv3", "initial biases")} <= names
    assert ("conv4", "initial biases") not in names
    assert ("conv1", "initial weights") in names


def test_the_averaged_weights_of_a_checkpoint_are_read(tmp_path: Path) -> None:
    ema = {f"module.{k}": v for k, v in state_dict(classes=10).items()}
    path = saved({"model": state_dict(), "state_dict_ema": ema, "epoch": 3}, tmp_path / "net.pth")
    assert ("fc8", "classes") in found(compare(read_network(path)), "paper")
    assert found(compare(read_network(path, entry="model")), "paper") == {WIDTH}


# ONNX graphs of others


def test_torchvisions_network_differs_as_its_program_says(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.onnx_file(nets.torchvision_nodes()))
    comparison = compare(read_network(path))
    assert found(comparison, "paper") == {
        *in_both("LRN"), *in_both("reads", ("conv2", "conv4", "conv5")),
        *in_both("kernels", ("conv1", "conv2", "conv4")),
    }  # fmt: skip
    assert sum(row.file or 0 for row in comparison.parameters) == 61_100_840
    assert {"dropout", "pixels", "mean"} <= set(comparison.unknown)


ONNX: list[tuple[int, Any, Names]] = [
    (1, ("LeakyRelu", {"alpha": 0.1}), {("", "activation")}),
    (3, ("Conv", {"name": "features.3", "weight": (192, 64, 5, 5), "pads": [2, 2, 2, 2],
                  "dilations": [2, 2]}), {("conv2", "dilation")}),
    (2, ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}),
     {("conv1", "pool border")}),
    (2, ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2]}), {("conv1", "pool kind")}),
    (13, ("GlobalAveragePool", {}), {("conv5", "GlobalAveragePool")}),
    (5, ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}),
     {("conv2", "pool border")}),
    (13, ("Pow", {"constants": [2.0]}), {("conv5", "a square")}),
    (13, ("BatchNormalization", {"constants": [0.0]}), {("conv5", "BatchNormalization")}),
    (6, ("Conv", {"name": "features.6", "weight": (384, 192, 3, 3), "auto_pad": "VALID"}),
     {("conv3", "border")}),
]  # fmt: skip


@pytest.mark.parametrize(("index", "node", "expected"), ONNX)
def test_one_change_of_a_graph_is_named(
    index: int, node: nets.Node, expected: Names, tmp_path: Path
) -> None:
    nodes, path = nets.torchvision_nodes(), tmp_path / "net.onnx"
    path.write_bytes(nets.onnx_file(nodes))
    before = found(compare(read_network(path)), "paper")
    nodes[index] = node
    path.write_bytes(nets.onnx_file(nodes))
    assert found(compare(read_network(path)), "paper") == before | expected


def test_zeros_that_an_operator_of_their_own_adds_are_a_border(tmp_path: Path) -> None:
    path, nodes = tmp_path / "net.onnx", nets.torchvision_nodes()
    path.write_bytes(nets.onnx_file(nodes))
    before = compare(read_network(path)).differences
    nodes[0][1].pop("pads")  # type: ignore[attr-defined]
    nodes.insert(0, ("Pad", {"pads": [0, 0, 2, 2, 0, 0, 2, 2]}))
    path.write_bytes(nets.onnx_file(nodes))
    assert compare(read_network(path)).differences == before


def test_a_network_for_images_that_the_papers_could_not_read_is_compared(tmp_path: Path) -> None:
    nodes, path = nets.torchvision_nodes(), tmp_path / "net.onnx"
    nodes[0] = ("Conv", {"name": "features.0", "weight": (64, 3, 3, 3), "pads": [1] * 4})
    path.write_bytes(nets.onnx_file(nodes, size=32))
    names = found(compare(read_network(path)), "paper")
    assert {("", "input size"), ("conv1", "kernel size"), ("conv1", "stride")} <= names


MEAN, STD = [[[0.485]], [[0.456]], [[0.406]]], [[[0.226]]] * 3
NORMALISE: list[nets.Node] = [("Sub", {"constants": [MEAN]}), ("Div", {"constants": [STD]})]


@pytest.mark.parametrize("before", [[], [("Div", {"constants": [255.0]})]])
def test_a_graph_says_what_it_does_to_pixels(before: list[nets.Node], tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.onnx_file([*before, *NORMALISE, *nets.torchvision_nodes()]))
    differences = compare(read_network(path)).differences
    texts = {d.item: d.file for d in differences if d.layer == ""}
    assert texts == {"mean": "mean colour", "pixels": "grey levels × 0.0174"}


def test_the_size_after_a_resize_and_the_dropout_of_outputs_are_not_guessed(tmp_path: Path) -> None:
    path, nodes = tmp_path / "net.onnx", nets.torchvision_nodes()
    nodes = [("Resize", {}), *nodes, ("Div", {"constants": [2.0]}), ("ArgMax", {})]
    path.write_bytes(nets.onnx_file(nodes, size=256))
    comparison = compare(read_network(path))
    texts = {(d.layer, d.item): d.file for d in comparison.differences}
    assert texts["", "Resize before the first layer"] == texts["fc8", "a constant factor"] == "yes"
    assert ("fc8", "ArgMax") not in texts
    assert {"input size", "dropout"} <= set(comparison.unknown)


def test_of_several_outputs_the_one_after_most_layers_is_compared(tmp_path: Path) -> None:
    from onnx import ModelProto

    model = ModelProto.FromString(nets.onnx_file(nets.torchvision_nodes()))
    outputs = [model.graph.output[0].name, model.graph.node[13].output[0]]
    del model.graph.output[:]
    for name in reversed(outputs):
        model.graph.output.add(name=name)
    (tmp_path / "net.onnx").write_bytes(model.SerializeToString())
    assert len(read_network(tmp_path / "net.onnx").linears) == 3


def test_towers_of_separate_layers_are_the_papers(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(nets.towers_file())
    comparison = compare(read_network(path))
    assert found(comparison, "paper") == {WIDTH, ("", "mean")}
    assert {row.layer: row.file for row in comparison.parameters}["conv2"] == 16 * 3 * 25 + 16


class Paper(nn.Sequential):
    """The paper's network in torch's own layers."""

    def __init__(self) -> None:
        def after(count: int) -> list[nn.Module]:
            norm = [nn.LocalResponseNorm(5, 5e-4, 0.75, 2.0)] if count < 2 else []
            return [nn.ReLU(), *norm, *([nn.MaxPool2d(3, 2)] if count in (0, 1, 4) else [])]

        layers: list[nn.Module] = []
        channels = 3
        for i, (count, size) in enumerate(zip(nets.KERNELS, nets.SIZES, strict=True)):
            stride, pad = (4, 2) if i == 0 else (1, size // 2)
            conv = nn.Conv2d(channels, count, size, stride, pad, groups=nets.GROUPS[i])
            layers += [conv, *after(i)]
            channels = count
        layers += [nn.Flatten(), nn.Linear(channels * 36, 256), nn.ReLU(), nn.Dropout(),
                   nn.Linear(256, 256), nn.ReLU(), nn.Dropout(), nn.Linear(256, 1000)]  # fmt: skip
        super().__init__(*layers)


def test_torchs_own_export_is_read(tmp_path: Path) -> None:
    """Its normalisation is a chain of nine operators and a condition."""
    path = tmp_path / "net.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            Paper(), (torch.zeros(1, 3, 224, 224),), str(path), dynamo=False,
            training=torch.onnx.TrainingMode.TRAINING,
        )  # fmt: skip
    assert found(compare(read_network(path)), "paper") == {WIDTH, *in_both("LRN windows")}


NO_GRAPHS: dict[str, tuple[Callable[[], bytes], str]] = {
    "cut": (lambda: nets.onnx_file(nets.torchvision_nodes())[:-300], "truncated|protocol buffer"),
    "nothing": (lambda: b"\x08\x08\x12\x07pytorch", "is not an ONNX graph, or has no operators"),
    "residual": (lambda: _joined("Add"), "node node1: Add of two values, which no AlexNet has"),
    "branches": (lambda: _joined("Concat"), "node node1: it joins branches that differ"),
    "two layers": (lambda: nets.onnx_file(nets.torchvision_nodes()[:4]), "has 2 convolutions and"),
    "loop": (lambda: nets.onnx_file([("Loop", {"body": _empty_graph()})]), "Loop is not supported"),
    "long": (lambda: nets.onnx_file([("Relu", {})] * 600), "more than 500 operations lead to it"),
    "order": (lambda: nets.onnx_file(nets.torchvision_nodes()[::-1]), "convolution after a fully"),
}


def _empty_graph() -> Any:
    from onnx import helper

    return helper.make_graph([], "body", [], [])


def _joined(kind: str) -> bytes:
    from onnx import ModelProto

    model = ModelProto.FromString(nets.onnx_file(nets.torchvision_nodes()))
    model.graph.node[1].op_type = kind
    model.graph.node[1].input.append("image")
    data: bytes = model.SerializeToString()
    return data


@pytest.mark.parametrize("kind", NO_GRAPHS)
def test_another_graph_is_refused_in_one_line(kind: str, tmp_path: Path) -> None:
    make, words = NO_GRAPHS[kind]
    path = tmp_path / "net.onnx"
    path.write_bytes(make())
    with pytest.raises(ConfigError, match=words) as refusal:
        read_network(path)
    assert refusal.value.key == "NET"
    assert str(refusal.value).isprintable()


# Caffe

CAFFE_BASE: Names = {WIDTH, ("", "input size"), *in_both("LRN k"), *in_both("LRN windows")}
CAFFE_PAPER = CAFFE_BASE | {("conv1", "border"), *in_both("LRN alpha")}
FILLED = {"weight_filler": {"type": "gaussian", "std": 0.01}, "bias_filler": {"value": 1}}
CAFFES: list[tuple[dict[str, Any], Names]] = [
    ({}, set()),
    ({"drop6": {"dropout_param": {"dropout_ratio": 0.4}}}, {("", "dropout")}),
    ({"drop7": None}, {("", "dropout")}),
    ({"pool1": {"pooling_param": {"stride": 3}}}, {("conv1", "pool stride")}),
    ({"pool2": {"pooling_param": {"pool": 1}}}, {("conv2", "pool kind")}),
    ({"norm2": None}, {("conv2", "LRN")}),
    ({"norm1": {"lrn_param": {"beta": 0.5}}}, {("conv1", "LRN beta")}),
    ({"conv3": {"convolution_param": {"pad": [0]}}}, {("conv3", "border")}),
    ({"relu3": {"relu_param": {"negative_slope": 0.1}}}, {("", "activation")}),
    ({"relu7": {"type": "Sigmoid"}}, {("", "activation")}),
    ({"data": {"transform_param": {"scale": 0.02}}}, {("", "pixels")}),
    ({"data": {"transform_param": {"mean_file": "", "mean_value": [104.0, 117.0, 123.0]}}},
     {("", "mean")}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("form", "changes", "expected"),
    [*(("text", *case) for case in CAFFES), *(("weights", *case) for case in CAFFES[:3])],
    ids=_id,
)
def test_one_change_of_caffes_network_is_named(
    form: str, changes: dict[str, Any], expected: Names, tmp_path: Path
) -> None:
    layers = nets.caffe_layers(**changes)
    if form == "text":
        path = tmp_path / "net.prototxt"
        path.write_text(nets.prototxt(layers))
    else:
        path = tmp_path / "net.caffemodel"
        path.write_bytes(caffe.caffemodel(layers, old=changes == {}))
    comparison = compare(read_network(path))
    expected = CAFFE_PAPER | expected
    expected -= {d for d in expected if d[0] == "conv2" and ("conv2", "LRN") in expected
                 and d[1].startswith("LRN ")}  # fmt: skip
    assert found(comparison, "paper") == expected
    assert "initial weights" in comparison.unknown


def test_caffes_text_says_how_weights_are_filled(tmp_path: Path) -> None:
    layers = nets.caffe_layers(conv4={"convolution_param": FILLED})
    (tmp_path / "net.prototxt").write_text(nets.prototxt(layers))
    network = read_network(tmp_path / "net.prototxt")
    assert (network.convolutions[3].init_std, network.convolutions[3].init_bias) == (0.01, 1.0)
    assert found(compare(network), "code145") >= {("conv4", "initial weights")}
    assert found(compare(network), "paper") == CAFFE_PAPER
    # A text in the old format, beside its weights.
    text = nets.prototxt(layers).replace("layer {", "layers {")
    text = text.replace('"Convolution"', "CONVOLUTION").replace('"Data"', "DATA")
    (tmp_path / "old.prototxt").write_text(text)
    (tmp_path / "net.caffemodel").write_bytes(caffe.caffemodel(nets.caffe_layers(), old=True))
    both = read_network(tmp_path / "net.caffemodel", tmp_path / "old.prototxt")
    assert found(compare(both), "paper") == CAFFE_PAPER
    assert both.convolutions[3].init_std == 0.01


def test_of_a_text_for_deployment_dropout_may_be_left_out(tmp_path: Path) -> None:
    layers = nets.caffe_layers(data=None, drop6=None, drop7=None, loss=None)
    (tmp_path / "net.prototxt").write_text(nets.prototxt(layers))
    assert "dropout" in compare(read_network(tmp_path / "net.prototxt")).unknown


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer { name: 'conv1' ", "line 1, at its end: expected the name of a field"),
        ("layer { type: [Data }", "line 1, at .*: expected , or ]"),
        ("layer {\n lrn_param { k: two } }", "line 2, at .*: k is not a number"),
        ("layer { lrn_param: 3 }", "lrn_param has a value of another type"),
        ("layer { convolution_param { num_output: -1 } }", "num_output is not a whole number"),
        ("layer { a: 1 }" + "a {" * 50, "is nested too deeply"),
        ("layer { name: \"a\\", "cannot be read|is a text"),
        ("layer { type: 'Concat' }", "Concat is not supported; only a chain of layers"),
        ("layer { type: 'Dropout' }", "dropout before the first layer is not supported"),
        ("layer { type: 'Convolution' }", "0 kernels of 0 pixels in 1 groups"),
        ("layer { type: 'Data' }", "has 0 convolutions and 0 fully connected layers"),
    ],
)  # fmt: skip
def test_a_text_that_is_no_network_is_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "net.prototxt").write_text(text)
    with pytest.raises(ConfigError, match=words) as refusal:
        read_network(tmp_path / "net.prototxt")
    assert str(refusal.value).isprintable()


def test_weights_that_are_not_those_of_the_text_are_refused(tmp_path: Path) -> None:
    model, text = tmp_path / "net.caffemodel", tmp_path / "net.prototxt"
    model.write_bytes(caffe.caffemodel(nets.caffe_layers(), old=False))
    text.write_text(nets.prototxt(nets.caffe_layers(conv3={"convolution_param": {"group": 2}})))
    with pytest.raises(ConfigError, match="conv3: has 3,456 weights; its settings need 1,728"):
        read_network(model, text)
    text.write_text(nets.prototxt(nets.caffe_layers(fc7=None)))
    with pytest.raises(ConfigError, match="layer fc7 has weights, but the text has no such layer"):
        read_network(model, text)


# Definitions of the 2012 code


def test_the_definition_145_does_not_differ_from_145(tmp_path: Path) -> None:
    layers, params = written(load_recipe("code145"), tmp_path)
    comparison = compare(read_network(layers, params=params))
    assert not [d for d in comparison.differences if "code145" in d.differs_from]
    assert comparison.unknown == ["pixels", "mean", "order of the images, augmentation"]


def test_what_a_definition_changes_is_named(tmp_path: Path) -> None:
    recipe = load_recipe("code145")
    conv2 = replace(recipe.conv2, after=[LayerOp.activation, LayerOp.dropout], init_bias=0.5)
    changed = replace(recipe, conv2=conv2, conv_dropout_rate=0.25)
    layers, params = written(changed, tmp_path)
    comparison = compare(read_network(layers, params=params))
    items = {(d.layer, d.item) for d in comparison.differences if "code145" in d.differs_from}
    assert items == {
        *(("conv2", item) for item in ("LRN", "spatial norm", "pool", "initial biases")),
        ("", "dropout"),
    }


@pytest.mark.parametrize("key", ["NET", "--params"])
def test_of_two_files_the_damaged_one_is_named(key: str, tmp_path: Path) -> None:
    files = dict(zip(("NET", "--params"), written(load_recipe("code145"), tmp_path), strict=True))
    files[key].write_bytes(b"\xff")
    with pytest.raises(ConfigError) as refusal:
        read_network(files["NET"], params=files["--params"])
    assert (refusal.value.key, refusal.value.value) == (key, files[key])


# Other files


def test_of_an_imported_network_the_training_is_not_known(tmp_path: Path) -> None:
    source = saved(state_dict(groups=(1, 1, 1, 1, 1)),
                   tmp_path / "net.pth")  # fmt: skip
    import_run(ImportConfig(str(source), str(tmp_path / "imported")), tmp_path)
    comparison = compare(read_network(tmp_path / "imported"))
    assert not {d.item for d in comparison.differences} & {"initial weights", "initial biases"}
    assert "training (optimizer, augmentation)" in comparison.unknown


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("layers-145.cfg", b"[data]\ntype=data\n", "needs the parameters of its training; add"),
        ("net.pth", b"", "is empty"),
        ("net.bin", b"\xff\x00junk" * 50, "is not a file of torch.save, safetensors, ONNX or"),
        ("net.caffemodel", b"\xff\x00junk" * 50, "protocol buffer|truncated"),
        ("net.pth", b"<html>", "is a web page"),
        ("net.onnx", b"\x3a\x05junk", "truncated|protocol buffer"),
    ],
)
def test_other_files_are_named_for_what_they_are(
    name: str, content: bytes, words: str, tmp_path: Path
) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ConfigError, match=words) as refusal:
        read_network(tmp_path / name)
    assert (refusal.value.key, str(refusal.value).isprintable()) == ("NET", True)


def test_a_state_dict_of_another_network_is_refused(tmp_path: Path) -> None:
    state = state_dict()
    state["features.8.weight"] = torch.ones(24, 7, 3, 3)
    path = saved(state, tmp_path / "net.pth")
    with pytest.raises(ConfigError, match=r"features.8.weight \[24, 7, 3, 3\] cannot read the 24"):
        read_network(path)
    many = {f"conv{i}.weight": torch.ones(3, 3, 3, 3) for i in range(20)}
    path = saved({**many, "fc.weight": torch.ones(2, 3)}, tmp_path / "net.pth")
    with pytest.raises(ConfigError, match="has 20 convolutions and 1 fully connected layers"):
        read_network(path)


def test_a_message_of_countless_fields_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("alexnet2012.inference.importers.protobuf.MAX_FIELDS", 1000)
    (tmp_path / "net.onnx").write_bytes(b"\x08\x08" * 2000)
    with pytest.raises(ConfigError, match="has a message of more than 1,000 fields"):
        read_network(tmp_path / "net.onnx")
