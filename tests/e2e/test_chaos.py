"""Killed at random moments and started again, a run ends as if nothing had happened."""

from __future__ import annotations

from pathlib import Path

from chaos import state_of, train_through_kills
from test_train import overrides, train_ranks

from alexnet2012.data.store import Store


def test_a_run_whose_ranks_and_launcher_are_killed_ends_with_the_same_weights(
    photos_store: Store, tmp_path: Path
) -> None:
    long_enough = ("schedule.epochs=10", "checkpoint.every_steps=5")
    whole, killed = (tmp_path / name for name in ("whole", "killed"))
    train_ranks(2, photos_store, whole, *long_enough)
    words = overrides(photos_store, killed, *long_enough)
    kills = train_through_kills(words, killed, ("rank 1", "launcher"), seed=0, most_s=0.25)
    assert [kill.left for kill in kills] == [[], []]
    assert (killed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()
    assert state_of(killed) == state_of(whole)
