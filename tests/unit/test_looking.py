"""What is shown of a picture is what the net computes of it.

Tolerance: 1e-5 of the largest number of a layer, float32 sums in another order.
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

from alexnet2012 import predict
from alexnet2012.config.inference_schema import PredictConfig
from alexnet2012.config.schema import ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.activations import describe_layers, describe_net, inspect_image, packed
from alexnet2012.inference.images import stored_pixels
from alexnet2012.inference.trained_model import TrainedModel
from alexnet2012.nn.alexnet import AlexNet

SMALL = ModelConfig(width=1 / 24, input_size=96)


def net_of(recipe: RecipeConfig | str, classes: int = 6) -> TrainedModel:
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
    one_tower,
    without_crosslinks,
    of_caffe,
    four_towers,
]
NAMES = ["paper", "code145", "code146", "one tower", "no crosslinks", "Caffe", "four towers"]


@pytest.fixture
def pixels() -> np.ndarray:  # type: ignore[type-arg]
    return np.random.default_rng(5).integers(0, 256, (104, 104, 3), np.uint8)


def close(found: object, expected: Tensor) -> bool:
    found = torch.as_tensor(found)
    assert found.shape == expected.shape
    return float((found - expected).abs().max()) <= 1e-5 * float(expected.abs().max())


@pytest.mark.parametrize("views", [1, 10])
def test_the_guesses_are_those_of_predict(
    net: TrainedModel, photos_folder: Path, views: int
) -> None:
    picture = photos_folder / "val" / "rocket" / "0001.jpg"
    config = PredictConfig("", [str(picture)], views=views)
    (expected,) = predict.predict(config, [net], [str(picture)])
    found = inspect_image(net, stored_pixels(picture.read_bytes(), len(net.mean_image)), views)
    assert isinstance(expected, predict.ImagePredictions)
    assert found.guesses == expected.guesses and len(found.guesses) == 5


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
@torch.no_grad()
def test_every_layer_makes_its_result_of_what_the_one_before_handed_on(
    make: Callable[[], RecipeConfig],
    pixels: np.ndarray,  # type: ignore[type-arg]
) -> None:
    net = net_of(make())
    found = inspect_image(net, pixels, 1)
    layers = net.model.layers()
    assert list(found.results) == list(found.handed_on) == list(layers)
    assert (found.pixels == pixels[4:100, 4:100]).all()
    assert close(found.image, torch.from_numpy(pixels[4:100, 4:100].transpose(2, 0, 1) - 118.0))
    first = next(iter(layers))
    assert close(found.results[first], layers[first](torch.from_numpy(found.image)[None])[0])
    for before, name in pairwise(layers):
        read = torch.from_numpy(found.handed_on[before])[None]
        read = read.flatten(1) if name.startswith("fc") else read
        assert close(found.results[name], layers[name](read)[0]), name
    assert close(found.handed_on["fc8"], net.model(torch.from_numpy(found.image)[None])[0])


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_what_a_layer_hands_on_is_what_the_recipe_makes_of_its_result(
    recipe: str,
    pixels: np.ndarray,  # type: ignore[type-arg]
) -> None:
    def lrn(x: Tensor) -> Tensor:  # torch divides alpha by the window, the paper does not
        alpha = 5e-4 if recipe == "paper" else 1e-4
        halves = [F.local_response_norm(half, 5, alpha, 0.75, 2.0) for half in x[None].chunk(2, 1)]
        return torch.cat(halves, 1)[0]

    def pool(x: Tensor) -> Tensor:
        return F.max_pool2d(x, 3, 2, ceil_mode=True)

    found = inspect_image(net_of(recipe), pixels, 1)
    results = {name: torch.from_numpy(x) for name, x in found.results.items()}
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
        assert close(found.handed_on[name], x), name


@pytest.mark.parametrize("make", RECIPES, ids=NAMES)
def test_what_crosses_is_what_is_handed_on_to_layers_that_read_more_than_their_tower(
    make: Callable[[], RecipeConfig],
) -> None:
    recipe = make()
    layers, logits_bytes = describe_layers(net_of(recipe, classes=8))
    own = {**recipe.convs, **recipe.hidden}
    for before, layer in pairwise(layers):
        reads_all = layer.name == "fc8" or own[layer.name].reads_both_towers
        assert layer.reads == ("both" if reads_all else "own")
        sent_to = recipe.towers - 1  # each tower sends its part to all others
        expected = 4 * math.prod(before.handed_on) * sent_to if reads_all else 0
        assert layer.crossing_bytes == expected, layer.name
    assert (layers[0].reads, layers[0].crossing_bytes) == ("image", 0)
    assert logits_bytes == 4 * 8 * (recipe.towers - 1)


def test_the_papers_bytes_are_those_of_figure_2() -> None:
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


def test_the_bytes_hold_every_number_and_say_where_it_is(
    net: TrainedModel, photos_folder: Path
) -> None:
    picture = (photos_folder / "val" / "coins" / "0000.jpg").read_bytes()
    looked = inspect_image(net, stored_pixels(picture, len(net.mean_image)), 1)
    answer = packed(looked)
    length = int.from_bytes(answer[:4], "little")
    head = json.loads(answer[4 : 4 + length])
    numbers = np.frombuffer(answer, "<f4", offset=4 + length)
    for layer in describe_net(net, 1)["layers"]:
        for stage, found in (("result", looked.results), ("handed_on", looked.handed_on)):
            shape, start = layer[stage], head["places"][layer["name"]][stage]
            part = numbers[start : start + math.prod(shape)].reshape(shape)
            assert (part == found[layer["name"]]).all()
    rows = describe_net(net, 1)["layers"][-1]["rows"]
    assert rows == [(0, 8), (8, 16)]
    for guess in head["guesses"]:
        assert guess["tower"] == net.classes.index(guess["name"]) // 8
    assert not any(module._forward_hooks for module in net.model.modules())


def test_a_net_that_has_diverged_answers_with_no_number() -> None:
    net = net_of("paper")
    with torch.no_grad():
        net.model.layers()["conv3"].weight.fill_(math.nan)
    answer = packed(inspect_image(net, np.zeros((104, 104, 3), np.uint8), 10))
    head = json.loads(answer[4 : 4 + int.from_bytes(answer[:4], "little")])
    assert [guess["probability"] for guess in head["guesses"]] == [None] * 5
