"""What a release is made of: workflows, the container, the wheel's sources."""

from __future__ import annotations

import re
import subprocess
from configparser import ConfigParser
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
CONTAINERFILE = (ROOT / "Containerfile").read_text(encoding="utf-8")


def targets() -> set[str]:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    return set(re.findall(r"^([a-z][a-z-]*):(?!=)", text, re.MULTILINE))


def steps(workflow: Path) -> list[dict[str, Any]]:
    jobs = yaml.safe_load(workflow.read_text(encoding="utf-8"))["jobs"].values()
    return [step for job in jobs for step in job["steps"]]


@pytest.mark.parametrize("workflow", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_calls_targets_of_make_pins_actions_and_may_only_read(workflow: Path) -> None:
    called = [word for step in steps(workflow) for word in _made(step.get("run", ""))]
    assert called
    assert set(called) <= targets()
    settings = yaml.safe_load(workflow.read_text(encoding="utf-8"))
    assert settings["permissions"] == {"contents": "read"}
    for step in steps(workflow):  # tags can be moved
        assert "run" in step or re.fullmatch(r"[\w-]+/[\w-]+@[0-9a-f]{40}", step["uses"])
        if step.get("uses", "").startswith("actions/checkout@"):
            assert step["with"]["persist-credentials"] is False


def test_workflows_run_what_a_change_must_pass() -> None:
    runs = [step.get("run", "") for step in steps(ROOT / ".github" / "workflows" / "tests.yml")]
    assert {"lint", "test", "reproduce"} <= {word for run in runs for word in _made(run)}
    pythons = yaml.safe_load(WORKFLOWS[1].read_text(encoding="utf-8"))
    assert pythons["jobs"]["test"]["strategy"]["matrix"]["python"] == ["3.11", "3.12", "3.13"]


def _made(run: str) -> list[str]:
    return re.findall(r"\bmake ([a-z-]+)", run)


def test_the_container_copies_what_set_up_needs_and_runs_as_a_user() -> None:
    copied = [
        name
        for line in re.findall(r"^COPY .*", CONTAINERFILE, re.MULTILINE)
        for name in line.split()[2:-1]
    ]
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (needed,) = re.findall(r"^\$\(VENV\)/ready: (.*)", makefile, re.MULTILINE)
    files = re.findall(r"(?<!\S)[\w.-]+(?!\S)", needed)
    package = {"Makefile", "README.md", "LICENSE", "src", "conf"}
    assert set(copied) == {*files, *package}
    kept = (ROOT / ".containerignore").read_text(encoding="utf-8").splitlines()
    for name in copied:
        assert (ROOT / name).exists() and f"!{name}" in kept, name
    assert re.search(r"^RUN make setup CUDA=\$\{CUDA\}", CONTAINERFILE, re.MULTILINE)
    user, entry = CONTAINERFILE.index("\nUSER alexnet2012"), CONTAINERFILE.index("\nENTRYPOINT")
    assert user < CONTAINERFILE.index("\nRUN make setup") < entry


def test_the_newcomers_script_names_a_wheel_that_is_not_there(tmp_path: Path) -> None:
    script = ROOT / "tests" / "newcomer.sh"
    command = [str(script), str(tmp_path / "none.whl"), str(tmp_path / "none.txt")]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert ended.returncode == 2
    assert ended.stderr == f"{tmp_path}/none.whl: no such wheel\n"


def test_the_version_is_the_same_in_every_file() -> None:
    declared = ConfigParser()
    declared.read(ROOT / "setup.cfg")
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.M)
    assert newest and newest[1] == citation["version"] == declared["metadata"]["version"]
