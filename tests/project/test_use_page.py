"""Runs every command of docs/use.md, in the order of the page and in one folder."""

from __future__ import annotations

import re
import shlex
import shutil
import sys
import threading
from http.server import ThreadingHTTPServer
from importlib import import_module
from pathlib import Path
from typing import Any

import caffe
import numpy as np
import pytest
import requests
import torch
from test_importers import torchvision_alexnet

from alexnet2012.config.schema import PrepareConfig
from alexnet2012.data.preparation.prepare import prepare
from alexnet2012.inference.web.server import Server

PAGE = Path(__file__).parents[2] / "docs" / "use.md"


@pytest.fixture(scope="module")
def folder(saved_run: Path, photos_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files that the page assumes: runs, images, a store, and two model files to import."""
    folder = tmp_path_factory.mktemp("the page")
    for name in ("RUN", "RUN_B"):
        shutil.copytree(saved_run, folder / name)
    shutil.copytree(photos_folder / "val" / "chelsea", folder / "a folder" / "cats")
    shutil.copy(photos_folder / "val" / "chelsea" / "0001.jpg", folder / "cat.jpg")
    rng = np.random.default_rng(0)
    layers = caffe.alexnet_layers(rng, classes=16)
    (folder / "bvlc_alexnet.caffemodel").write_bytes(caffe.caffemodel(layers, old=True))
    mean = rng.uniform(90, 130, (3, 256, 256)).astype(np.float32)
    (folder / "imagenet_mean.binaryproto").write_bytes(caffe.binaryproto(mean))
    theirs = torchvision_alexnet((6, 10, 8, 7, 5), 12, 9)
    torch.save(theirs.state_dict(), folder / "alexnet-owt-7be5be79.pth")
    source = folder / "source"
    for split in ("train", "val"):
        for name in sorted(path.name for path in (photos_folder / split).iterdir()):
            (source / split / name).mkdir(parents=True)
            shutil.copy(photos_folder / split / name / "0000.jpg", source / split / name)
    store = prepare(PrepareConfig(str(source), str(folder / "STORE"), workers=1), progress=False)
    (folder / "synsets.txt").write_text("\n".join(store.classes) + "\n")
    return folder


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


def answered_once(server: Server) -> None:
    """Request the page once, then interrupt the server as Ctrl-C does."""
    worker = threading.Thread(target=ThreadingHTTPServer.serve_forever, args=(server,))
    worker.start()
    assert "Drop an image here" in requests.get(server.address, timeout=30).text
    server.shutdown()
    worker.join()
    raise KeyboardInterrupt


def test_every_command_of_the_page_works_as_printed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    commands = [line for block in blocks("sh") for line in block.splitlines()]
    assert len(commands) == 20
    monkeypatch.setattr(Server, "serve_forever", answered_once)
    outputs = {}
    for command in commands:
        python, flag, name, *words = shlex.split(command)
        assert (python, flag) == ("python", "-m")
        if name == "alexnet2012.serve":  # the port may be in use
            words = [word for word in words if not word.startswith("port=")] + ["port=0"]
        monkeypatch.setattr(sys, "argv", [name, *words])
        import_module(name).main()
        out, err = capsys.readouterr()
        assert (err == "") == (name != "alexnet2012.evaluate"), command
        assert out, command
        outputs[command] = out
    for file in (
        "images.csv",
        "classes.csv",
        "confusion.csv",
        "sheet.html",
        "net.safetensors",
        "net.onnx",
        "net.pt2",
        "alexnet.pth",
        "features.npy.json",
    ):
        assert (folder / file).is_file()
    (neighbours,) = (out for command, out in outputs.items() if command.endswith("npy cat.jpg"))
    # The folder contains a copy of the image.
    assert neighbours.splitlines()[1].split(maxsplit=1) == ["0.00", "a folder/cats/0001.jpg"]

    of_model: dict[str, Any] = {}
    of_file: dict[str, Any] = {}
    for example, names in zip(blocks("python"), (of_model, of_file), strict=True):
        exec(example, names)
    printed = capsys.readouterr().out.splitlines()
    (predicted,) = (out for command, out in outputs.items() if command.endswith('"a folder"'))
    assert len(printed) == 6 and all(line.split()[1] in predicted for line in printed[:5])
    logits = of_model["logits"].detach().numpy()
    assert abs(of_file["logits"] - logits).max() < 0.02 * abs(logits).max()  # JPEG's rounding
    assert printed[5] == of_model["trained"].classes[logits[0].argmax()]
