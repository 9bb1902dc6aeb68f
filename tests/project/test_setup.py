"""What ``make setup`` installs."""

from __future__ import annotations

import subprocess
from configparser import ConfigParser
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from documented import printed
from packaging.requirements import Requirement

from alexnet2012.utils import environment

ROOT = Path(__file__).parents[2]
LOCK, LOCK_12 = "requirements.lock", "requirements-cuda12.lock"


def pinned(text: str) -> dict[str, str]:
    """Versions by the names of packages, as indexes compare names."""
    pairs = (line.split("==") for line in text.splitlines() if not line.startswith("#"))
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def set_up(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", "setup", f"VENV={tmp_path}/none", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "index", "lock"),
    [
        (["make", "setup", "DRIVER=yes"], "", LOCK),
        (["make", "setup", "DRIVER="], "whl/cpu", LOCK),
        (printed("make setup CUDA=12"), "whl/cu126", LOCK_12),
        (printed("make setup CUDA=cpu"), "whl/cpu", LOCK),
    ],
)
def test_set_up_installs_builds_for_this_machine_or_the_cuda_that_is_named(
    words: list[str], index: str, lock: str, tmp_path: Path
) -> None:
    lines = set_up(tmp_path, *words[2:]).stdout.splitlines()
    (sed,) = (line for line in lines if line.startswith("sed"))
    (install,) = (line for line in lines if " -r " in line)
    needed = subprocess.run(["sh", "-c", sed.split(">")[0]], cwd=ROOT, capture_output=True)
    assert needed.stdout.decode() == (ROOT / lock).read_text().split("# Development\n")[0]
    assert ("download.pytorch.org" in install) == bool(index)
    assert index in install


@pytest.mark.parametrize(("cuda", "index"), [("cpu", "cpu"), ("12", "cu126")])
def test_an_index_that_does_not_answer_is_named_and_not_asked_for_each_package(
    cuda: str, index: str, tmp_path: Path
) -> None:
    nowhere = "http://127.0.0.1:9/whl"
    lines = set_up(tmp_path, f"CUDA={cuda}", f"TORCH={nowhere}").stdout.splitlines()
    (install,) = (line for line in lines if " -r " in line)
    command = f"echo {install[install.index('$(') : install.index(' -r ')]}"
    asked = subprocess.run(["sh", "-c", command], capture_output=True, text=True)
    assert asked.stdout.strip() == ""
    assert f"{nowhere}/{index} does not answer" in asked.stderr


@pytest.mark.parametrize("lock", [LOCK, LOCK_12])
def test_a_lock_satisfies_the_bounds_of_setup_cfg(lock: str) -> None:
    pins = pinned((ROOT / lock).read_text())
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg")
    needed = declared["options"]["install_requires"]
    if lock == LOCK:
        needed += declared["options.extras_require"]["dev"]
    else:
        needed = needed.replace("cuda130", "cuda120")
    for requirement in map(Requirement, needed.split()):
        assert pins[requirement.name] in requirement.specifier, requirement


def test_the_locks_differ_only_in_dali_and_its_codecs() -> None:
    needed, _ = (ROOT / LOCK).read_text().split("# Development\n")
    cuda_13, cuda_12 = pinned(needed), pinned((ROOT / LOCK_12).read_text())
    differing = dict(cuda_13.items() ^ cuda_12.items())
    assert differing and all(name.startswith("nvidia-") for name in differing)
    assert cuda_13["nvidia-dali-cuda130"] == cuda_12["nvidia-dali-cuda120"]
    assert not [name for name in cuda_12 if name.endswith(("-cu13", "-cuda130"))]


def test_what_only_development_needs_is_installed_for_tests_only(tmp_path: Path) -> None:
    _, development = (ROOT / "requirements.lock").read_text().split("# Development\n")
    assert {"pytest", "ruff", "mypy", "triton", "playwright", "mkdocs-material"} <= {
        line.split("==")[0] for line in development.splitlines()
    }
    command = ["make", "-n", "test", f"VENV={tmp_path}/none"]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.splitlines()
    (sed,) = (line for line in lines if line.startswith("sed '1,"))
    edited = subprocess.run(["sh", "-c", sed.split(">")[0]], cwd=ROOT, capture_output=True)
    assert edited.stdout.decode() == development
    assert "requirements-dev" not in set_up(tmp_path).stdout


def test_another_version_of_cuda_is_refused(tmp_path: Path) -> None:
    ended = set_up(tmp_path, "CUDA=11")
    assert ended.returncode == 2
    assert "CUDA=11: must be 12, 13 or cpu" in ended.stderr


def test_the_choice_is_remembered_and_an_environment_variable_is_not_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA", "/usr/local/cuda")  # as environment modules set it
    assert "cu126" not in set_up(tmp_path).stdout
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "cuda").write_text("12\n")
    assert "cu126" in set_up(tmp_path).stdout


def test_the_code_finds_dali_for_cuda_12(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environment.dali_package() == "nvidia-dali-cuda130"

    def version(name: str) -> str:
        if name == "nvidia-dali-cuda130":
            raise PackageNotFoundError(name)
        return "1"

    monkeypatch.setattr(environment, "version", version)
    assert environment.versions()["nvidia-dali-cuda120"] == "1"
