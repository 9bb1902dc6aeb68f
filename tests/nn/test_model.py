"""AlexNet in one process: counts, public names, casts, torch's transforms, invalid arguments."""

from __future__ import annotations

import copy
import io
import math
import pickle
import re
import warnings
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import alexnet2012
from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import Activation, LayerOp, Precision
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig, RunError, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.distributed.mesh import Mesh
from alexnet2012.nn.cost_model import LayerCounts, count_layers
from alexnet2012.nn.precision import DTYPES, DTypes

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


def parameters(layers: list[LayerCounts]) -> int:
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
    layers = count_layers(full_size(recipe))
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
def test_single_gpu_and_ungrouped_variants_have_the_expected_number_of_parameters(
    overrides: list[str], count: int
) -> None:
    model = AlexNet(recipe_of(*overrides))
    assert sum(p.numel() for p in model.parameters()) == count


def test_state_dict_has_the_documented_names_and_shapes(paper: AlexNet) -> None:
    state = paper.full_state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == SHAPES
    assert {n: tuple(s) for n, s in paper.full_shapes().items()} == SHAPES
    assert set(paper.state_dict()) == set(SHAPES)


def test_documented_use_gives_logits_and_a_gradient_for_every_parameter(
    paper: AlexNet,
) -> None:
    logits = paper.train()(images(2, 224))
    assert logits.shape == (2, 1000)
    F.cross_entropy(logits, torch.tensor([1, 2])).backward()
    for name, parameter in paper.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().max() > 0, name
    paper.zero_grad()


def test_without_torchrun_one_process_holds_both_towers() -> None:
    mesh = init_mesh(towers=2)
    model = AlexNet("paper", 10, model=SMALL, mesh=mesh)
    assert (mesh.world_size, mesh.towers, model.local_towers) == (1, 1, 2)
    assert mesh.tower_group is None
    assert mesh.data_group is None


@pytest.mark.parametrize("recipe", RECIPES)
def test_initial_values_follow_the_recipe(recipe: str) -> None:
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
def test_other_widths_and_input_sizes_are_supported(recipe: str, width: float, size: int) -> None:
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
def test_any_input_size_either_works_or_is_rejected_at_construction(
    size: int, recipe: str, pool: tuple[int, int], padding: int
) -> None:
    config = load_recipe(recipe)
    config.pool.size, config.pool.stride = pool
    config.conv2.padding = padding
    try:
        model = AlexNet(config, 3, model=ModelConfig(width=1 / 48, input_size=size))
    except ConfigError as error:
        rejected = (error.key, error.value)
    else:
        assert model.eval()(images(1, size)).shape == (1, 3)
        return
    assert rejected == ("model.input_size", size)


def test_pooling_with_stride_above_size_works_or_is_rejected() -> None:
    config = load_recipe("paper")
    config.pool.size, config.pool.stride = 1, 2
    try:
        model = AlexNet(config, 3, model=ModelConfig(width=1 / 48, input_size=223))
    except ConfigError:
        return
    assert model.eval()(images(1, 223)).shape == (1, 3)


def test_overlap_ablation_keeps_the_size_of_the_maps() -> None:
    overrides = ["recipe.pool.size=2", "recipe.conv2.padding=1", "recipe.conv5.padding=0"]
    model = AlexNet(recipe_of(*overrides), 10, model=ModelConfig(width=1 / 16))
    assert model.fc6.weight.shape[1] == model.conv5.weight.shape[0] * 6 * 6


def test_seed_determines_initial_values_and_dropout() -> None:
    def run(seed: int) -> tuple[dict[str, Tensor], Tensor]:
        model = AlexNet("paper", 7, model=SMALL, seed=seed)
        torch.rand(seed + 3)  # torch's global generator must not matter
        return model.full_state_dict(), model.train()(images(3, 64)).detach()

    (state, logits), (again, logits_again), (other, _) = run(1), run(1), run(2)
    assert all(torch.equal(state[name], again[name]) for name in state)
    assert torch.equal(logits, logits_again)
    assert not any(torch.equal(state[n], other[n]) for n in state if n.endswith("weight"))


def test_number_of_classes_changes_the_last_layer_only() -> None:
    few, many = (AlexNet("paper", n, model=SMALL, seed=1).full_state_dict() for n in (3, 30))
    assert all(torch.equal(few[n], many[n]) for n in few if not n.startswith("fc8"))


def test_dropout_is_random_in_training_and_deterministic_in_evaluation() -> None:
    model, x = AlexNet("paper", 7, model=SMALL), images(3, 64)
    model.train()
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))


