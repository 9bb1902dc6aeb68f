"""The commit and the code hash that runs record."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from alexnet2012.utils import environment

Git = Callable[..., str]


@pytest.fixture
def git(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Git:
    """A repository around a copy of the package, which is not committed yet."""

    def run(*words: str) -> str:
        who = ["-c", "user.name=test", "-c", "user.email=test@localhost"]
        command = ["git", "-C", str(tmp_path), *who, *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    for name in ("src/alexnet2012/__init__.py", "README.md", "results/ledger.json"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name, encoding="utf-8")
    monkeypatch.setattr(environment, "PACKAGE", tmp_path / "src/alexnet2012")
    run("init", "--quiet")
    run("add", "README.md", "results")
    run("commit", "--quiet", "--message", "without code")
    return run


def test_only_changes_of_code_count_as_changes(git: Git, tmp_path: Path) -> None:
    git("add", "src")
    git("commit", "--quiet", "--message", "code")
    commit = git("rev-parse", "--short=12", "HEAD")
    (tmp_path / "results/ledger.json").write_text("written by a run", encoding="utf-8")
    assert environment.running_commit() == (commit, False)
    (tmp_path / "src/alexnet2012/__init__.py").write_text("other code", encoding="utf-8")
    assert environment.running_commit() == (commit, True)


def test_a_package_installed_inside_another_repository_reports_its_version(git: Git) -> None:
    name, changed = environment.running_commit()
    assert name.startswith("version ")
    assert not changed


def test_the_code_hash_covers_every_subpackage(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    package = tmp_path / "alexnet2012"
    shutil.copytree(environment.PACKAGE, package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(environment, "PACKAGE", package)
    before = environment.versions()["code"]
    one_of_each = {file.parent: file for file in sorted(package.rglob("*.py"))}
    del one_of_each[package]
    for file in one_of_each.values():
        text = file.read_text(encoding="utf-8")
        file.write_text(f"{text}# changed\n", encoding="utf-8")
        after = environment.versions()["code"]
        assert after != before, file
        before = after
