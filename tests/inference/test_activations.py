"""The inspection of an image holds exactly what the model computes.

Tolerance: 1e-5 of the largest value of a layer, float32 sums in another order.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012.config.inference_schema import PredictConfig
from alexnet2012.config.schema import ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.activations import (
    describe_layers,
    describe_model,
    inspect_image,
    pack_inspection,
)
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.predict import ImagePredictions, predict_images
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.nn.alexnet import AlexNet

SMALL = ModelConfig(width=1 / 24, input_size=96)


def model_of(recipe: RecipeConfig | str, classes: int = 6) -> TrainedModel:
    if isinstance(recipe, str):
        recipe = load_recipe(recipe)
    model = AlexNet(recipe, classes, model=SMALL, seed=2).eval()
    names = tuple(f"class {index}" for index in range(classes))
    return TrainedModel(model, names, np.full((104, 104, 3), 118, np.float32), None)


def one_tower() -> RecipeConfig:
    recipe = deepcopy(load_recipe("paper"))
    recipe.towers = 1
    return recipe


def without_crosslinks() -> RecipeConfig:
    recipe = deepcopy(load_recipe("code145"))
    for layer in (recipe.conv3, recipe.fc6, recipe.fc7):
        layer.reads_both_towers = False
    return recipe


def of_caffe() -> RecipeConfig:
    return replace(load_recipe("paper"), lrn_across_towers=True)


def four_towers() -> RecipeConfig:
    return replace(load_recipe("code146"), towers=4)


RECIPES = [
    lambda: load_recipe("paper"),
    lambda: load_recipe("code145"),
    lambda: load_recipe("code146"),
    lambda: load_recipe("code146_2011"),
    one_tower,
    without_crosslinks,
    of_caffe,
    four_towers,
]
NAMES = ["paper", "code145", "code146", "code146_2011"]
NAMES += ["one tower", "no crosslinks", "Caffe", "four towers"]


@pytest.fixture
def pixels() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(5).integers(0, 256, (104, 104, 3), np.uint8)


def close(actual: object, expected: Tensor) -> bool:
    actual = torch.as_tensor(actual)
    assert actual.shape == expected.shape
    return float((actual - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("views", [1, 10])
def test_predictions_equal_those_of_predict(
    net: TrainedModel, photos_folder: Path, views: int
) -> None:
    picture = photos_folder / "val" / "rocket" / "0001.jpg"
    config = PredictConfig("", [str(picture)], views=views)
    (expected,) = predict_images(config, [net], [str(picture)])
    inspection = inspect_image(net, stored_pixels(picture.read_bytes(), len(net.mean_image)), views)
    assert isinstance(expected, ImagePredictions)
    assert inspection.predictions == expected.predictions and len(inspection.predictions) == 5


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
@torch.no_grad()
def test_each_layer_computes_its_result_from_the_previous_layers_output(
    make: Callable[[], RecipeConfig],
    pixels: np.ndarray,  # type: ignore[type-arg]
) -> None:
    net = model_of(make())
    inspection = inspect_image(net, pixels, 1)
    layers = net.model.layers()
    assert list(inspection.results) == list(inspection.handed_on) == list(layers)
    assert (inspection.pixels == pixels[4:100, 4:100]).all()
    assert close(
        inspection.image, torch.from_numpy(pixels[4:100, 4:100].transpose(2, 0, 1) - 118.0)
    )
    first = next(iter(layers))
    assert close(
        inspection.results[first], layers[first](torch.from_numpy(inspection.image)[None])[0]
    )
    for before, name in pairwise(layers):
        x = torch.from_numpy(inspection.handed_on[before])[None]
        x = x.flatten(1) if name.startswith("fc") else x
        assert close(inspection.results[name], layers[name](x)[0]), name
    assert close(
        inspection.handed_on["fc8"], net.model(torch.from_numpy(inspection.image)[None])[0]
    )


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_layer_outputs_follow_the_recipe(
    recipe: str,
    pixels: np.ndarray,  # type: ignore[type-arg]
) -> None:
    def lrn(x: Tensor) -> Tensor:  # torch divides alpha by the window size, the paper does not
        alpha = 5e-4 if recipe == "paper" else 1e-4
        halves = [F.local_response_norm(half, 5, alpha, 0.75, 2.0) for half in x[None].chunk(2, 1)]
        return torch.cat(halves, 1)[0]

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    inspection = inspect_image(model_of(recipe), pixels, 1)
    results = {name: torch.from_numpy(x) for name, x in inspection.results.items()}
    conv1 = results["conv1"]
    expected = {
        "conv1": pool(lrn(conv1.relu())) if recipe == "paper" else pool(lrn(conv1)).relu(),
        "conv3": results["conv3"].relu(),
        "conv4": results["conv4"].relu(),
        "conv5": pool(results["conv5"].relu()),
        "fc6": results["fc6"].relu() / 2,
        "fc7": results["fc7"].relu() / 2,
        "fc8": results["fc8"],
    }
    for name, x in expected.items():
        assert close(inspection.handed_on[name], x), name


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
def test_exchanged_bytes_are_the_inputs_of_layers_that_read_all_towers(
    make: Callable[[], RecipeConfig],
) -> None:
    recipe = make()
    layers, logits_bytes = describe_layers(model_of(recipe, classes=8))
    configs = {**recipe.convs, **recipe.hidden}
    for before, layer in pairwise(layers):
        reads_all = layer.name not in configs or configs[layer.name].reads_both_towers
        assert layer.reads == ("both" if reads_all else "own")
        sent_to = recipe.towers - 1  # each tower sends its shard to all others
        expected = 4 * math.prod(before.handed_on) * sent_to if reads_all else 0
        assert layer.crossing_bytes == expected, layer.name
    assert (layers[0].reads, layers[0].crossing_bytes) == ("image", 0)
    assert logits_bytes == 4 * 8 * (recipe.towers - 1)


def test_exchanged_bytes_of_the_paper_are_those_of_figure_2() -> None:
    model = AlexNet("paper", 1000).eval()
    net = TrainedModel(model, ("",) * 1000, np.zeros((256, 256, 3), np.float32), None)
    layers, logits_bytes = describe_layers(net)
    floats = {layer.name: layer.crossing_bytes / 4 for layer in layers if layer.crossing_bytes}
    assert floats == {
        "conv3": 2 * 21_632,
        "fc6": 2 * 4_608,
        "fc7": 2 * 2_048,
        "fc8": 2 * 2_048,
    }
    assert logits_bytes / 4 == 2 * 500


def test_the_message_holds_every_activation_at_its_offset(
    net: TrainedModel, photos_folder: Path
) -> None:
    picture = (photos_folder / "val" / "coins" / "0000.jpg").read_bytes()
    inspection = inspect_image(net, stored_pixels(picture, len(net.mean_image)), 1)
    answer = pack_inspection(inspection)
    length = int.from_bytes(answer[:4], "little")
    head = json.loads(answer[4 : 4 + length])
    numbers = np.frombuffer(answer, "<f4", offset=4 + length)
    for layer in describe_model(net, 1)["layers"]:
        for stage, outputs in (("result", inspection.results), ("handed_on", inspection.handed_on)):
            shape, start = layer[stage], head["places"][layer["name"]][stage]
            values = numbers[start : start + math.prod(shape)].reshape(shape)
            assert (values == outputs[layer["name"]]).all()
    rows = describe_model(net, 1)["layers"][-1]["rows"]
    assert rows == [(0, 8), (8, 16)]
    for guess in head["guesses"]:
        assert guess["tower"] == net.classes.index(guess["name"]) // 8
    assert not any(module._forward_hooks for module in net.model.modules())
