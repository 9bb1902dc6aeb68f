"""Kernels, misclassified images and update ratios."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from alexnet2012.config.enums import Precision
from alexnet2012.config.schema import ModelConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.data.loaders import Batch
from alexnet2012.data.store import Store
from alexnet2012.distributed.mesh import single_process
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.nn.lr_schedule import LearningRates
from alexnet2012.nn.optim import PaperSGD
from alexnet2012.tracking.image_grids import Misclassified, kernel_grids, misclassified_grid
from alexnet2012.tracking.train_stats import (
    SHOWN,
    TrainStats,
    WorstMistakes,
    kernels,
    update_ratios,
)
from alexnet2012.utils.shard import Shard

TINY = ModelConfig(width=0.04, input_size=64)


def model_and_optimizer() -> tuple[AlexNet, PaperSGD]:
    model = AlexNet("paper", 4, model=TINY, precision=Precision.fp64)
    return model, PaperSGD(model, model.recipe.optimizer)


def a_step(model: AlexNet, optimizer: PaperSGD, rates: LearningRates) -> None:
    images = torch.randn(3, 3, 64, 64, dtype=torch.float64, generator=torch.Generator())
    torch.nn.functional.cross_entropy(model(images), torch.tensor([0, 1, 2])).backward()
    optimizer.set_rates(rates)
    optimizer.step()


def test_an_update_ratio_is_the_norm_of_the_update_over_that_of_the_weights() -> None:
    model, optimizer = model_and_optimizer()
    rates = LearningRates(weight=0.01, bias=0.02)
    a_step(model, optimizer, rates)  # so that there is momentum
    before = {name: layer.weight.detach().clone() for name, layer in model.layers().items()}
    a_step(model, optimizer, rates)
    found = update_ratios(model, optimizer, single_process())
    assert list(found) == list(model.layers())
    for name, layer in model.layers().items():
        after = layer.weight.detach()
        assert found[name] == pytest.approx(float((after - before[name]).norm() / after.norm()))
        assert found[name] > 0


def test_a_layer_with_learning_rate_zero_has_ratio_zero_despite_its_momentum() -> None:
    model, optimizer = model_and_optimizer()
    a_step(model, optimizer, LearningRates(weight=0.01, bias=0.02))
    a_step(model, optimizer, LearningRates(weight=0.01, bias=0.02, layers={"conv2": 0.0}))
    found = update_ratios(model, optimizer, single_process())
    assert found.pop("conv2") == 0
    assert min(found.values()) > 0


def test_nothing_is_computed_unless_enabled(photos_store: Store) -> None:
    model, optimizer = model_and_optimizer()
    stats = TrainStats(model, optimizer, single_process(), photos_store.split("val"), ("a",))
    assert (stats.ratios(), stats.images()) == ({}, {})
    batch = validation_batch(photos_store, 2)
    stats.update(batch, torch.full((2, 16), 1 / 16))
    stats.enabled = True
    assert set(stats.images()) == {"kernels-tower0", "kernels-tower1"}  # no predictions were added


def validation_batch(store: Store, count: int) -> Batch:
    labels = torch.from_numpy(store.split("val").labels[:count])
    return Batch(torch.empty(count, 1), labels, np.arange(count), Shard(0, count, count))


def test_the_misclassified_images_with_the_highest_probability_are_kept(
    photos_store: Store,
) -> None:
    split, count = photos_store.split("val"), 2 * SHOWN
    worst = WorstMistakes(split, photos_store.classes)
    batch = validation_batch(photos_store, count)
    probabilities = torch.zeros(count, 16)
    wrong = (batch.labels + 1) % 16
    for row in range(count):  # the first is right; the probability rises from row to row
        predicted = batch.labels[0] if row == 0 else wrong[row]
        probabilities[row, predicted] = 0.5 + row / 100
    for part in (slice(0, 5), slice(5, count)):
        rows = np.arange(count)[part]
        one = Batch(batch.images[part], batch.labels[part], rows, Shard(0, 1, 1))
        worst.update(one, probabilities[part])
    assert len(worst.mistakes) == SHOWN
    assert [mistake.file for mistake in worst.mistakes] == [
        split.paths[row] for row in range(count - 1, count - 1 - SHOWN, -1)
    ]
    first = worst.mistakes[0]
    assert first.true == photos_store.classes[int(batch.labels[-1])]
    assert first.predicted == photos_store.classes[int(wrong[-1])]
    assert first.probability == pytest.approx(0.5 + (count - 1) / 100)


def test_a_model_without_mistakes_has_a_blank_grid(photos_store: Store) -> None:
    worst = WorstMistakes(photos_store.split("val"), photos_store.classes)
    batch = validation_batch(photos_store, 3)
    worst.update(batch, torch.nn.functional.one_hot(batch.labels, 16).float())
    assert worst.mistakes == []
    assert len(worst.grid().getcolors() or []) == 1


def test_the_grid_shows_each_image_and_truncates_long_names(photos_store: Store) -> None:
    file = photos_store.split("val").paths[0]
    plain = misclassified_grid([Misclassified(file, "a", "b", 0.9)] * 5)
    hostile = misclassified_grid([Misclassified(file, "a" * 500, "日本\x1b[2J\n" * 50, 0.9)] * 5)
    assert plain.size == hostile.size
    with Image.open(file) as picture:
        small = picture.convert("RGB").resize((128, 128), Image.Resampling.BOX)
    for left, top in ((8, 8), (144, 8), (8, 172)):  # five in rows of four
        assert plain.crop((left, top, left + 128, top + 128)).tobytes() == small.tobytes()
    edges = [hostile.crop((left, 136, left + 8, 164)) for left in (0, 136, 272, 408, 544)]
    assert all(edge.getcolors() == [(8 * 28, (255, 255, 255))] for edge in edges)


def test_the_kernels_of_each_tower_are_a_separate_image() -> None:
    model, _ = model_and_optimizer()
    weights = kernels(model)
    assert torch.equal(weights, model.full_state_dict()["conv1.weight"])
    first, second = kernel_grids(weights, 2, zoom=1)
    assert first.tobytes() != second.tobytes()
    changed = weights.clone()
    changed[-1] = -changed[-1]
    again = kernel_grids(changed, 2, zoom=1)
    assert again[0].tobytes() == first.tobytes()
    assert again[1].tobytes() != second.tobytes()


def test_a_model_of_one_tower_has_one_image_of_kernels() -> None:
    recipe = load_recipe("paper")
    recipe.towers = 1
    model = AlexNet(recipe, 4, model=TINY)
    assert len(kernel_grids(kernels(model), recipe.towers)) == 1
