"""Epochs to a training error: the best rate of each activation, and a ratio seed by seed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from alexnet2012.config.schema import ConfigError, ReproduceConfig
from alexnet2012.data.store import Store
from alexnet2012.ledger import sweeps
from alexnet2012.ledger.claims import Scale
from alexnet2012.ledger.measurements.relu_vs_tanh import (
    THRESHOLDS_PCT,
    TRAINING,
    Errors,
    best_rate,
    epochs_to,
    rates_beyond,
    ratios,
    read_runs,
    relu_chart,
    relu_from_sample,
    relu_measurement,
    train,
)
from alexnet2012.ledger.sweeps import Sweeps
from alexnet2012.ledger.verdicts import Verdict, verdicts


def falling(epochs: int, length: int = 40) -> Errors:
    """Reaches 25% in the given epoch."""
    return [90.0 - 65.0 * (i + 1) / epochs for i in range(length)]


def measured(relu: list[int], tanh: list[int]) -> tuple[str, float | None, Verdict]:
    found = {
        "relu": {0.01: {seed: falling(n) for seed, n in enumerate(relu)}},
        "tanh": {0.01: {seed: falling(n) for seed, n in enumerate(tanh)}},
    }
    measurement = relu_measurement(found, Scale.reduced, "…", "made up")
    assert relu_from_sample(measurement.sample, Scale.reduced, "…", "made up") == measurement
    verdict, _ = verdicts([measurement])["relu"]
    return measurement.value, measurement.numbers.get("ratio"), verdict


def test_a_best_rate_at_an_end_of_those_tried_extends_the_search() -> None:
    rates = {0.004: {0: falling(9)}, 0.008: {0: falling(7)}}
    tried = {0.004, 0.008}
    assert rates_beyond(
        {"relu": rates, "tanh": rates}, {"relu": tried, "tanh": {*tried, 0.016}}
    ) == {
        "relu": 0.016  # of tanh .016 was tried and failed
    }
    rates = {0.004: {0: falling(6)}, 0.008: {0: falling(7)}}
    assert rates_beyond(
        {"relu": rates, "tanh": rates}, {"relu": tried, "tanh": {*tried, 0.002}}
    ) == {"relu": 0.002}


def test_the_epoch_is_the_first_at_or_below_the_threshold() -> None:
    assert epochs_to([40, 25, 30, 20]) == 2
    assert epochs_to([40, 26]) is None
    assert epochs_to(falling(7)) == 7


def test_the_best_rate_has_the_fewest_epochs_in_the_mean_over_seeds() -> None:
    lucky = {0: falling(5), 1: falling(30)}
    steady = {0: falling(12), 1: falling(12)}
    assert best_rate({0.1: lucky, 0.01: steady}) == 0.01
    assert best_rate({0.1: lucky, 0.01: {0: falling(5), 1: falling(99)}}) == 0.1  # not there
    slow, slower = {0: falling(99)}, {0: falling(199)}
    assert best_rate({1.0: slower, 2.0: slow}) == 2.0  # then lowest at the end


def test_the_ratio_is_paired_by_seed() -> None:
    value, ratio, verdict = measured([5, 6, 5], [30, 36, 30])
    assert ratio == pytest.approx(6)
    assert verdict is Verdict.supported
    start = "6.0 × (95% 6.0 to 6.0) at 25%: 5, 6, 5 epochs with ReLU, 30, 36, 30 with tanh"
    assert value.startswith(start)


def test_no_difference_supports_nothing_and_the_reverse_contradicts() -> None:
    assert measured([5, 20, 5], [5, 10, 40])[2] is Verdict.inconclusive
    assert measured([10, 20, 15], [15, 14, 18])[2] is Verdict.contradicted  # not three times
    assert measured([20, 21, 20], [10, 10, 11])[2] is Verdict.contradicted
    assert measured([10, 11, 10], [20, 23, 19])[2] is Verdict.in_direction  # twice, not six times


def test_one_seed_gives_a_ratio_and_no_verdict() -> None:
    value, ratio, verdict = measured([5], [30])
    assert (ratio, verdict) == (6, Verdict.inconclusive)
    assert "95%" not in value


def test_a_threshold_that_was_not_reached_gives_a_lower_bound() -> None:
    value, ratio, _ = measured([5, 5], [99, 30])
    assert value.startswith("more than 7.0 × at 25%: 5, 5 epochs")
    assert "over 40, 30 with tanh" in value
    assert ratio is None
    # A bound contradicts no size; three of them show the direction.
    assert measured([5, 5, 5], [99, 98, 99])[2] is Verdict.supported
    value, ratio, _ = measured([45], [30])  # ReLU ends at 32.2%
    assert value.startswith("ReLU did not reach 25% in 40 epochs; ")
    assert "at 35%" in value and "at 30%" not in value
    assert ratio is None


def write_run(run_dir: Path, activation: str, rate: float, seed: int, errors: Errors) -> None:
    run_dir.mkdir(parents=True)
    settings = f"seed: {seed}\nmodel: {{activation: {activation}}}\nschedule: {{rate: {rate}}}\n"
    (run_dir / "config.yaml").write_text(settings)
    records = [
        {"kind": "epoch", "step": i, "epoch": i, "loss": 1.0, "train_error_pct": error}
        for i, error in enumerate(errors)
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (run_dir / "metrics.jsonl").write_text(lines)
    (run_dir / "summary.json").write_text("{}")


Run = tuple[str, str, float, int]  # experiment, activation, rate, seed
Search = Callable[[dict[str, dict[float, Errors]]], tuple[Sweeps, list[Run]]]


@pytest.fixture
def searched(tmp_path: Path, photos_store: Store, monkeypatch: pytest.MonkeyPatch) -> Search:
    """Sweeps whose runs end at once, with errors by activation and rate; without one: it fails."""
    monkeypatch.setattr(Sweeps, "store", lambda sweeps, experiment: photos_store)

    def search(errors: dict[str, dict[float, Errors]]) -> tuple[Sweeps, list[Run]]:
        trained: list[Run] = []

        def run(commands: Sequence[Sequence[str]], *_: object) -> list[Sequence[str]]:
            failed = []
            for command in commands:
                given = dict(word.split("=", 1) for word in command if "=" in word)
                activation, rate, seed = (
                    given[key] for key in ("model.activation", "schedule.rate", "seed")
                )
                folder = Path(given["hydra.sweep.dir"].strip('"'), activation, rate, seed)
                if folder.exists():
                    continue
                trained.append((given["experiment"], activation, float(rate), int(seed)))
                if reached := errors[activation].get(float(rate)):
                    write_run(folder, activation, float(rate), int(seed), reached)
                else:
                    failed.append(command)
            return failed

        monkeypatch.setattr(sweeps, "run_all", run)
        config = ReproduceConfig(out=str(tmp_path), seeds=3, rate_seeds=2)
        return Sweeps(config, tmp_path, TRAINING), trained

    return search


def test_rates_are_searched_to_the_threshold_until_each_best_has_neighbours(
    searched: Search,
) -> None:
    errors = {
        "relu": {0.002: falling(9), 0.004: falling(5), 0.008: falling(6)},
        # At four epochs .016 would be the best; .008 reaches the threshold sooner. .032 fails.
        "tanh": {0.004: falling(38), 0.008: falling(30), 0.016: [50.0, 40.0, *falling(36)[2:]]},
    }
    sweeps, trained = searched(errors)
    runs = train(sweeps)
    assert {(name, rate, seed) for _, name, rate, seed in trained} == {
        *(("relu", rate, seed) for rate in (0.002, 0.004, 0.008) for seed in (0, 1)),
        *(("tanh", rate, seed) for rate in (0.004, 0.008, 0.016) for seed in (0, 1)),
        *(("relu", 0.004, 2), ("tanh", 0.008, 2)),
    }
    assert len(trained) == len(set(trained)) == 14  # no run twice
    assert [seed for *_, seed in trained[:8]] == [0] * 4 + [1] * 4
    measurement = relu_measurement(read_runs(runs), Scale.reduced, "…", "made up")
    assert measurement.n_seeds == 3
    assert measurement.numbers["ratio"] == pytest.approx(30 / 5)
    assert sweeps.warnings == []


def test_a_rate_that_fails_is_too_high(searched: Search) -> None:
    errors = {
        "relu": {0.002: falling(9), 0.004: falling(5), 0.008: falling(6)},
        "tanh": {0.004: falling(38), 0.008: falling(30)},  # .016 fails
    }
    sweeps, _ = searched(errors)
    train(sweeps)
    # One warning, although two runs failed.
    assert sweeps.warnings == [
        "relu_cifar10/full: tanh at learning rate 0.016 failed; treated as too high"
    ]


def test_rates_are_compared_on_the_seeds_that_all_of_them_have() -> None:
    fast_later = {0: falling(12), 1: falling(12), 2: falling(1)}
    assert best_rate({0.1: {0: falling(10), 1: falling(10)}, 0.01: fast_later}) == 0.1


def test_ratios_are_given_at_five_training_errors() -> None:
    relu = {0.01: {seed: falling(5 + seed) for seed in range(3)}}
    tanh = {0.01: {seed: falling(45) for seed in range(3)}}  # ends at 32.2%
    found = ratios({"relu": relu, "tanh": tanh})
    assert [ratio["threshold_pct"] for ratio in found] == list(THRESHOLDS_PCT)
    assert [ratio["is_bound"] for ratio in found] == [False, False, False, True, True]
    # 45% after 45·45/65 of 45 epochs: 32; with ReLU after 4, 5 and 5
    assert found[0]["tanh_epochs"] == 32
    assert found[0]["ratios"] == [32 / 4, 32 / 5, 32 / 5]
    assert found[0]["interval"] is not None


def test_an_activation_whose_rates_all_fail_is_named(searched: Search) -> None:
    relu = {0.004: [40.0], 0.008: [50.0], 0.002: [50.0]}
    sweeps, _ = searched({"relu": relu, "tanh": {}})
    with pytest.raises(ConfigError, match="without tanh"):
        train(sweeps)


def test_short_and_long_runs_of_one_seed_are_not_mixed(tmp_path: Path) -> None:
    for length in ("short", "long"):
        write_run(tmp_path / length, "relu", 0.004, 0, [50.0])
    with pytest.raises(ConfigError, match=r"second run of relu at rate 0\.004, seed 0; give"):
        read_runs(sorted(tmp_path.iterdir()))


def test_a_ratio_needs_a_seed_trained_with_both(tmp_path: Path) -> None:
    found = {"relu": {0.01: {0: falling(5)}}, "tanh": {0.01: {1: falling(5)}}}
    with pytest.raises(ConfigError, match=r"relu has \[0\], tanh \[1\].*no seed in common"):
        relu_measurement(found, Scale.reduced, "…", "made up")


def test_runs_are_read_from_their_files(tmp_path: Path) -> None:
    for activation, epochs in (("relu", 5), ("tanh", 20)):
        for seed in (0, 1):
            run_dir = tmp_path / activation / str(seed)
            write_run(run_dir, activation, 0.01, seed, falling(epochs))
    found = read_runs(tmp_path.glob("*/*"))
    ablation = relu_chart(found, "…")
    assert [arm["epochs_to_threshold"] for arm in ablation["arms"]] == [5, 20]
    assert ablation["n_seeds"] == 2
    with pytest.raises(ConfigError, match="without tanh"):
        read_runs((tmp_path / "relu").glob("*"))
