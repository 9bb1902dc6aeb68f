"""Which commit a run says it ran."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet2012.utils import environment as machine

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A repository around a copy of machine.py, which is not yet in it."""

    def run(*words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("src/alexnet2012/machine.py", "README.md", "results/ledger.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(machine, "__file__", str(tmp_path / "src/alexnet2012/machine.py"))
    run("init", "--quiet")
    run("add", "README.md", "results")
    run("commit", "--quiet", "--message", "without code")
    return run


def test_a_change_is_one_of_what_runs(git: Git, tmp_path: Path) -> None:
    git("add", "src")
    git("commit", "--quiet", "--message", "code")
    commit = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "results/ledger.json").write_text("written by a run", encoding="utf-8")
    assert machine.running_commit() == (commit, False)
    (tmp_path / "src/alexnet2012/machine.py").write_text("other code", encoding="utf-8")
    assert machine.running_commit() == (commit, True)


def test_code_installed_within_somebody_elses_repository_is_a_version(git: Git) -> None:
    name, changed = machine.running_commit()
    assert name.startswith("version ")
    assert not changed
