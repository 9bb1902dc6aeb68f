"""A model with values that are not finite is refused where it is loaded and where it answers."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from alexnet2012 import evaluate, export, features, nearest, predict, serve
from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.inference_schema import (
    ExportConfig,
    FeaturesConfig,
    NearestConfig,
    PredictConfig,
    ServeConfig,
)
from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.store import Store
from alexnet2012.inference.export import export as export_model
from alexnet2012.inference.features import digest
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.inference.web.server import ModelSession

CPU = Device.cpu
COMMANDS = {
    "predict": lambda net, store, image, out: predict.run(
        PredictConfig(net, image, json=True, device=CPU), out
    ),
    "evaluate": lambda net, store, image, out: evaluate.run(
        EvaluateConfig(net, store, views=1, device=CPU), out
    ),
    "features": lambda net, store, image, out: features.run(
        FeaturesConfig(net, image, str(out / "new.npy"), device=CPU), out
    ),
    "nearest": lambda net, store, image, out: nearest.run(
        NearestConfig(str(out / "features.npy"), image, net, device=CPU), out
    ),
    "serve": lambda net, store, image, out: serve.run(ServeConfig(net, port=0, device=CPU), out),
    "export": lambda net, store, image, out: export.run(
        ExportConfig(net, ExportFormat.safetensors, str(out / "new.safetensors")), out
    ),
}
Change = Callable[[str, Tensor], Tensor]


@pytest.fixture(scope="module")
def exported(net: TrainedModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("exported") / "net.safetensors"
    export_model(net, ExportFormat.safetensors, path)
    return path


@pytest.fixture
def run_with(
    exported: Path, photos_store: Store, photos_folder: Path, tmp_path: Path
) -> Callable[[str, Change], None]:
    """Runs a command with a file of the model whose tensors were changed."""
    path, image = tmp_path / "net.safetensors", str(photos_folder / "val" / "moon")

    def run(command: str, change: Change) -> None:
        with safe_open(exported, framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: change(name, file.get_tensor(name)) for name in file.keys()}  # noqa: SIM118
        save_file(tensors, path, metadata)
        if command == "nearest":  # its model must be the one that computed the features
            index = {"checkpoint": str(path), "files": ["a"], "net": _digest(path)}
            (tmp_path / "features.npy.json").write_text(json.dumps(index))
            np.save(tmp_path / "features.npy", np.zeros((1, 1), np.float32))
        COMMANDS[command](str(path), str(photos_store.root), image, tmp_path)

    return run


def _digest(path: Path) -> str:
    try:
        return digest(load_trained(path, CPU))
    except ConfigError:
        return ""


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "value"),
    [("conv3.weight", math.nan), ("fc8.bias", math.inf), ("mean_image", math.nan)],
)
def test_a_model_with_a_value_that_is_not_finite_is_not_loaded(
    command: str, name: str, value: float, run_with: Callable[[str, Change], None], tmp_path: Path
) -> None:
    def change(key: str, tensor: Tensor) -> Tensor:
        tensor.view(-1)[-1] = value if key == name else tensor.view(-1)[-1]
        return tensor

    label = "the mean image" if name == "mean_image" else name
    with pytest.raises(
        ConfigError, match=rf"net\.safetensors: {label} has values that are not fin"
    ):
        run_with(command, change)
    assert not list(tmp_path.glob("new*"))


def overflowing(name: str, tensor: Tensor) -> Tensor:
    """Weights that are finite, but whose products are not."""
    return (
        torch.full_like(tensor, 1e30) if name.startswith(("fc7.weight", "fc8.weight")) else tensor
    )


@pytest.mark.parametrize("command", ["predict", "evaluate", "features", "nearest", "export"])
def test_an_answer_that_is_not_finite_is_an_error(
    command: str, run_with: Callable[[str, Change], None], capsys: pytest.CaptureFixture[str]
) -> None:
    def change(name: str, tensor: Tensor) -> Tensor:
        return overflowing(name, tensor * 1e30 if name == "fc6.bias" else tensor)

    with pytest.raises(
        ConfigError, match=r"the (output|last hidden layer) has values that are not"
    ):
        run_with(command, change)
    assert capsys.readouterr().out == ""


def test_features_that_are_not_finite_are_refused(
    saved_run: Path, photos_folder: Path, tmp_path: Path
) -> None:
    index = {"checkpoint": str(saved_run), "files": ["a"], "net": ""}
    (tmp_path / "features.npy.json").write_text(json.dumps(index))
    np.save(tmp_path / "features.npy", np.full((1, 3), np.nan, np.float32))
    config = NearestConfig(str(tmp_path / "features.npy"), str(photos_folder), device=CPU)
    with pytest.raises(ConfigError, match=r"features\.npy: cannot be read \(some values are not"):
        nearest.run(config, tmp_path)


def test_the_page_gets_no_answer_that_is_not_finite(net: TrainedModel, photos_folder: Path) -> None:
    model = type(net.model)(net.model.recipe, 16, model=net.model.config).eval()
    model.load_full_state_dict(
        {name: overflowing(name, value) for name, value in net.model.full_state_dict().items()}
    )
    session = ModelSession(TrainedModel(model, net.classes, net.mean_image, None), views=1)
    with pytest.raises(ConfigError, match="the output has values that are not finite"):
        session.inspect((photos_folder / "val" / "moon" / "0000.jpg").read_bytes())
