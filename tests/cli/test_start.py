"""The start of a command: what it imports for help or a mistake, and what a failed start leaves."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from programs import TINY, module, run

from alexnet2012.checkpoint.run_dir import lock_run_dir, remove_unused
from alexnet2012.cli.registry import COMMANDS

# Each command in a fork of one process that has imported what all commands import anyway.
STARTS = """
import contextlib, io, json, os, sys, tempfile
from alexnet2012.cli import app
from alexnet2012.cli.registry import COMMANDS

os.chdir(tempfile.mkdtemp())
for name in COMMANDS:
    for word in ("--help", "seeed=1", "--lr"):
        sys.stdout.flush()
        if os.fork():
            os.wait()
            continue
        sys.argv = [f"alexnet2012 {name}", word]
        code, said = 0, io.StringIO()
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(said):
            try:
                COMMANDS[name].main()
            except SystemExit as ended:
                code = ended.code
        slow = sorted({"torch", "nvidia", "scipy", "matplotlib"} & set(sys.modules))
        print(json.dumps([name, word, code, said.getvalue(), slow, os.listdir()]))
        sys.stdout.flush()
        os._exit(0)
"""


def test_help_and_mistakes_need_neither_torch_nor_dali() -> None:
    command = [sys.executable, "-c", STARTS]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    rows = [json.loads(line) for line in ended.stdout.splitlines()]
    assert len(rows) == 3 * len(COMMANDS)
    for name, word, code, said, slow, files in rows:
        assert (name, word, slow) == (name, word, [])
        assert (name, word, files) == (name, word, [])
        expected = (0, 0) if word == "--help" else (2, 1)
        assert (name, word, code, said.count("\n")) == (name, word, *expected), said


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["seed=-1"], "seed=-1: must be at least 0"),
        (["data.store=nowhere"], "nowhere: no store found"),
        (
            ["data.store=x", "init_from=frist"],
            "init_from=frist: does not exist; `alexnet2012 runs` lists",
        ),
        (["data.store=x", "resume=frist"], "resume=frist: does not exist"),
        (["-m", "seed=-1,-2"], "seed=-1: must be at least 0"),
        (["-m", "ablation=none,no_lnr"], "ablation=no_lnr: no such ablation"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_failed_start_leaves_no_folder(words: list[str], said: str, tmp_path: Path) -> None:
    flags = [word for word in words if word == "-m"]
    ended = run(module("train", *flags, *TINY, "mesh=one_process", *words[len(flags) :]), tmp_path)
    assert (ended.code, ended.left) == (2, [])
    (line,) = (line for line in ended.err.splitlines() if line.startswith("alexnet2012: "))
    assert said in line
    assert list(tmp_path.iterdir()) == []


def test_only_a_directory_without_a_run_is_removed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    unused, used, locked = (tmp_path / "runs" / "today" / name for name in ("a", "b", "c"))
    for folder in (unused, used, locked):
        (folder / ".hydra").mkdir(parents=True)
        lock_run_dir(folder).close()
    (used / "config.yaml").write_text("")
    with lock_run_dir(locked):  # another run is about to begin there
        for folder in (unused, used, locked):
            remove_unused(folder)
    assert sorted(path.name for path in unused.parent.iterdir()) == ["b", "c"]
    assert (used / ".hydra").is_dir()
    (used / "config.yaml").unlink()
    for folder in (used, locked):
        remove_unused(folder)
    assert list(tmp_path.iterdir()) == []
    remove_unused(tmp_path / "never made")
    (tmp_path / ".hydra").mkdir()
    remove_unused(tmp_path)  # where the command was given
    assert tmp_path.is_dir()
