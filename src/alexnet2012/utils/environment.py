"""Provenance of measurements: commit, library versions and CPU."""

from __future__ import annotations

import hashlib
import platform
import re
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def running_commit() -> tuple[str, bool]:
    """The commit of the running checkout, or the package version; whether code is uncommitted.

    A package installed inside another project's repository has no checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(PACKAGE), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py"))
        code = ("src", "conf", "benchmarks/*.py", "setup.cfg", "requirements*.lock")
        changes = git("status", "--porcelain", "-uno", "--", *(f":/{path}" for path in code))
        return git("rev-parse", "--short=12", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('alexnet2012')}", False


def versions() -> dict[str, str]:
    """Versions that must match on all ranks: Python, libraries, and a hash of the code itself."""
    code = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        code.update(file.read_bytes())
    libraries = {name: version(name) for name in ("torch", "numpy", dali_package())}
    return {"python": platform.python_version(), **libraries, "code": code.hexdigest()[:12]}


def dali_package() -> str:
    """The installed package of DALI: that of CUDA 13, unless only that of CUDA 12 is there."""
    cuda_13, cuda_12 = "nvidia-dali-cuda130", "nvidia-dali-cuda120"
    try:
        version(cuda_13)
    except PackageNotFoundError:
        return cuda_12
    return cuda_13


def cpu_name() -> str:
    """Model name of the CPU, or its architecture if unknown."""
    cpuinfo = Path("/proc/cpuinfo")
    text = cpuinfo.read_text(encoding="utf-8") if cpuinfo.is_file() else ""
    name = re.search(r"^model name.*?:(.*)", text, re.MULTILINE)
    return name[1].strip() if name else platform.processor() or platform.machine()