@pytest.mark.parametrize("layer", ["conv2", "conv4", "conv5"])
def test_layers_without_an_exchange_read_their_own_tower_only(layer: str) -> None:
    assert changed_channels(layer) == {"second half"}


@pytest.mark.parametrize("layer", ["conv3", "fc6", "fc7"])
def test_layers_with_an_exchange_read_both_towers(layer: str) -> None:
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
    return {name for name, old, new in halves if not torch.equal(old, new)}


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("recipe", [*RECIPES, "code146", "code146_2011", "cifar4"])
def test_every_operation_is_a_module_that_takes_hooks(recipe: str, training: bool) -> None:
    size = 32 if recipe == "cifar4" else 64
    model = AlexNet(recipe, 7, model=ModelConfig(width=0.25, input_size=size)).train(training)
    outputs: dict[str, Tensor] = {}
    for name, module in model.named_children():
        module.register_forward_hook(lambda m, x, y, name=name: outputs.__setitem__(name, y))
    logits = model(images(2, size))
    # In the order of the forward pass, which print() shows, each with its input from the last.
    assert list(outputs) == [name for name, _ in model.named_children()]
    assert torch.equal(outputs["conv1_relu"], F.relu(_before(outputs, "conv1_relu")))
    assert torch.equal(outputs["conv1_pool"], F.max_pool2d(
        _before(outputs, "conv1_pool"), 3, 2, ceil_mode=True))  # fmt: skip
    assert torch.equal(outputs["fc8"], logits)
    for name in model.recipe.hidden:
        relu, dropped = outputs[f"{name}_relu"], outputs[f"{name}_dropout"]
        kept = dropped != 0
        assert torch.equal(dropped[kept], (relu if training else 0.5 * relu)[kept])


def _before(outputs: dict[str, Tensor], name: str) -> Tensor:
    names = list(outputs)
    return outputs[names[names.index(name) - 1]]


def test_a_hook_can_change_an_operations_output() -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(2, 64)
    handle = model.conv5_pool.register_forward_hook(lambda m, x, y: torch.zeros_like(y))
    blank = model(x)
    handle.remove()
    assert torch.equal(blank[0], blank[1]) and not torch.equal(model(x), blank)


def test_a_repeated_operation_has_modules_of_its_own() -> None:
    recipe = load_recipe("paper")
    recipe.conv1.after = [LayerOp.activation, LayerOp.lrn, LayerOp.activation]
    recipe.conv2.after = [LayerOp.lrn, LayerOp.lrn]
    names = [name for name, _ in AlexNet(recipe, 7, model=SMALL).named_children()]
    assert names[:4] == ["conv1", "conv1_relu", "conv1_lrn", "conv1_relu_again"]
    assert names[4:7] == ["conv2", "conv2_lrn", "conv2_lrn_again"]


def test_print_shows_all_sizes(paper: AlexNet) -> None:
    text = repr(paper)
    for line in (
        "recipe=paper, num_classes=1000, input_size=224, width=1, precision=fp32, towers=2 of 2",
        "(conv2): ColumnParallelConv2d(96, 256, groups=2, kernel_size=5, stride=1, padding=2)",
        "(conv2_lrn): ResponseNorm(size=5, scale=0.0001, beta=0.75, k=2, across maps, towers=2)",
        "(conv2_pool): MaxPool2d(kernel_size=3, stride=2, padding=0, dilation=1, ceil_mode=True)",
        "(fc6): ColumnParallelLinear(9216, 4096, groups=1)",
        "(fc6_dropout): Dropout(rate=0.5)",
    ):
        assert f"  {line}\n" in text


@pytest.mark.parametrize("save", ["torch.save", "pickle"])
def test_a_saved_model_is_loaded_with_its_logits_and_dropout(save: str) -> None:
    model, x = AlexNet("code145", 7, model=SMALL, precision="fp64"), images(2, 64)
    model(x)  # advances the streams of dropout
    buffer = io.BytesIO()
    if save == "torch.save":
        torch.save(model, buffer)
    else:
        pickle.dump(model, buffer)
    buffer.seek(0)
    loaded = torch.load(buffer, weights_only=False) if save == "torch.save" else pickle.load(buffer)
    assert torch.equal(loaded(x), model(x))
    assert loaded.random_state() == model.random_state()


def test_one_ranks_part_of_a_model_is_not_pickled() -> None:
    model = AlexNet("paper", 7, model=SMALL)
    model.mesh = Mesh(torch.device("cpu"), towers=2)
    with pytest.raises(RunError, match=r"on 2 ranks cannot be pickled .* save full_state_dict\(\)"):
        torch.save(model, io.BytesIO())


