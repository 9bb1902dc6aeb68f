"""Learning rates by epoch: fixed (the 2012 training notes) and on plateaus (the paper)."""

from __future__ import annotations

import math
from copy import deepcopy
from functools import cache
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from alexnet2012.config.compose import compose_config
from alexnet2012.config.enums import ScheduleKind
from alexnet2012.config.schema import DropConfig, ScheduleConfig, TrainConfig
from alexnet2012.nn.lr_schedule import LearningRates, learning_rates, warmup_factor

ERRORS = st.lists(st.floats(0, 100), max_size=60)


def rates_at(config: ScheduleConfig, epoch: int, errors: list[float]) -> LearningRates:
    return learning_rates(config, epoch, errors, batch_size=128)


@pytest.mark.parametrize("kind", ["paper", "code145"])
def test_rates_scale_with_the_batch_size_only_with_a_reference_batch(kind: str) -> None:
    config = schedule(kind)
    errors = [50.0] * 70
    unscaled = learning_rates(config, 70, errors, batch_size=512)
    assert unscaled == rates_at(config, 70, errors)
    config.reference_batch = 128
    scaled = learning_rates(config, 70, errors, batch_size=512)
    assert scaled.weight == 4 * unscaled.weight
    assert scaled.bias == 4 * unscaled.bias
    for layer in ("conv1", "fc8"):
        for bias in (False, True):
            assert scaled.of(layer, bias=bias) == 4 * unscaled.of(layer, bias=bias)
    assert scaled.lighting is unscaled.lighting


@pytest.mark.parametrize("kind", ["paper", "code145"])
def test_a_factor_scales_every_rate_and_no_epoch(kind: str) -> None:
    config, errors = schedule(kind), [50.0] * 90
    before = [rates_at(config, epoch, errors[:epoch]) for epoch in range(90)]
    config.rate_factor = 0.5
    after = [rates_at(config, epoch, errors[:epoch]) for epoch in range(90)]
    assert after == [rates.scaled(0.5) for rates in before]


def test_a_longer_training_has_the_same_schedule_more_slowly() -> None:
    config = schedule("code145")
    before = [rates_at(config, epoch, []) for epoch in range(91)]
    config.epochs_factor = 3
    after = [rates_at(config, epoch, []) for epoch in range(273)]
    assert after == [rates for rates in before for _ in range(3)]


def test_rates_are_halved_when_the_training_error_stops_falling() -> None:
    config = plateau(patience=2, max_drops=6)
    config.kind, config.factor = ScheduleKind.train_plateau, 2.0
    errors = [60.0, 50.0, 50.0, 51.0, 40.0, 41.0, 42.0, 30.0]
    rates = [rates_at(config, epoch, errors[:epoch]).weight for epoch in range(9)]
    assert rates == [0.01] * 4 + [0.005] * 3 + [0.0025] * 2


def schedule(name: str) -> ScheduleConfig:
    return deepcopy(_schedule(name))


@cache
def _schedule(name: str) -> ScheduleConfig:
    words = [f"schedule={name}", *(["recipe=code146"] if name == "code146" else [])]  # has conv6
    return compose_config("train", TrainConfig, words)[0].schedule


def plateau(patience: int = 3, max_drops: int = 3) -> ScheduleConfig:
    return ScheduleConfig(
        kind=ScheduleKind.plateau,
        epochs=90,
        rate=0.01,
        bias_rate=0.02,
        factor=10,
        max_drops=max_drops,
        patience_epochs=patience,
    )


@pytest.mark.parametrize(
    ("epoch", "weight", "conv1", "lighting"),
    [
        (0, 1e-2, 1e-2, True),
        (24, 1e-2, 1e-2, True),
        (25, 1e-3, 1e-3, True),
        (50, 1e-3, 1e-3, True),
        (51, 1e-4, 1e-4, True),
        (66, 1e-4, 1e-4, True),
        (67, 1e-4, 1e-5, False),
        (71, 1e-4, 1e-5, False),
        (72, 1e-4, 0.0, False),
        (78, 1e-4, 0.0, False),
        (79, 1e-5, 0.0, False),
        (90, 1e-5, 0.0, False),
    ],
)
def test_code145_follows_the_training_notes(
    epoch: int, weight: float, conv1: float, lighting: bool
) -> None:
    now = rates_at(schedule("code145"), epoch, [])
    assert now.of("conv2", bias=False) == now.of("fc8", bias=False) == weight
    assert now.of("conv1", bias=False) == conv1
    assert now.lighting is lighting


