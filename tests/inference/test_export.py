"""Exported files reproduce the logits of the model, and carry the metadata to use them.

Tolerance: 1e-5 of the largest logit, float32 sums in another order.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.inference_schema import ExportConfig
from alexnet2012.config.schema import ConfigError, EvaluateConfig, ModelConfig, RunError
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Store
from alexnet2012.export import run as export_run
from alexnet2012.inference.evaluate import evaluate_checkpoints
from alexnet2012.inference.export import export
from alexnet2012.inference.onnx_graph import _Graph
from alexnet2012.inference.trained_model import TrainedModel, load_trained
from alexnet2012.nn.alexnet import AlexNet

RELATIVE = 1e-5


def preprocessed(net: TrainedModel, store: Store) -> tuple[Tensor, Tensor]:
    """Validation images as training preprocesses them [N, 3, S, S], and the same plus the mean."""
    size, margin = net.model.config.input_size, store.size - net.model.config.input_size
    loader = EvalLoader(
        store, store.split("val", 1), net.model.recipe.augment,
        input_size=size, views=1, batch_size=16,
    )  # fmt: skip
    images = torch.cat([batch.images[:, 0] for batch in loader.batches()])
    y = margin // 2
    mean = torch.from_numpy(store.mean_image[y : y + size, y : y + size]).permute(2, 0, 1)
    return images, (images + mean).round()


def close(actual: Tensor, expected: Tensor) -> bool:
    return float((actual - expected).abs().max() / expected.abs().max()) < RELATIVE


@pytest.fixture(scope="module")
def logits(net: TrainedModel, photos_store: Store) -> Tensor:
    with torch.no_grad():
        return net.model(preprocessed(net, photos_store)[0])


def test_safetensors_holds_public_names_and_can_be_loaded(
    net: TrainedModel, saved_run: Path, photos_store: Store, logits: Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "a folder" / "net.safetensors"
    export_run(ExportConfig(str(saved_run), ExportFormat.safetensors, str(out)), tmp_path)
    (tmp_path / "any file").touch()
    assert out.stat().st_mode == (tmp_path / "any file").stat().st_mode  # the usual permissions
    with safe_open(out, framework="pt") as file:
        names = set(file.keys())
        note = json.loads(file.metadata()["alexnet2012"])
        assert torch.equal(
            file.get_tensor("conv2.weight"), net.model.get_parameter("conv2.weight").contiguous()
        )
    assert names == {*net.model.full_shapes(), "mean_image"}
    assert note["recipe"]["name"] == "code145"
    assert tuple(note["classes"]) == photos_store.classes
    assert str(photos_store.root) not in json.dumps(note)  # no paths of this machine
    loaded = load_trained(out, Device.cpu)
    with torch.no_grad():
        assert torch.equal(loaded.model(preprocessed(net, photos_store)[0]), logits)
    assert np.array_equal(loaded.mean_image, photos_store.mean_image)
    of_the_file = evaluate_checkpoints(
        EvaluateConfig(str(out), str(photos_store.root), views=1, device=Device.cpu)
    )
    of_the_run = evaluate_checkpoints(EvaluateConfig(str(saved_run), views=1, device=Device.cpu))
    assert of_the_file == of_the_run
    with pytest.raises(ConfigError, match="does not record its training data; set store="):
        evaluate_checkpoints(EvaluateConfig(str(out), device=Device.cpu))


def test_onnx_takes_pixels_and_gives_the_logits_for_any_batch_size(
    net: TrainedModel, photos_store: Store, logits: Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "net.onnx"
    export(net, ExportFormat.onnx, out)
    session = onnxruntime.InferenceSession(out, providers=["CPUExecutionProvider"])
    pixels = preprocessed(net, photos_store)[1].numpy()
    for count in (1, 16):
        (outputs,) = session.run(["logits"], {"images": pixels[:count]})
        assert close(torch.from_numpy(outputs), logits[:count])
    note = json.loads(session.get_modelmeta().custom_metadata_map["alexnet2012"])
    assert tuple(note["classes"]) == photos_store.classes
    graph = onnx.load(out).graph
    assert {*net.model.full_shapes(), "mean_image"} <= {tensor.name for tensor in graph.initializer}
    assert sum(node.op_type == "LRN" for node in graph.node) == 4  # two layers of two towers


@pytest.mark.parametrize(
    ("recipe", "change"),
    [
        ("paper", ""),
        ("paper", "tanh"),
        ("code146", ""),
        ("code146_2011", ""),
        ("cifar4", ""),
        ("paper", "no crosslinks"),
        ("paper", "across towers"),
        ("paper", "float64"),
        ("paper", "bf16"),
    ],
)
def test_every_recipe_and_precision_exports_to_an_equivalent_graph(
    recipe: str, change: str, tmp_path: Path
) -> None:
    size = 32 if recipe == "cifar4" else 64
    config = ModelConfig(width=1.0 if recipe == "cifar4" else 0.04, input_size=size)
    if change == "tanh":
        config.activation = type(config.activation).tanh
    changed = AlexNet(recipe, 5, model=config).recipe
    if change == "no crosslinks":
        for layer in (*changed.convs.values(), *changed.hidden.values()):
            layer.reads_both_towers = False
    changed.lrn_across_towers = change == "across towers"
    changed.lrn.alpha = 1.0  # the usual value has little effect in a model this small
    mean = np.random.default_rng(0).uniform(90, 130, (size + 8, size + 8, 3)).astype(np.float32)
    precision = {"float64": "fp64", "bf16": "bf16"}.get(change, "fp32")
    model = AlexNet(changed, 5, model=config, precision=precision).eval()
    net = TrainedModel(model, tuple("abcde"), mean, None)
    assert export(net, ExportFormat.onnx, tmp_path / "net.onnx") < RELATIVE


def test_torch_export_takes_pixels_and_gives_the_logits(
    net: TrainedModel, photos_store: Store, logits: Tensor, tmp_path: Path
) -> None:
    out = tmp_path / "net.pt2"
    export(net, ExportFormat.torch, out)
    extra = {"alexnet2012.json": ""}
    graph = torch.export.load(out, extra_files=extra).module()
    pixels = preprocessed(net, photos_store)[1]
    for count in (1, 16):
        assert close(graph(pixels[:count]).detach(), logits[:count])
    assert tuple(json.loads(extra["alexnet2012.json"])["classes"]) == photos_store.classes


def test_a_file_with_different_logits_is_not_written(
    net: TrainedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_Graph, "_local_response_norm", lambda graph, x, norm: x)
    out = tmp_path / "net.onnx"
    out.write_text("existing content")
    with pytest.raises(RunError, match="its logits differ"):
        export(net, ExportFormat.onnx, out)
    assert [path.name for path in tmp_path.iterdir()] == ["net.onnx"]
    assert out.read_text() == "existing content"


@pytest.mark.parametrize("damage", ["cut", "text", "foreign", "classes"])
def test_a_file_that_is_not_an_exported_model_is_refused(
    damage: str, net: TrainedModel, tmp_path: Path
) -> None:
    out = tmp_path / "net.safetensors"
    export(net, ExportFormat.safetensors, out)
    data = out.read_bytes()
    if damage == "cut":
        out.write_bytes(data[:-100])
    elif damage == "text":
        out.write_text("a text")
    elif damage == "foreign":
        out.write_bytes(data.replace(b'"alexnet2012"', b'"alexnet2013"'))
    else:
        out.write_bytes(data.replace(b'\\"brick\\", ', b"           "))
    assert out.read_bytes() != data
    with pytest.raises(
        ConfigError,
        match=r"checkpoint=.*net\.safetensors: is not a safetensors file",
    ):
        load_trained(out)
