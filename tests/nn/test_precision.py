"""fp32 and bf16 are close to float64 within an argued tolerance; updates accumulate in float32."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from alexnet2012 import AlexNet
from alexnet2012.config.enums import Activation, LayerOp
from alexnet2012.config.schema import ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD

SMALL = ModelConfig(width=0.125, input_size=64)
SMOOTH = ModelConfig(Activation.tanh, width=0.125, input_size=64)
CLASSES = 7
EPS = 2.0**-8  # of bf16: rounding errors are at most half of it


def build_model(precision: str, recipe: RecipeConfig, config: ModelConfig = SMALL) -> AlexNet:
    return AlexNet(recipe, CLASSES, model=config, precision=precision)


def smooth(recipe: str) -> RecipeConfig:
    """Average pooling: with tanh, no operation depends discontinuously on a rounding error."""
    config = load_recipe(recipe)
    for conv in config.convs.values():
        conv.after = [LayerOp.average_pool if s is LayerOp.max_pool else s for s in conv.after]
    return config


def batch(count: int = 8) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(0)
    images = 60 * torch.randn(count, 3, 64, 64, generator=draw)
    return images, torch.randint(CLASSES, (count,), generator=draw)


def first_gradients(
    precision: str, recipe: RecipeConfig, config: ModelConfig
) -> tuple[Tensor, dict[str, Tensor]]:
    model = build_model(precision, recipe, config)
    images, labels = batch()
    logits = model(images)
    F.cross_entropy(logits, labels).backward()
    return logits.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("recipe", ["paper", "code145"])
@pytest.mark.parametrize(("precision", "bound"), [("fp32", 1e-4), ("bf16", 1.0)])
def test_logits_and_gradients_are_close_to_float64(
    recipe: str, precision: str, bound: float
) -> None:
    """Relative to the norm of each tensor. Some 30 roundings of images, weights, products, maps and
    gradients lie between an image and a gradient, each of at most half an eps and independent:
    √30·eps/2, about 3·eps. The bound is 10·eps, 4%; for float32 it is ten thousand times lower.
    """
    differences = errors(precision, smooth(recipe), SMOOTH)
    assert max(differences.values()) < 10 * EPS * bound, differences
    if precision == "bf16":
        assert min(differences.values()) > 1e-5  # not zero: bf16 did round


@pytest.mark.parametrize("recipe", ["paper", "code145"])
def test_bf16_max_pools_and_relus_change_gradients_but_not_logits(recipe: str) -> None:
    """With 8 bits several of a pooling window's nine numbers are often the maximum, and one of them
    gets the gradient: of the same size, but partly a pixel away. Logits are not affected.
    """
    differences = errors("bf16", load_recipe(recipe), SMALL)
    assert differences.pop("logits") < 10 * EPS
    assert max(differences.values()) < 0.5, differences  # cosines above 0.87


def errors(precision: str, recipe: RecipeConfig, config: ModelConfig) -> dict[str, float]:
    """Distance from float64, relative to the norm of each tensor."""
    want, want_grads = first_gradients("fp64", recipe, config)
    got, grads = first_gradients(precision, recipe, config)
    assert got.dtype == torch.float32
    pairs = {"logits": (got, want), **{n: (grads[n], want_grads[n]) for n in want_grads}}
    return {n: float((x.double() - y).norm() / y.norm()) for n, (x, y) in pairs.items()}


def test_bf16_weights_accumulate_updates_below_bf16_resolution() -> None:
    model = build_model("bf16", load_recipe("code145"))
    optimizer = PaperSGD(model, model.recipe.optimizer)
    optimizer.set_rates(LearningRates(1e-9, 1e-9))
    before = model.get_parameter("fc8.weight").detach().clone()
    images, labels = batch()
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    after = model.get_parameter("fc8.weight").detach()
    assert after.dtype == torch.float32
    changed = after != before
    assert changed.any()
    assert not (after.bfloat16() != before.bfloat16())[changed].all()


def test_bf16_layers_compute_in_bf16() -> None:
    model = build_model("bf16", load_recipe("code145"))
    dtypes: list[torch.dtype] = []
    for layer in model.layers().values():
        layer.register_forward_hook(
            lambda _, inputs, out: dtypes.extend([inputs[0].dtype, out.dtype])
        )
    model(batch(1)[0])
    assert dtypes == [torch.bfloat16] * 16
