"""The README and docs/commands.md: every command does what it says, and numbers are those of files.

Commands run in the order of the pages, in one folder and in this process; those that start
processes of their own are run by the tests that ask for their words (:func:`documented.printed`).
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
import shutil
import subprocess
import sys
from dataclasses import replace
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import nets
import pytest
import torch
from documented import COMMANDS, README, made_small, make, make_here, printed, shown
from fakes import fake_imagenette
from programs import REPOSITORY
from ranks import run_ranks
from test_use_page import answered_once

from alexnet2012.config.compose import compose_config
from alexnet2012.config.schema import EvaluateConfig, ModelConfig
from alexnet2012.config.validation import home
from alexnet2012.data.sources import photos
from alexnet2012.data.sources.download import REMOTE_FILES
from alexnet2012.inference.web.server import Server

# What makes a command one of seconds, by its module; trainings have made_small() besides.
SMALL = {
    "prepare": ["size=72", "workers=1"],
    "reproduce": ["parts=[audit]"],
    "evaluate": ["device=cpu"],
    "predict": ["device=cpu"],
    "serve": ["port=0"],  # the usual one may be somebody's
}
ONE_STEP = [
    *("data.store=STORE", "data.batch_size=16", "mesh=one_process"),
    *("schedule.epochs=1", "schedule.drops=[]"),
]
# RUN is trained by the page's own commands: in this place, and so that others can start from it.
RUN = {
    "data=store data.store=STORE": ["hydra.run.dir=RUN", "recipe=code146"],
    "recipe=code146 init_from=RUN …": ["hydra.run.dir=another"],
    "hydra.run.dir=RUN …": ["recipe=code146", "schedule.epochs=2"],
}


def run_elsewhere() -> set[str]:
    tests = Path(__file__).parents[1].rglob("test_*.py")
    texts = (file.read_text(encoding="utf-8") for file in tests)
    return {command for text in texts for command in re.findall(r'\bprinted\("(.+?)"\)', text)}


@pytest.fixture(scope="module")
def folder(photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the page takes for granted: this repository's files, a picture, a folder of them."""
    folder = tmp_path_factory.mktemp("the README")
    for name in ("conf", "results"):
        (folder / name).symlink_to(REPOSITORY / name)
    shutil.copy(photos_folder / "val" / "chelsea" / "0001.jpg", folder / "cat.jpg")
    (folder / "FILE").write_bytes(nets.onnx_file(nets.torchvision_nodes()))
    for file in photos_folder.glob("*/*/0000.jpg"):
        place = folder / "SOURCE" / file.relative_to(photos_folder)
        place.parent.mkdir(parents=True)
        shutil.copy(file, place)
    return folder


