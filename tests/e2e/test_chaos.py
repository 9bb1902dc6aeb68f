"""A run that is killed at random times and restarted ends in the state of an uninterrupted run."""

from __future__ import annotations

from pathlib import Path

from killed_runs import state_of, train_through_kills
from test_train import overrides, train_ranks

from alexnet2012.data.store import Store


def test_a_run_with_killed_ranks_and_launcher_resumes_to_the_same_weights(
    photos_store: Store, tmp_path: Path
) -> None:
    long_enough = ("schedule.epochs=10", "checkpoint.every_steps=5")
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    train_ranks(2, photos_store, whole, *long_enough)
    arguments = overrides(photos_store, killed, *long_enough)
    kills = train_through_kills(arguments, killed, ("rank 1", "launcher"), seed=0, most_s=0.25)
    assert [kill.left for kill in kills] == [[], []]
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert state_of(killed) == state_of(whole)