@pytest.mark.parametrize("name", ["conv1", "conv5", "fc6", "fc8", "fc7_dropout"])
@pytest.mark.parametrize("module", [torch.nn.Linear(8, 10), torch.nn.Identity(), None])
def test_a_layer_cannot_be_replaced(name: str, module: torch.nn.Module | None) -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(1, 64)
    before = model(x)
    with pytest.raises(ConfigError, match=f"{name}={type(module).__name__}: layers cannot be repl"):
        setattr(model, name, module)
    assert torch.equal(model(x), before)


def test_an_operation_can_be_replaced_but_not_added() -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(1, 64)
    before = model(x)
    model.conv1_relu = torch.nn.Tanh()
    assert not torch.equal(model(x), before)
    assert set(model.full_state_dict()) == set(SHAPES)
    model.head = torch.nn.Linear(7, 2)
    with pytest.raises(ConfigError, match=r"head\.weight: is not a layer of the recipe"):
        model.full_state_dict()


def test_other_classes_can_read_a_models_features() -> None:
    """The remedy that the error of a replaced layer names."""
    old, x = AlexNet("paper", 7, model=SMALL, seed=1).eval(), images(1, 64)
    new = AlexNet(old.recipe, 10, model=old.config).eval()
    layers = {k: v for k, v in old.full_state_dict().items() if not k.startswith("fc8.")}
    new.load_full_state_dict(new.full_state_dict() | layers)
    assert torch.equal(new.features(x), old.features(x))
    assert new(x).shape == (1, 10)


def test_the_examples_of_the_page_about_python_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(alexnet2012, "AlexNet", partial(AlexNet, model=ModelConfig(width=1 / 16)))
    page = Path(__file__).parents[2] / "docs" / "python.md"
    section = page.read_text(encoding="utf-8").partition("### As a module")[2].partition("\n## ")[0]
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", section, re.DOTALL):
        exec(block, names)
    assert names["maps"]["conv5"].dtype == names["logits"].dtype == torch.float64
    assert torch.equal(names["other"].fc7.weight, names["net"].fc7.weight.float())
    assert (tmp_path / "net.pth").exists()


UNIT = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
SCALES = {
    "0 to 1": (UNIT, "images lie between 0.00 and 1.00: AlexNet takes RGB values in 0-255 minus"),
    "-1 to 1": (2 * UNIT - 1, "images lie between -1.00 and 1.00: "),
    "unit variance": ((UNIT - 0.45) / 0.225, "images lie between -2.00 and 2.44: "),
    "float16": (UNIT.half(), "images lie between 0.00 and 1.00: "),
    "uint8": ((255 * UNIT).byte(), "images are torch.uint8: "),
    "int64": ((255 * UNIT).long(), "images are torch.int64: "),
}


@pytest.mark.parametrize("scale", SCALES)
def test_images_of_another_scale_are_warned_of_once(scale: str) -> None:
    x, words = SCALES[scale]
    model = AlexNet("paper", 7, model=SMALL).eval()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for batch in (torch.zeros(1, 3, 64, 64), x, x):  # zeros tell nothing
            model(batch)
    (warning,) = caught
    assert str(warning.message).startswith(words)


@pytest.mark.parametrize("x", [255 * UNIT - 120, images(1, 64), torch.zeros(0, 3, 64, 64)])
def test_images_of_the_right_scale_give_no_warning(x: Tensor) -> None:
    model = AlexNet("paper", 7, model=SMALL).eval()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(x)


