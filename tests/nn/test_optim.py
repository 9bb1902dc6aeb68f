"""The paper's update rule, compared with its formula and with torch's own SGD.

Tolerance: both sides round the same four products and sums in another order, so after a few steps
they agree to about ten units in the last place of a float64. 1e-13 leaves room; the errors to be
detected are larger than 1e-3.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from alexnet2012.config.schema import OptimizerConfig
from alexnet2012.nn import optim
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD

BOUND = 1e-13
PAPER = {"momentum": 0.9, "weight_decay": 0.0005, "decay_biases": False}


def small_model() -> nn.Module:
    model = nn.ModuleDict({"conv1": nn.Conv2d(3, 4, 3), "fc8": nn.Linear(5, 2)}).double()
    draw = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=draw, dtype=torch.float64))
    return model


def gradients(model: nn.Module, step: int) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(100 + step)
    return {
        name: torch.randn(p.shape, generator=draw, dtype=torch.float64)
        for name, p in model.named_parameters()
    }


def stepped(optimizer_config: OptimizerConfig, rates: list[LearningRates]) -> dict[str, Tensor]:
    model = small_model()
    optimizer = PaperSGD(model, optimizer_config)
    for step, now in enumerate(rates):
        optimizer.set_rates(now)
        for name, grad in gradients(model, step).items():
            model.get_parameter(name).grad = grad
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def test_update_does_not_depend_on_the_block_size(monkeypatch: pytest.MonkeyPatch) -> None:
    config, now = OptimizerConfig(**PAPER), [LearningRates(0.1, 0.2)] * 2
    whole = stepped(config, now)
    for block in (1, 30, 60):
        monkeypatch.setattr(optim, "BLOCK", block)
        in_blocks = stepped(config, now)
        assert all(torch.equal(in_blocks[name], whole[name]) for name in whole)


def by_formula(rates: list[LearningRates], *, decay_biases: bool) -> dict[str, Tensor]:
    weights = {name: p.detach().clone() for name, p in small_model().named_parameters()}
    velocity = {name: torch.zeros_like(w) for name, w in weights.items()}
    for step, now in enumerate(rates):
        for name, grad in gradients(small_model(), step).items():
            layer, kind = name.split(".")
            rate = now.layers.get(layer, now.bias if kind == "bias" else now.weight)
            if rate == 0:  # frozen
                continue
            decay = 0.0005 if kind == "weight" or decay_biases else 0.0
            velocity[name] = (
                0.9 * velocity[name] - decay * rate * weights[name] - rate * grad
            )  # paper sec. 5
            weights[name] = weights[name] + velocity[name]
    return weights


def by_torch(rates: list[float]) -> dict[str, Tensor]:
    model = small_model()
    optimizer = torch.optim.SGD(model.parameters(), momentum=0.9, weight_decay=0.0005)
    for step, rate in enumerate(rates):
        optimizer.param_groups[0]["lr"] = rate
        for name, grad in gradients(model, step).items():
            model.get_parameter(name).grad = grad
        optimizer.step()
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def worst(got: dict[str, Tensor], want: dict[str, Tensor]) -> float:
    return max(float((got[n] - want[n]).abs().max() / want[n].abs().max()) for n in want)


@pytest.mark.parametrize("decay_biases", [False, True])
def test_steps_follow_the_papers_formula_through_changes_of_the_rate(decay_biases: bool) -> None:
    rates = [
        LearningRates(0.1, 0.2),
        LearningRates(0.1, 0.2),
        LearningRates(0.01, 0.2),
        LearningRates(0.01, 0.02, {"conv1": 0.0}),
        LearningRates(0.01, 0.02, {"conv1": 0.3}),
    ]
    config = OptimizerConfig(**{**PAPER, "decay_biases": decay_biases})
    assert worst(stepped(config, rates), by_formula(rates, decay_biases=decay_biases)) < BOUND


def test_torchs_sgd_agrees_until_the_rate_changes() -> None:
    config = OptimizerConfig(**{**PAPER, "decay_biases": True})
    same = [0.1] * 5
    dropped = [0.1] * 4 + [0.01]
    as_rates = [LearningRates(rate, rate) for rate in same]
    assert worst(stepped(config, as_rates), by_torch(same)) < BOUND
    as_rates = [LearningRates(rate, rate) for rate in dropped]
    assert worst(stepped(config, as_rates), by_torch(dropped)) > 1e-3


def test_biases_do_not_decay_unless_asked() -> None:
    rates = LearningRates(0.1, 0.1)
    model = small_model()
    for decay_biases in (False, True):
        config = OptimizerConfig(momentum=0.0, weight_decay=0.5, decay_biases=decay_biases)
        optimizer = PaperSGD(model, config)
        optimizer.set_rates(rates)
        before = {n: p.detach().clone() for n, p in model.named_parameters()}
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        assert torch.equal(model.get_parameter("fc8.bias"), before["fc8.bias"]) is not decay_biases
        shrunk = before["fc8.weight"] * (1 - 0.5 * 0.1)
        assert torch.allclose(model.get_parameter("fc8.weight"), shrunk, rtol=BOUND, atol=0)


def test_a_layers_own_rate_applies_to_its_weights_and_biases() -> None:
    weights = stepped(OptimizerConfig(**PAPER), [LearningRates(0.1, 0.1, {"conv1": 0.0})])
    before = dict(small_model().named_parameters())
    assert torch.equal(weights["conv1.weight"], before["conv1.weight"])
    assert torch.equal(weights["conv1.bias"], before["conv1.bias"])
    assert not torch.equal(weights["fc8.weight"], before["fc8.weight"])


def test_a_layer_frozen_with_momentum_does_not_move() -> None:
    moving, frozen = LearningRates(0.1, 0.1), LearningRates(0.1, 0.1, {"conv1": 0.0})
    before, after = (stepped(OptimizerConfig(**PAPER), r) for r in ([moving], [moving, frozen]))
    assert torch.equal(after["conv1.weight"], before["conv1.weight"])
    assert not torch.equal(after["fc8.weight"], before["fc8.weight"])


@pytest.mark.parametrize("loss", [2.3, float("nan"), float("inf")])
def test_a_loss_that_is_not_finite_skips_the_update(loss: float) -> None:
    model = small_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = PaperSGD(model, OptimizerConfig(**PAPER))
    optimizer.set_rates(LearningRates(0.1, 0.1))
    for name, grad in gradients(model, 0).items():
        model.get_parameter(name).grad = grad
    optimizer.step(loss=torch.tensor(loss))
    moved = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == (set(before) if loss == 2.3 else set())


def test_parameters_without_a_gradient_are_unchanged() -> None:
    model = small_model()
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    optimizer = PaperSGD(model, OptimizerConfig(**PAPER))
    optimizer.set_rates(LearningRates(0.1, 0.1))
    optimizer.step()
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