def imagenette_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small archive where the download would lie."""
    file = home() / "downloads" / "imagenette2-320.tgz"
    file.parent.mkdir(parents=True, exist_ok=True)
    fake_imagenette(file, train_per_class=1, val_per_class=1)
    digest = hashlib.md5(file.read_bytes()).hexdigest()
    published = replace(REMOTE_FILES["imagenette"], digest=digest)
    monkeypatch.setitem(REMOTE_FILES, "imagenette", published)


def what_make_runs(words: list[str]) -> list[str]:
    # As if they were: nothing is set up here.
    ready = ["-o", ".venv/ready", "-o", ".venv/ready-dev"]
    python, *found = shlex.split(make([*words, "-n", *ready]))
    assert python == ".venv/bin/python"
    return ["python", *found]


def test_every_command_works_as_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr(Server, "serve_forever", answered_once)
    few = partial(photos.make_photos, train_per_class=1, val_per_class=1)
    monkeypatch.setattr(photos, "make_photos", few)
    imagenette_by_hand(monkeypatch)
    elsewhere = run_elsewhere()
    for command in shown():
        if command in elsewhere:
            continue
        words = shlex.split(command)
        if words[0] == "diff":
            assert subprocess.run(words, stdout=subprocess.PIPE).returncode == 1
            continue
        if words[:2] == ["make", "setup"]:
            setup = command.partition(" && ")[0]
            assert "pip install" in make([*shlex.split(setup), "-n", f"VENV={folder}/none"])
            continue
        if words[0] == "make":
            words = what_make_runs(words)
        python, flag, module, *words = words
        assert (python, flag) == ("python", "-m"), command
        name = module.removeprefix("alexnet2012.")
        if name == "train":
            more = RUN.get(" ".join(words), [])
            words = made_small([word for word in words if word != "…"], *more, *ONE_STEP)
        if "RUN_A" in command and not Path("RUN_A").exists():
            for copy in ("RUN_A", "RUN_B"):
                shutil.copytree("RUN", copy)
        monkeypatch.setattr(sys, "argv", [name, *words, *SMALL.get(name, [])])
        module += ".command" if name == "ledger" else ""  # a package
        import_module(module).main()
        out, err = capsys.readouterr()
        assert err == "" or name in ("evaluate", "plan", "doctor"), command  # what is under way
        assert out, command
    assert json.loads(Path("RUN", "summary.json").read_text())["epochs"] == 2
    swept = [file.parent for file in Path("runs").glob("*/*-sweep/*/summary.json")]
    assert len(swept) == 2 * 3
    # What a sweep made can be named on a command line as it is.
    one, other = swept[:2]
    compose_config("evaluate", EvaluateConfig, [f"checkpoint=[{one},{other}]"])
    assert Path("net.onnx").is_file()


def test_make_test_runs_the_tests() -> None:
    """All but the tests themselves, of which this is one."""
    assert "pytest" in make_here(printed("make test"), "--version")


def python_of(page: Path) -> str:
    (block,) = re.findall(r"```python\n(.*?)```", page.read_text(encoding="utf-8"), re.DOTALL)
    return str(block)


def test_the_python_of_the_commands_works_under_torchrun() -> None:
    assert run_ranks(2, on_a_rank, python_of(COMMANDS)) == [[1, 1000]] * 2


def test_the_python_of_the_readme_classifies_a_picture(
    saved_run: Path, photos_folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    Path("first").symlink_to(saved_run)
    shutil.copy(photos_folder / "val" / "coffee" / "0001.jpg", "cup.jpg")
    exec(python_of(README), {})
    assert re.fullmatch(r"\d+\.\d% [a-z]+: class \d+ of 16\n", capsys.readouterr().out)


def on_a_rank(block: str) -> list[int]:
    """A narrow net, or it would take half a minute; pictures as large as the paper's."""
    found: dict[str, Any] = {
        "images": torch.zeros(1, 3, 224, 224),
        "model": ModelConfig(width=1 / 24),
    }
    exec(block.replace("num_classes=1000", "num_classes=1000, model=model"), found)
    shape: list[int] = list(found["logits"].shape)
    return shape


def test_the_readme_is_short() -> None:
    assert len(README.read_text(encoding="utf-8").splitlines()) <= 110


def test_a_step_is_as_fast_as_the_page_says() -> None:
    result = REPOSITORY / "benchmarks" / "results" / "full_step.json"
    rows = {r["arm"]: r for r in json.loads(result.read_text(encoding="utf-8"))["rows"]}
    fp32, bf16 = (rows[f"ours, 2 processes, {precision}"] for precision in ("fp32", "bf16"))
    page = REPOSITORY / "docs" / "speed.md"
    words = " ".join(page.read_text(encoding="utf-8").split())
    for peer in ("compiled PyTorch", "plain PyTorch"):
        if f"{peer}, 1 process, fp32" in rows:  # not in results from before it was a peer
            ratio, ratio_bf16 = (
                ours["images_per_s"] / rows[f"{peer}, 1 process, {precision}"]["images_per_s"]
                for ours, precision in ((fp32, "fp32"), (bf16, "bf16"))
            )
            assert f"at {ratio:.1f} times the images/s of {peer}" in words
            assert f"at {ratio_bf16:.1f} times in bf16" in words
    fp32_pct, bf16_pct = fp32["of_limit_pct"], bf16["of_limit_pct"]
    assert f"{fp32_pct:.0f}% (float32) and {bf16_pct:.0f}% (bf16) of the rate" in words