def test_only_rank_0_warns_of_the_scale() -> None:
    model = AlexNet("paper", 7, model=SMALL).eval()
    model.mesh = Mesh(torch.device("cpu"), replicas=2, replica=1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model(UNIT)


def test_features_are_the_input_of_fc8() -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(2, 64)
    features = model.features(x)
    assert features.shape == (2, model.fc8.weight.shape[1])
    torch.testing.assert_close(model.fc8(features), model(x), rtol=0, atol=0)


def test_tanh_features_are_at_most_one_half() -> None:
    model = AlexNet("paper", 7, model=ModelConfig(Activation.tanh, 1 / 16, 64)).eval()
    assert model.features(images(2, 64)).abs().max() <= 0.5  # dropout halves them in evaluation


def test_fp64_logits_are_float64() -> None:
    model = AlexNet("code145", 7, model=SMALL, precision="fp64")
    assert model(images(1, 64, torch.float64)).dtype == torch.float64


CASTS: dict[str, tuple[Callable[[AlexNet], AlexNet], torch.dtype]] = {
    "double": (AlexNet.double, torch.float64),
    "half": (AlexNet.half, torch.float16),
    "bfloat16": (AlexNet.bfloat16, torch.bfloat16),
    "float": (AlexNet.float, torch.float32),
    "to float64": (lambda model: model.to(torch.float64), torch.float64),
    "to float16": (lambda model: model.to(dtype=torch.float16), torch.float16),
}
RECIPE_CASTS = [(recipe, cast) for recipe in RECIPES for cast in CASTS]


def layer_dtypes(model: AlexNet, x: Tensor) -> set[torch.dtype]:
    """Dtypes of all layers' inputs and outputs and of the logits."""
    dtypes: set[torch.dtype] = set()
    hooks = [
        layer.register_forward_hook(lambda _, x, y: dtypes.update([x[0].dtype, y.dtype]))
        for layer in model.layers().values()
    ]
    dtypes.add(model(x).dtype)
    for hook in hooks:
        hook.remove()
    return dtypes


@pytest.mark.parametrize("precision", ["fp32", "fp64"])
@pytest.mark.parametrize(("recipe", "cast"), RECIPE_CASTS)
def test_every_layer_computes_in_the_dtype_that_the_model_was_cast_to(
    recipe: str, cast: str, precision: str
) -> None:
    convert, dtype = CASTS[cast]
    model = convert(AlexNet(recipe, 7, model=SMALL, precision=precision).eval())
    assert {parameter.dtype for parameter in model.parameters()} == {dtype}
    assert layer_dtypes(model, images(2, 64)) == {dtype}


@pytest.mark.parametrize("cast", ["double", "half", "bfloat16"])
def test_a_cast_replaces_the_mixed_dtypes_of_bf16(cast: str) -> None:
    convert, dtype = CASTS[cast]
    model = AlexNet("paper", 7, model=SMALL, precision="bf16").eval()
    assert layer_dtypes(model, images(2, 64)) == {torch.bfloat16, torch.float32}
    assert layer_dtypes(convert(model), images(2, 64)) == {dtype}
    assert layer_dtypes(model.float(), images(2, 64)) == {torch.bfloat16, torch.float32}


def test_activations_that_ignore_a_cast_are_detected(monkeypatch: pytest.MonkeyPatch) -> None:
    def types_of_precision(model: AlexNet) -> DTypes:
        return DTYPES[model.precision]

    monkeypatch.setattr(AlexNet, "types", property(types_of_precision))
    model = AlexNet("paper", 7, model=SMALL).eval().double()
    assert layer_dtypes(model, images(2, 64)) == {torch.float32}  # weights are cast at each use


@pytest.mark.parametrize("precision", list(Precision))
@pytest.mark.parametrize("recipe", RECIPES)
def test_double_gives_the_logits_of_fp64_with_the_same_weights(
    recipe: str, precision: Precision
) -> None:
    model = AlexNet(recipe, 7, model=SMALL, precision=precision).eval()
    reference = AlexNet(recipe, 7, model=SMALL, precision="fp64").eval()
    reference.load_full_state_dict(model.full_state_dict())
    x = images(2, 64, torch.float64)
    logits = model.double()(x)
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, reference(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("cast", ["half", "bfloat16"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_16_bit_logits_are_close_to_float32(recipe: str, cast: str) -> None:
    """Some 30 roundings of images, weights, products and maps lie between an image and a logit,
    each of at most half an eps and independent: √30·eps/2 < 3·eps. The bound is 5·eps.
    """
    convert, dtype = CASTS[cast]
    model, x = AlexNet(recipe, 7, model=SMALL).eval(), images(3, 64)
    expected = model(x).detach()
    logits = convert(model)(x).detach()
    error = float((logits.float() - expected).norm() / expected.norm())
    assert 1e-5 < error < 5 * torch.finfo(dtype).eps  # not zero: the model did round


@pytest.mark.parametrize(("recipe", "cast"), RECIPE_CASTS)
def test_gradients_flow_in_the_dtype_that_the_model_was_cast_to(recipe: str, cast: str) -> None:
    convert, dtype = CASTS[cast]
    model = convert(AlexNet(recipe, 7, model=SMALL).train())
    F.cross_entropy(model(images(3, 64)), torch.tensor([1, 2, 3])).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.dtype == dtype, name
        assert parameter.grad.isfinite().all() and parameter.grad.any(), name


def logits_and_gradients(module: torch.nn.Module, model: AlexNet) -> list[Tensor]:
    """A training step's logits by ``module``, and the gradients of the model's parameters."""
    logits = module(images(3, 64, torch.float64))
    loss = F.cross_entropy(logits, torch.tensor([1, 2, 3]))
    return [logits, *torch.autograd.grad(loss, list(model.parameters()))]


@pytest.mark.parametrize(("recipe", "backend"), [("paper", "aot_eager"), ("code145", "eager")])
def test_a_compiled_model_has_the_same_logits_and_gradients(recipe: str, backend: str) -> None:
    """1e-12: sums are added in another order in float64."""
    model = AlexNet(recipe, 7, model=SMALL, precision="fp64").train()
    state = model.random_state()
    expected = logits_and_gradients(model, model)
    model.load_random_state(state)  # the same dropout masks again
    torch._dynamo.reset()
    compiled = logits_and_gradients(torch.compile(model, backend=backend, fullgraph=True), model)
    for ours, theirs in zip(compiled, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_deep_copy_has_the_same_logits_and_its_own_parameters(recipe: str) -> None:
    model, x = AlexNet(recipe, 7, model=SMALL).train(), images(2, 64)
    duplicate = copy.deepcopy(model)
    assert torch.equal(duplicate(x), model(x))  # in training: dropout's state is copied, too
    with torch.no_grad():
        duplicate.conv1.weight.zero_()
    assert model.conv1.weight.abs().max() > 0


def test_functional_call_replaces_the_parameters() -> None:
    model, x = AlexNet("paper", 7, model=SMALL, seed=0).eval(), images(2, 64)
    other = AlexNet("paper", 7, model=SMALL, seed=1).eval()
    before = model(x)
    logits = torch.func.functional_call(model, dict(other.named_parameters()), (x,))
    assert torch.equal(logits, other(x))
    assert torch.equal(model(x), before)


def test_functional_call_computes_in_the_dtype_of_the_given_parameters() -> None:
    model, x = AlexNet("paper", 7, model=SMALL).eval(), images(2, 64)
    doubled = {name: p.detach().double() for name, p in model.named_parameters()}
    logits = torch.func.functional_call(model, doubled, (x,))
    assert logits.dtype == torch.float64
    torch.testing.assert_close(logits, model.double()(x), rtol=1e-12, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("recipe", RECIPES)
def test_an_exported_program_has_the_same_logits_for_any_number_of_images(
    recipe: str, dtype: torch.dtype
) -> None:
    model = AlexNet(recipe, 7, model=SMALL).eval().to(dtype)
    batch = {"images": {0: torch.export.Dim("n")}}
    program = torch.export.export(model, (images(2, 64, dtype),), dynamic_shapes=batch)
    for count in (1, 3):
        x = images(count, 64, dtype)
        eps = torch.finfo(dtype).eps  # LRN is computed as a whole instead of in blocks
        torch.testing.assert_close(program.module()(x), model(x), rtol=100 * eps, atol=100 * eps)


def test_loaded_state_gives_the_same_logits() -> None:
    saved, other = (AlexNet("paper", 7, model=SMALL, seed=seed).eval() for seed in (0, 1))
    x = images(2, 64)
    assert not torch.equal(saved(x), other(x))
    other.load_full_state_dict(saved.full_state_dict())
    assert torch.equal(saved(x), other(x))


def test_full_state_dict_is_a_copy() -> None:
    model = AlexNet("paper", 7, model=SMALL)
    state = model.full_state_dict()
    with torch.no_grad():
        model.conv1.weight.zero_()
    assert state["conv1.weight"].abs().max() > 0


@pytest.mark.parametrize("name", ["conv3.weight", "fc8.bias"])
def test_mismatched_state_is_rejected_by_name_and_changes_nothing(name: str) -> None:
    model = AlexNet("paper", 7, model=SMALL)
    before = model.full_state_dict()
    state = {key: tensor + 1 for key, tensor in before.items()}
    cases = {
        "missing": {key: tensor for key, tensor in state.items() if key != name},
        "not a parameter": {**state, f"{name}2": state[name]},
        "has shape (": {**state, name: state[name][:-1]},
    }
    for problem, wrong in cases.items():
        with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as error:
            model.load_full_state_dict(wrong)
        assert problem in str(error.value)
        after = model.full_state_dict()
        assert all(torch.equal(after[key], before[key]) for key in before), problem


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
def test_invalid_arguments_are_rejected_with_their_key(
    arguments: dict[str, object], key: str
) -> None:
    with pytest.raises(ConfigError) as error:
        AlexNet(**arguments)  # type: ignore[arg-type]
    assert error.value.key == key
    assert "\n" not in str(error.value)


def test_an_odd_number_of_kernels_is_rejected_with_the_nearest_even_ones() -> None:
    recipe = load_recipe("paper")
    recipe.conv1.kernels = 97
    with pytest.raises(ConfigError, match=r"recipe\.conv1\.kernels=97: .* use 96 or 98"):
        AlexNet(recipe)
