"""Export a trained model as one file: safetensors, ONNX, ``torch.export``, torchvision's names.

Every file is read back before it gets its name, and its logits are compared with the model's.

Shapes: N images, K classes, P pixels a side of a stored image, S pixels a side of the input.
"""

from __future__ import annotations

import copy
import io
import os
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import simplejpeg
import torch
from safetensors.torch import save
from torch import Tensor, nn

from alexnet2012.config.enums import Device, ExportFormat, Precision
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.preparation.decode import square_jpeg
from alexnet2012.data.sources.photos import photograph
from alexnet2012.data.ten_crop import centre_crop
from alexnet2012.inference.importers.torchvision import (
    STD,
    alexnet_logits,
    has_torchvisions_mean,
    to_state_dict,
)
from alexnet2012.inference.trained_model import (
    MEAN_IMAGE,
    METADATA,
    TrainedModel,
    check_finite,
    export_metadata,
    load_trained,
)
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.files import replace_bytes
from alexnet2012.utils.shard import Shard

TOLERANCE = 1e-5  # of the largest logit
TEST_PHOTOS = ("astronaut", "chelsea", "coffee", "rocket")


class MeanSubtraction(nn.Module):
    """A model that subtracts the mean image itself: RGB 0-255, [N, 3, S, S] → logits [N, K]."""

    mean_image: Tensor

    def __init__(self, model: AlexNet, mean: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean_image", mean)  # [3, S, S]

    def forward(self, images: Tensor) -> Tensor:
        # The shard matters to dropout in training only, and len() would fix the batch size.
        logits: Tensor = self.model(images - self.mean_image, Shard(0, 1, 1))
        return logits


@torch.no_grad()
def export(trained: TrainedModel, kind: ExportFormat, out: Path) -> float:
    """Write and verify the file; returns the largest difference of a logit, of the largest one."""
    if kind is ExportFormat.onnx and not (find_spec("onnx") and find_spec("onnxruntime")):
        remedy = "needs onnx and onnxruntime; pip install 'alexnet2012[export]'"
        raise ConfigError("format", "onnx", remedy)
    if trained.model.precision is not Precision.fp64:  # the files hold and compute in float32
        trained.model.precision = Precision.fp32
    size = len(trained.mean_image)
    jpegs = [square_jpeg(photograph(name), size, quality=95) for name in TEST_PHOTOS]
    images = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]))
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.writing")
    try:
        logits = _WRITERS[kind](trained, temporary, images)
        expected = trained.model(trained.views(images, 1)[:, 0])
        check_finite(expected, "the output", trained.path)
        difference = float((logits - expected).abs().max() / expected.abs().max())
        if not difference <= TOLERANCE:
            raise RunError(
                f"{out}: not kept, because its logits differ from the model's by {difference:.1e}"
            )
        os.replace(temporary, out)
    finally:
        temporary.unlink(missing_ok=True)
    return difference


def _write_safetensors(trained: TrainedModel, path: Path, images: Tensor) -> Tensor:
    state = {**trained.model.full_state_dict(), MEAN_IMAGE: torch.from_numpy(trained.mean_image)}
    replace_bytes(path, save(state, {METADATA: export_metadata(trained), "format": "pt"}))
    loaded = load_trained(path, Device.cpu)
    logits: Tensor = loaded.model(loaded.views(images, 1)[:, 0])
    return logits


def _write_onnx(trained: TrainedModel, path: Path, images: Tensor) -> Tensor:
    import onnxruntime  # an optional dependency, which the other formats do not need

    from alexnet2012.inference.onnx_graph import onnx_model

    model = onnx_model(_float32_copy(trained), _mean(trained).numpy(), export_metadata(trained))
    replace_bytes(path, model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": _graph_input(trained, images).numpy()})
    return torch.from_numpy(logits)


def _write_torch(trained: TrainedModel, path: Path, images: Tensor) -> Tensor:
    pixels = _graph_input(trained, images)
    dynamic_batch = {"images": {0: torch.export.Dim("n")}}
    module = MeanSubtraction(_float32_copy(trained), _mean(trained)).eval()
    program = torch.export.export(module, (pixels,), dynamic_shapes=dynamic_batch)
    buffer = io.BytesIO()  # given a path, torch warns about its suffix
    torch.export.save(program, buffer, extra_files={f"{METADATA}.json": export_metadata(trained)})
    replace_bytes(path, buffer.getvalue())
    logits: Tensor = torch.export.load(buffer).module()(pixels)
    return logits


def _write_torchvision(trained: TrainedModel, path: Path, images: Tensor) -> Tensor:
    try:
        state = to_state_dict(trained.model, trained.mean_image)
    except ValueError as error:
        raise ConfigError("format", "torchvision", str(error)) from error
    buffer = io.BytesIO()
    torch.save(state, buffer)
    path.write_bytes(buffer.getvalue())
    views = trained.views(images, 1)[:, 0].float()
    if has_torchvisions_mean(trained.mean_image):
        views /= 255 * torch.tensor(STD)[:, None, None]
    return alexnet_logits(torch.load(path, weights_only=True), views)


_WRITERS = {
    ExportFormat.safetensors: _write_safetensors,
    ExportFormat.onnx: _write_onnx,
    ExportFormat.torch: _write_torch,
    ExportFormat.torchvision: _write_torchvision,
}


def _float32_copy(trained: TrainedModel) -> AlexNet:
    """The model as exported graphs hold it: float32, channels first."""
    model = copy.deepcopy(trained.model).float()
    model.precision = Precision.fp32
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model


def _mean(trained: TrainedModel) -> Tensor:
    """The centre crop of the mean image: [3, S, S]."""
    size = trained.model.config.input_size
    return centre_crop(torch.from_numpy(trained.mean_image), size).permute(2, 0, 1).contiguous()


def _graph_input(trained: TrainedModel, images: Tensor) -> Tensor:
    """Centre crops as exported graphs take them: uint8 [N, P, P, 3] → float32 [N, 3, S, S]."""
    crops = [centre_crop(image, trained.model.config.input_size) for image in images]
    return torch.stack(crops).permute(0, 3, 1, 2).float().contiguous()
