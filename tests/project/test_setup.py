"""What ``make setup`` installs."""

from __future__ import annotations

import subprocess
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest
from documented import printed

from alexnet2012.utils import environment

ROOT = Path(__file__).parents[2]


def set_up(tmp_path: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "-n", "setup", f"VENV={tmp_path}/none", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("words", "index", "dali"),
    [
        (["make", "setup"], "", "130"),
        (printed("make setup CUDA=12"), "whl/cu126", "120"),
        (printed("make setup CUDA=cpu"), "whl/cpu", "130"),
    ],
)
def test_set_up_installs_builds_for_cuda_12_or_without_cuda(
    words: list[str], index: str, dali: str, tmp_path: Path
) -> None:
    lines = set_up(tmp_path, *words[2:]).stdout.splitlines()
    (sed,) = (line for line in lines if line.startswith("sed"))
    (install,) = (line for line in lines if " -r " in line)
    edited = subprocess.run(["sh", "-c", sed.split(">")[0]], cwd=ROOT, capture_output=True)
    lock = (ROOT / "requirements.lock").read_text()
    assert edited.stdout.decode() == lock.replace("nvidia-dali-cuda130", f"nvidia-dali-cuda{dali}")
    assert ("download.pytorch.org" in install) == bool(index)
    assert index in install


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
