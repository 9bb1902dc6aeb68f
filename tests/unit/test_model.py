"""The net in one process: the paper's counts, the public names, and what it refuses."""

from __future__ import annotations

import math
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Activation
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.flops import LayerAudit, audit

RECIPES = ["paper", "code145"]
SMALL = ModelConfig(width=1 / 16, input_size=64)
# weights, biases, neurons: paper sec. 3.5 and fig. 2
COUNTS = {
    "conv1": (34_848, 96, 290_400),
    "conv2": (307_200, 256, 186_624),
    "conv3": (884_736, 384, 64_896),
    "conv4": (663_552, 384, 64_896),
    "conv5": (442_368, 256, 43_264),
    "fc6": (37_748_736, 4_096, 4_096),
    "fc7": (16_777_216, 4_096, 4_096),
    "fc8": (4_096_000, 1_000, 1_000),
}
SHAPES = {
    "conv1.weight": (96, 3, 11, 11),
    "conv2.weight": (256, 48, 5, 5),
    "conv3.weight": (384, 256, 3, 3),
    "conv4.weight": (384, 192, 3, 3),
    "conv5.weight": (256, 192, 3, 3),
    "fc6.weight": (4096, 9216),
    "fc7.weight": (4096, 4096),
    "fc8.weight": (1000, 4096),
    "conv1.bias": (96,),
    "conv2.bias": (256,),
    "conv3.bias": (384,),
    "conv4.bias": (384,),
    "conv5.bias": (256,),
    "fc6.bias": (4096,),
    "fc7.bias": (4096,),
    "fc8.bias": (1000,),
}


def images(count: int, size: int, dtype: torch.dtype = torch.float32) -> Tensor:
    draw = torch.Generator().manual_seed(0)
    return 60 * torch.randn(count, 3, size, size, generator=draw, dtype=dtype)


def parameters(layers: list[LayerAudit]) -> int:
    return sum(layer.weights + layer.biases for layer in layers)


def recipe_of(*overrides: str) -> RecipeConfig:
    return compose_config("train", TrainConfig, overrides)[0].recipe


@cache
def full_size(recipe: str) -> AlexNet:
    return AlexNet(recipe)


@pytest.fixture(scope="module")
def paper() -> AlexNet:
    return full_size("paper")


@pytest.mark.parametrize("recipe", RECIPES)
def test_each_layer_has_the_papers_parameters_and_neurons(recipe: str) -> None:
    layers = audit(full_size(recipe))
    assert {x.name: (x.weights, x.biases, x.neurons) for x in layers} == COUNTS
    assert parameters(layers) == 60_965_224
    assert sum(x.neurons for x in layers) == 659_272
    assert round(sum(x.multiply_adds for x in layers) / 1e6, 1) == 724.4


@pytest.mark.parametrize(
    ("overrides", "count"),
    [
        (["model=one_gpu"], 59_798_312),
        ([f"recipe.conv{i}.reads_both_towers=true" for i in range(2, 6)], 62_378_344),
    ],
    ids=["one_gpu", "ungrouped"],
)
def test_the_other_nets_of_the_comparison_have_their_sizes(
    overrides: list[str], count: int
) -> None:
    model = AlexNet(recipe_of(*overrides))
    assert sum(p.numel() for p in model.parameters()) == count


def test_names_and_shapes_are_the_public_ones(paper: AlexNet) -> None:
    state = paper.full_state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == SHAPES
    assert {n: tuple(s) for n, s in paper.full_shapes().items()} == SHAPES
    assert set(paper.state_dict()) == set(SHAPES)


def test_the_documented_use_gives_logits_and_a_gradient_for_every_parameter(
    paper: AlexNet,
) -> None:
    logits = paper.train()(images(2, 224))
    assert logits.shape == (2, 1000)
    F.cross_entropy(logits, torch.tensor([1, 2])).backward()
    for name, parameter in paper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    paper.zero_grad()


