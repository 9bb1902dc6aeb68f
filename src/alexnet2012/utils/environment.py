"""What a number was measured with: the commit that ran, and the processor."""

from __future__ import annotations

import hashlib
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

PACKAGE = Path(__file__).parents[1]


def running_commit() -> tuple[str, bool]:
    """The commit of the checkout that runs, and whether what runs has changes since.

    Outside a checkout the version: also where a virtual environment lies in somebody else's.
    Results and documents are no changes, nor are files that git does not know.
    """

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", "-C", str(PACKAGE), *words], check=True, capture_output=True, text=True
        ).stdout.strip()

    try:
        git("ls-files", "--error-unmatch", str(PACKAGE / "__init__.py"))
        what_runs = ("src", "conf", "benchmarks/*.py", "setup.cfg", "requirements.lock")
        changes = git("status", "--porcelain", "-uno", "--", *(f":/{path}" for path in what_runs))
        return git("rev-parse", "--short=12", "HEAD"), bool(changes)
    except (OSError, subprocess.CalledProcessError):
        return f"version {version('alexnet2012')}", False


def versions() -> dict[str, str]:
    """What has to be the same on every rank: libraries, and the code itself, committed or not."""
    code = hashlib.sha256()
    for file in sorted(PACKAGE.rglob("*.py")):
        code.update(file.read_bytes())
    libraries = ("torch", "numpy", "nvidia-dali-cuda130")
    return {
        "python": platform.python_version(),
        **{name: version(name) for name in libraries},
        "code": code.hexdigest()[:12],
    }


def cpu_name() -> str:
    """The processor's name; its architecture where the system does not tell."""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.is_file():
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