@pytest.mark.parametrize(
    ("name", "last", "lowered", "frozen", "biases"),
    [("code145", 90, 67, 72, 0.02), ("code145_2010", 92, 68, 72, 0.002)],
)
def test_only_the_weights_of_conv1_are_lowered_before_it_is_frozen(
    name: str, last: int, lowered: int, frozen: int, biases: float
) -> None:
    config = schedule(name)
    assert config.epochs == last + 1
    for epoch in range(lowered, frozen):
        now = rates_at(config, epoch, [])
        assert (now.of("conv1", bias=False), now.of("conv1", bias=True)) == (1e-5, 0.02)
    for epoch in (frozen, last):
        assert {rates_at(config, epoch, []).of("conv1", bias=bias) for bias in (0, 1)} == {0.0}
    assert rates_at(config, frozen, []).of("conv2", bias=True) == 0.02
    assert rates_at(config, last, []).of("conv2", bias=True) == biases


def test_code145_2010_drops_at_its_own_epochs() -> None:
    config = schedule("code145_2010")
    rates = [rates_at(config, epoch, []).weight for epoch in (0, 22, 23, 50, 51, 77, 78, 92)]
    assert rates == [1e-2, 1e-2, 1e-3, 1e-3, 1e-4, 1e-4, 1e-5, 1e-5]
    assert [rates_at(config, epoch, []).lighting for epoch in (67, 68)] == [True, False]


# Of layer-params-146-*.cfg: weights of new and of initialized layers, and all biases, by epoch.
@pytest.mark.parametrize(
    ("recipe", "name", "epochs", "new", "raised_until", "conv6_bias"),
    [
        ("code146", "code146_2009", 7, ["conv6", "fc6", "fc7", "fc8"], 2, 0.002),
        ("code146_2011", "code146_2011", 8, ["fc6", "fc7", "fc8_bottleneck", "fc8"], 6, 0.002),
        ("code146", "code146", 54, ["fc8"], 9, 0.022),
    ],
)
def test_pretraining_and_fine_tuning_keep_the_bias_rates(
    recipe: str, name: str, epochs: int, new: list[str], raised_until: int, conv6_bias: float
) -> None:
    words = [f"recipe={recipe}", f"schedule={name}"]
    config = compose_config("train", TrainConfig, words)[0]
    layers, schedule = config.recipe.layers, config.schedule
    assert schedule.epochs == epochs
    for epoch in range(epochs):
        now = rates_at(schedule, epoch, [])
        for layer in layers[1:]:
            assert now.of(layer, bias=True) == (conv6_bias if layer == "conv6" else 0.02)
    for layer in layers[1:]:
        expected = 0.01 if layer in new else 0.001
        assert rates_at(schedule, raised_until - 1, []).of(layer, bias=False) == expected
        assert rates_at(schedule, raised_until, []).of(layer, bias=False) == 0.001


def test_code145_has_91_epochs_and_starts_biases_at_twice_the_rate() -> None:
    config = schedule("code145")
    assert config.epochs == 91
    assert rates_at(config, 0, []).of("conv2", bias=True) == 0.02


def test_the_papers_schedule_divides_the_rate_by_10_three_times_in_90_epochs() -> None:
    config = schedule("paper")
    start, end = rates_at(config, 0, []), rates_at(config, 89, [50.0] * 89)
    assert (config.kind, config.epochs, config.max_drops) == (ScheduleKind.plateau, 90, 3)
    assert (start.weight, start.bias) == (0.01, 0.01)
    assert end.weight == pytest.approx(1e-5, rel=1e-12)


@given(errors=ERRORS, patience=st.integers(1, 5), limit=st.integers(0, 4))
def test_plateau_rates_never_rise_and_drop_at_most_max_drops_times(
    errors: list[float], patience: int, limit: int
) -> None:
    config = plateau(patience, limit)
    history = [rates_at(config, epoch, errors[:epoch]).weight for epoch in range(len(errors) + 1)]
    assert history == sorted(history, reverse=True)
    drops = [round(math.log10(0.01 / rate)) for rate in history]
    assert drops[0] == 0
    assert drops[-1] <= limit
    assert all(after - before in (0, 1) for before, after in pairwise(drops))


@given(errors=ERRORS, patience=st.integers(1, 5))
def test_plateau_waits_patience_epochs_between_drops(errors: list[float], patience: int) -> None:
    config = plateau(patience)
    history = [rates_at(config, epoch, errors[:epoch]).weight for epoch in range(len(errors) + 1)]
    dropped_at = [e for e in range(1, len(history)) if history[e] < history[e - 1]]
    assert all(later - sooner >= patience for sooner, later in pairwise([0, *dropped_at]))


