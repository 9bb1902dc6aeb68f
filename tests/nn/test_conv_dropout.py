"""Dropout after a convolution, which definition 177 of the 2012 code has after conv4."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch
from ranks import run_ranks

from alexnet2012 import AlexNet, init_mesh
from alexnet2012.config.enums import LayerOp, Precision
from alexnet2012.config.schema import ConfigError, ModelConfig, RecipeConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.nn.cost_model import Layout, count_layers, layer_costs

SMALL = ModelConfig(width=0.125, input_size=64)
AFTER_CONV4 = [LayerOp.activation, LayerOp.dropout]


def recipe(rate: float = 0.2, after: list[LayerOp] = AFTER_CONV4) -> RecipeConfig:
    own = load_recipe("code145")
    return replace(own, conv4=replace(own.conv4, after=after), conv_dropout_rate=rate)


def images() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 60 * torch.randn(4, 3, 64, 64, generator=generator, dtype=torch.float64)


def logits_of_two_passes(towers: int) -> list[npt.NDArray[np.float64]]:
    """In training, on this rank's rows of the batch; masks of fc6 and fc7 are drawn, too."""
    mesh = init_mesh(towers, device="cpu")
    model = AlexNet(recipe(), 5, model=SMALL, mesh=mesh, seed=3, precision=Precision.fp64).train()
    own = images()[mesh.replica * 4 // mesh.replicas : (mesh.replica + 1) * 4 // mesh.replicas]
    return [model(own).detach().numpy() for _ in range(2)]


def test_towers_and_replicas_drop_the_same_activations_as_one_process() -> None:
    (one,) = run_ranks(1, logits_of_two_passes, 2)
    assert not np.allclose(one[0], one[1])
    for rank in run_ranks(2, logits_of_two_passes, 2):
        assert np.allclose(rank, one, rtol=1e-10, atol=0)
    by_replica = run_ranks(2, logits_of_two_passes, 1)
    for number in range(2):
        both = np.concatenate([replica[number] for replica in by_replica])
        assert np.allclose(both, one[number], rtol=1e-10, atol=0)


def test_it_drops_at_its_rate_in_training_and_scales_in_evaluation() -> None:
    model = AlexNet(recipe(), 5, model=SMALL).train()
    seen: dict[str, torch.Tensor] = {}

    def record(name: str) -> None:
        model.get_submodule(name).register_forward_hook(
            lambda module, args, output: seen.update({name: output})
        )

    record("conv4_relu")
    record("conv4_dropout")
    model(images())
    was_on = seen["conv4_relu"] > 0
    kept = seen["conv4_dropout"][was_on] > 0
    assert torch.equal(seen["conv4_dropout"][was_on][kept], seen["conv4_relu"][was_on][kept])
    assert 0.15 < 1 - float(kept.float().mean()) < 0.25
    model.eval()(images())
    assert torch.equal(seen["conv4_dropout"], seen["conv4_relu"] * 0.8)


def test_its_stream_is_saved_and_micro_batches_rewind_it() -> None:
    model = AlexNet(recipe(), 5, model=SMALL).train()
    state = model.random_state()
    assert set(state) == {"conv4", "fc6", "fc7"}
    first = model(images())
    moved = model.random_state()
    assert not torch.equal(moved["conv4"], state["conv4"])
    model.load_random_state(state)
    assert torch.equal(model(images()), first)
    assert torch.equal(model.random_state()["conv4"], moved["conv4"])


def test_its_masks_count_as_memory() -> None:
    def kept_and_drawn(own: RecipeConfig) -> tuple[int, int]:
        counts = count_layers(AlexNet(own, 5, model=SMALL))
        cost = next(c for c in layer_costs(own, counts, Layout(1)) if c.name == "conv4")
        return cost.kept_bytes, cost.drawn_bytes

    units = 48 * 3 * 3  # an eighth of 384 maps, of 3 × 3 pixels at 64
    without, dropped = kept_and_drawn(recipe(after=[LayerOp.activation])), kept_and_drawn(recipe())
    assert dropped[0] - without[0] == units  # a byte each
    assert (without[1], dropped[1]) == (0, 16 * units)


def test_twice_after_a_layer_is_refused() -> None:
    with pytest.raises(
        ConfigError, match=r"recipe.conv4.after=dropout, dropout: has dropout twice"
    ):
        AlexNet(recipe(after=[LayerOp.dropout, LayerOp.dropout]), 5, model=SMALL)
