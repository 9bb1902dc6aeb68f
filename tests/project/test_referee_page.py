"""Every command of docs/referee.md, run in the order of the page, and the output that it prints."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import caffe
import nets
import pytest
import torch
from definitions import written
from documented import lines

from alexnet2012.cli.errors import exit_on_error
from alexnet2012.config.validation import load_recipe
from alexnet2012.referee import _run as run
from alexnet2012.referee import main

PAGE = Path(__file__).parents[2] / "docs" / "referee.md"


@pytest.fixture(scope="module")
def folder(saved_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page assumes."""
    folder = tmp_path_factory.mktemp("the page")
    (folder / "alexnet.onnx").write_bytes(nets.onnx_file(nets.torchvision_nodes()))
    torch.save(nets.state_dict(), folder / "alexnet.pth")
    layers = nets.caffe_layers()
    (folder / "bvlc_alexnet.caffemodel").write_bytes(caffe.caffemodel(layers, old=True))
    (folder / "train_val.prototxt").write_text(nets.prototxt(layers))
    definition = written(load_recipe("code145"), folder)
    for file, name in zip(definition, ("layers-147.cfg", "layer-params-147.cfg"), strict=True):
        file.rename(folder / name)
    shutil.copytree(saved_run, folder / "RUN")
    (folder / "REPRODUCTION").mkdir()
    measured = {"value": "no_lighting: +1.50", "n_seeds": 1}
    row = {"id": "lighting", "verdict": "inconclusive", "measured": measured}
    (folder / "REPRODUCTION" / "ledger.json").write_text(json.dumps({"rows": [row]}))
    return folder


def printed(command: str, capsys: pytest.CaptureFixture[str], patch: pytest.MonkeyPatch) -> str:
    python, flag, name, *words = shlex.split(command)
    assert (python, flag, name) == ("python", "-m", "alexnet2012.referee")
    patch.setattr(sys, "argv", [name, *words])
    main()
    out, err = capsys.readouterr()
    assert err == ""
    return out


def test_every_command_of_the_page_works_as_printed(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    outputs = [printed(command, capsys, monkeypatch) for command in lines(PAGE)]
    first, state, model, definition, content = outputs
    (block,) = re.findall(r"```text\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert first == block, f"docs/referee.md: {first}"
    assert "Not in the file: input size, pixels, mean, dropout, stride, border" in state
    assert "an ONNX export holds the operations, too" in state
    assert "conv1, conv2 LRN k: 1; the paper and #145: 2\n    costs: not measured\n" in model
    assert "\nNo difference from #145, as far as the file tells\n" in definition
    found = json.loads(content)
    assert found["format"] == "a model of this package, of recipe code145"
    assert {row["item"] for row in found["differences"]} >= {"width", "classes"}
    assert found["not_in_file"] == []
    assert [row["layer"] for row in found["parameters"]][-1] == "fc8"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ([], "arguments=: the following arguments are required: NET"),
        (["nothing.onnx"], "NET=nothing.onnx: no such file or folder"),
        (["RUN", "--ledger", "RUN"], "--ledger=RUN: contains no ledger.json; `make reproduce`"),
        (["alexnet.onnx", "--prototxt", "train_val.prototxt"], "--prototxt=train_val.prototxt: "),
        (["REPRODUCTION"], "NET=REPRODUCTION: contains no checkpoint"),
        (["alexnet.pth", "--entry", "ema"], "NET=alexnet.pth: entry=ema is not one of its entrie"),
        (["alexnet.onnx", "--ledger", "DAMAGED"], "--ledger=DAMAGED: is damaged (KeyError"),
        (["DAMAGED/ledger.json"], "NET=DAMAGED/ledger.json: is a JSON text, not a model"),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str],
    line: str,
    folder: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(folder)
    (folder / "DAMAGED").mkdir(exist_ok=True)
    (folder / "DAMAGED" / "ledger.json").write_text('{"rows": [{}]}')
    monkeypatch.setattr(sys, "argv", ["alexnet2012 referee", *words])
    with pytest.raises(SystemExit) as ended:
        exit_on_error(lambda: run(words))
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert err.startswith(f"alexnet2012: {line}"), err