def test_a_falling_error_never_lowers_the_rate() -> None:
    assert rates_at(plateau(), 50, [100.0 - epoch for epoch in range(50)]).weight == 0.01


def test_the_rate_falls_after_exactly_patience_epochs_without_a_new_best() -> None:
    errors = [60.0, 50.0, 51.0, 50.0, 52.0]  # a tie with the best is no improvement
    assert rates_at(plateau(), 4, errors[:4]).weight == 0.01
    assert rates_at(plateau(), 5, errors).weight == pytest.approx(0.001, rel=1e-12)


def test_a_nan_error_counts_as_no_improvement() -> None:
    errors = [50.0, math.nan, math.nan, math.nan]
    assert rates_at(plateau(), 4, errors).weight == pytest.approx(0.001, rel=1e-12)


def test_a_plateau_lowers_the_bias_rate_too() -> None:
    assert rates_at(plateau(), 3, [50.0] * 4).bias == pytest.approx(0.002, rel=1e-12)


def test_a_drop_changes_only_the_rates_it_names() -> None:
    config = ScheduleConfig(
        kind=ScheduleKind.fixed,
        epochs=9,
        rate=0.1,
        bias_rate=0.2,
        drops=[
            DropConfig(epoch=1, layer_rates={"conv1": 0.05}),
            DropConfig(epoch=2, bias_rate=0.02),
            DropConfig(epoch=3, layer_rates={"fc6": 0.03}),
            DropConfig(epoch=4, lighting=False),
            DropConfig(epoch=5, layer_bias_rates={"conv1": 0.04}),
        ],
    )
    assert rates_at(config, 0, []) == LearningRates(0.1, 0.2)
    assert rates_at(config, 2, []) == LearningRates(0.1, 0.02, {"conv1": 0.05})
    assert rates_at(config, 4, []) == LearningRates(
        0.1, 0.02, {"conv1": 0.05, "fc6": 0.03}, lighting=False
    )
    last = rates_at(config, 8, [])
    assert last == LearningRates(
        0.1, 0.02, {"conv1": 0.05, "fc6": 0.03}, lighting=False, layer_biases={"conv1": 0.04}
    )
    assert (last.of("conv1", bias=False), last.of("conv1", bias=True)) == (0.05, 0.04)
    assert last.of("fc6", bias=True) == 0.03


def test_fixed_rates_ignore_the_validation_errors() -> None:
    config = schedule("code145")
    assert rates_at(config, 30, [50.0] * 30) == rates_at(config, 30, [])


@pytest.mark.parametrize("name", ["paper", "code145", "code146", "cifar4", "constant"])
@pytest.mark.parametrize("steps_per_epoch", [1, 7])
def test_every_schedule_rises_linearly_step_by_step_to_its_own_rates(
    name: str, steps_per_epoch: int
) -> None:
    config, warmup = schedule(name), 3 * steps_per_epoch
    config.warmup_epochs = 3
    for step in range(5 * steps_per_epoch):
        full = rates_at(config, step // steps_per_epoch, [])
        rates = full.scaled(warmup_factor(config, step, steps_per_epoch))
        share = min(1.0, (step + 1) / warmup)
        for layer in ("conv1", "conv2", "fc8"):
            for bias in (False, True):
                want = share * full.of(layer, bias=bias)
                assert rates.of(layer, bias=bias) == pytest.approx(want, rel=1e-12)
        assert rates.lighting is full.lighting
        if step >= warmup - 1:
            assert rates == full


@given(step=st.integers(0, 10**7), steps_per_epoch=st.integers(1, 10**5))
def test_without_a_warm_up_all_rates_are_those_of_the_epoch_to_the_bit(
    step: int, steps_per_epoch: int
) -> None:
    assert warmup_factor(plateau(), step, steps_per_epoch) == 1
    rates = LearningRates(0.01, 0.02, {"conv1": 0.003}, lighting=False)
    assert rates.scaled(1.0) == rates


def test_epochs_of_the_warm_up_count_for_no_plateau() -> None:
    config, errors = plateau(), [99.0] * 8
    assert rates_at(config, 4, errors[:4]).weight == pytest.approx(0.001, rel=1e-12)
    config.warmup_epochs = 4
    assert rates_at(config, 7, errors[:7]).weight == 0.01
    assert rates_at(config, 8, errors).weight == pytest.approx(0.001, rel=1e-12)