def test_without_torchrun_the_mesh_is_this_process_with_both_towers() -> None:
    mesh = init_mesh(towers=2)
    model = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    assert (mesh.world_size, mesh.towers, model.towers_here) == (1, 1, 2)
    assert mesh.tower_group is None
    assert mesh.data_group is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_initial_values_are_the_recipes(recipe: str) -> None:
    model = full_size(recipe)
    deep_std = 0.01 if recipe == "paper" else 0.03
    for name, layer in model.layers().items():
        std = deep_std if name in ("conv3", "conv4", "conv5") else 0.01
        # Both estimates are off by less than 5 of their standard errors.
        errors = 5 / math.sqrt(layer.weight.numel())
        weight = layer.weight.detach()
        assert abs(float(weight.mean())) < std * errors, name
        assert abs(float(weight.std()) / std - 1) < errors, name
        bias = 0.0 if name in ("conv1", "conv3", "fc8") else 1.0
        assert (layer.bias == bias).all(), name


@pytest.mark.parametrize("recipe", RECIPES)
@pytest.mark.parametrize(
    ("width", "size"), [(0.25, 112), (0.25, 64), (0.1, 96), (1 / 16, 227), (0.001, 64), (0.5, 72)]
)
def test_other_widths_and_input_sizes_work(recipe: str, width: float, size: int) -> None:
    model = AlexNet(recipe, 5, model=ModelConfig(width=width, input_size=size)).eval()
    assert model(images(2, size)).shape == (2, 5)
    assert all(layer.rows.total % 2 == 0 for n, layer in model.layers().items() if n != "fc8")


@settings(deadline=None, max_examples=30)
@given(
    size=st.integers(1, 90),
    recipe=st.sampled_from(RECIPES),
    pool=st.sampled_from([(3, 2), (2, 2), (2, 1), (3, 3)]),
    padding=st.integers(0, 2),
)
def test_any_input_size_either_works_or_is_refused_before_anything_runs(
    size: int, recipe: str, pool: tuple[int, int], padding: int
) -> None:
    config = load_recipe(recipe)
    config.pool.size, config.pool.stride = pool
    config.conv2.padding = padding
    try:
        model = AlexNet(config, 3, model=ModelConfig(width=1 / 48, input_size=size))
    except ConfigError as error:
        refused = (error.key, error.value)
    else:
        assert model.eval()(images(1, size)).shape == (1, 3)
        return
    assert refused == ("model.input_size", size)


def test_pools_with_gaps_between_their_windows_work_or_are_refused() -> None:
    config = load_recipe("paper")
    config.pool.size, config.pool.stride = 1, 2
    try:
        model = AlexNet(config, 3, model=ModelConfig(width=1 / 48, input_size=223))
    except ConfigError:
        return
    assert model.eval()(images(1, 223)).shape == (1, 3)


def test_the_overlap_ablation_keeps_the_size_of_the_maps() -> None:
    overrides = ["recipe.pool.size=2", "recipe.conv2.padding=1", "recipe.conv5.padding=0"]
    model = AlexNet(recipe_of(*overrides), 10, model=ModelConfig(width=1 / 16))
    assert model.fc6.weight.shape[1] == model.conv5.weight.shape[0] * 6 * 6


def test_a_seed_fixes_the_net_and_its_dropout() -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], Tensor]:
        model = AlexNet("paper", 7, model=SMALL, seed=seed)
        torch.rand(seed + 3)  # what else is drawn does not matter
        return model.full_state_dict(), model.train()(images(3, 64)).detach()

    (state, logits), (again, logits_again), (other, _) = run(1), run(1), run(2)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert torch.equal(logits, logits_again)
    assert not any(torch.equal(state[n], other[n]) for n in state if n.endswith("weight"))


def test_the_number_of_classes_changes_the_last_layer_only() -> None:
    few, many = (AlexNet("paper", n, model=SMALL, seed=1).full_state_dict() for n in (3, 30))
    assert all(torch.equal(few[n], many[n]) for n in few if not n.startswith("fc8"))


def test_dropout_works_in_training_and_rests_in_evaluation() -> None:
    model, x = AlexNet("paper", 7, model=SMALL), images(3, 64)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("layer", ["conv2", "conv4", "conv5"])
def test_a_tower_does_not_see_the_other_where_nothing_is_exchanged(layer: str) -> None:
    assert changed_channels(layer) == {"second half"}


@pytest.mark.parametrize("layer", ["conv3", "fc6", "fc7"])
def test_a_tower_sees_the_other_where_activations_are_exchanged(layer: str) -> None:
    assert changed_channels(layer) == {"first half", "second half"}


def changed_channels(layer: str) -> set[str]:
    """Which halves of a layer's output change when the second half of its input does."""
    model = AlexNet("paper", 7, model=SMALL).eval()
    module, outputs = model.get_submodule(layer), []
    model.get_submodule(layer).register_forward_hook(lambda m, i, o: outputs.append(o))

    def halve(m: torch.nn.Module, inputs: tuple[Tensor]) -> Tensor:
        (x,) = inputs
        return torch.cat([x[:, : x.shape[1] // 2], 2 * x[:, x.shape[1] // 2 :]], 1)

    x = images(1, 64)
    model(x)
    module.register_forward_pre_hook(halve)
    model(x)
    before, after = (output.chunk(2, 1) for output in outputs)
    halves = zip(("first half", "second half"), before, after, strict=True)
    return {name for name, one, other in halves if not torch.equal(one, other)}


def test_hidden_features_are_those_that_the_last_layer_reads() -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(2, 64)
    hidden = model.features(x)
    assert hidden.shape == (2, model.fc8.weight.shape[1])
    torch.testing.assert_close(model.fc8(hidden), model(x), rtol=0, atol=0)


def test_tanh_bounds_every_hidden_activation() -> None:
    model = AlexNet("paper", 7, model=ModelConfig(Activation.tanh, 1 / 16, 64)).eval()
    assert model.features(images(2, 64)).abs().max() <= 0.5  # halved by dropout's test rule


def test_a_net_of_float64_computes_in_float64() -> None:
    model = AlexNet("code145", 7, model=SMALL, precision="fp64")
    assert model(images(1, 64, torch.float64)).dtype == torch.float64


def test_a_loaded_state_makes_the_same_net() -> None:
    saved, other = (AlexNet("paper", 7, model=SMALL, seed=seed).eval() for seed in (0, 1))
    x = images(2, 64)
    assert not torch.equal(saved(x), other(x))
    other.load_full_state_dict(saved.full_state_dict())
    assert torch.equal(saved(x), other(x))


def test_a_state_that_was_read_out_does_not_follow_the_net() -> None:
    model = AlexNet("paper", 7, model=SMALL)
    state = model.full_state_dict()
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert state["conv1.weight"].abs().max() > 0


@pytest.mark.parametrize("name", ["conv3.weight", "fc8.bias"])
def test_a_state_of_another_net_is_refused_by_name_and_changes_nothing(name: str) -> None:
    model = AlexNet("paper", 7, model=SMALL)
    before = model.full_state_dict()
    state = {key: tensor + 1 for key, tensor in before.items()}
    cases = {
        "missing": {key: tensor for key, tensor in state.items() if key != name},
        "not a parameter": {**state, f"{name}2": state[name]},
        "is (": {**state, name: state[name][:-1]},
    }
    for what, wrong in cases.items():
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as error:
            model.load_full_state_dict(wrong)
        assert what in str(error.value)
        after = model.full_state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before), what


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"recipe": "papr"}, "recipe"),
        ({"num_classes": 0}, "num_classes"),
        ({"model": ModelConfig(width=0)}, "model.width"),
        ({"model": ModelConfig(width=math.nan)}, "model.width"),
        ({"model": ModelConfig(input_size=16)}, "model.input_size"),
        ({"mesh": Mesh(torch.device("cpu"), towers=3)}, "mesh.towers"),
    ],
)
def test_a_net_that_cannot_be_built_is_refused_with_its_key(
    arguments: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        AlexNet(**arguments)  # type: ignore[arg-type]
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_kernels_that_do_not_divide_are_refused_with_the_next_ones() -> None:
    recipe = load_recipe("paper")
    recipe.conv1.kernels = 97
    with pytest.raises(ConfigError, match=r"recipe\.conv1\.kernels=97: .* use 96 or 98"):
        AlexNet(recipe)
