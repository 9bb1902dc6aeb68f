"""Export a trained model: ``python -m alexnet2012.export checkpoint=RUN format=onnx out=FILE``.

``safetensors`` holds the tensors under their public names, and ``predict`` reads it back. ``onnx``
and ``torch`` are graphs whose input is RGB pixels, 0-255; they subtract the mean image themselves.
"""

from __future__ import annotations

from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.enums import Device
from alexnet2012.config.inference_schema import ExportConfig
<<<<<<< HEAD
from alexnet2012.inference.export import TEST_PHOTOS, export
from alexnet2012.inference.trained_model import load_trained
=======
from alexnet2012.config.schema import ConfigError, RunError
from alexnet2012.data.preparation.decode import square_jpeg
from alexnet2012.data.sources.photos import photograph
from alexnet2012.data.ten_crop import centre_crop
from alexnet2012.inference.trained_model import (
    MEAN_IMAGE,
    METADATA,
    TrainedModel,
    describe,
    load_trained,
)
from alexnet2012.nn.alexnet import AlexNet
from alexnet2012.utils.shard import Shard

WITHIN = 1e-5  # of the largest logit
SHOWN = ("astronaut", "chelsea", "coffee", "rocket")  # photographs that a file is tried on


class WithMean(nn.Module):
    """The net for pictures as they are: RGB [N, 3, S, S], grey levels 0-255 → logits [N, K]."""

    mean_image: Tensor

    def __init__(self, model: AlexNet, mean: Tensor) -> None:
        super().__init__()
        self.model = model
        self.register_buffer("mean_image", mean)  # [3, S, S]

    def forward(self, images: Tensor) -> Tensor:
        # Rows matter to dropout in training only, and len() would fix the number of images.
        logits: Tensor = self.model(images - self.mean_image, Shard(0, 1, 1))
        return logits


@torch.no_grad()
def export(net: TrainedModel, kind: ExportFormat, out: Path) -> float:
    """Write the file, read it back, and return how far its logits are off, of the largest.

    Raises:
        ConfigError: what writes or reads this format is not installed.
        RunError: the file does not give the net's logits.
    """
    if kind is ExportFormat.onnx and not (find_spec("onnx") and find_spec("onnxruntime")):
        remedy = "needs onnx and onnxruntime; pip install 'alexnet2012[export]'"
        raise ConfigError("format", "onnx", remedy)
    if net.model.precision is not Precision.fp64:  # a file computes in what it holds
        net.model.precision = Precision.fp32
    size = len(net.mean_image)
    jpegs = [square_jpeg(photograph(name), size, quality=95) for name in SHOWN]
    pictures = torch.from_numpy(np.stack([simplejpeg.decode_jpeg(jpeg) for jpeg in jpegs]))
    out.parent.mkdir(parents=True, exist_ok=True)
    writing = out.with_name(f".{out.name}.writing")
    try:
        found = _WRITERS[kind](net, writing, pictures)
        expected = net.model(net.views(pictures, 1)[:, 0])
        difference = float((found - expected).abs().max() / expected.abs().max())
        if not difference <= WITHIN:
            raise RunError(f"{out}: not written: its logits differ by {difference:.1e}")
        os.replace(writing, out)
    finally:
        writing.unlink(missing_ok=True)
    return difference
>>>>>>> f44eff2956e7b48e3761b45e48c6b66da4fbd61b


def run(config: ExportConfig, run_dir: Path) -> None:
    trained = load_trained(Path(config.checkpoint).expanduser(), Device.cpu)
    out = Path(config.out).expanduser()
<<<<<<< HEAD
    difference = export(trained, config.format, out)
    print(f"{out}: {out.stat().st_size:,} bytes")
    print(
        f"  verified on {len(TEST_PHOTOS)} photographs: logits differ from the model's by at most "
        f"{difference:.0e} of the largest"
    )
=======
    difference = export(net, config.format, out)
    size = out.stat().st_size
    print(f"{out}: {size:,} bytes")
    print(f"  logits of {len(SHOWN)} photographs: the net's, to {difference:.0e} of the largest")


def _write_safetensors(net: TrainedModel, path: Path, pictures: Tensor) -> Tensor:
    state = {**net.model.full_state_dict(), MEAN_IMAGE: torch.from_numpy(net.mean_image)}
    path.write_bytes(save(state, {METADATA: describe(net), "format": "pt"}))
    back = load_trained(path, Device.cpu)
    logits: Tensor = back.model(back.views(pictures, 1)[:, 0])
    return logits


def _write_onnx(net: TrainedModel, path: Path, pictures: Tensor) -> Tensor:
    import onnxruntime  # an extra: the other formats need neither

    from alexnet2012.inference.onnx_graph import onnx_model

    model = onnx_model(_plain(net), _mean(net).numpy(), describe(net), version("alexnet2012"))
    path.write_bytes(model.SerializeToString())
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"images": _pixels(net, pictures).numpy()})
    return torch.from_numpy(logits)


def _write_torch(net: TrainedModel, path: Path, pictures: Tensor) -> Tensor:
    pixels = _pixels(net, pictures)
    any_number = {"images": {0: torch.export.Dim("n")}}
    graph = WithMean(_plain(net), _mean(net)).eval()
    exported = torch.export.export(graph, (pixels,), dynamic_shapes=any_number)
    written = io.BytesIO()  # of a path torch wants to know better what it is called
    torch.export.save(exported, written, extra_files={f"{METADATA}.json": describe(net)})
    path.write_bytes(written.getvalue())
    logits: Tensor = torch.export.load(written).module()(pixels)
    return logits


_WRITERS = {
    ExportFormat.safetensors: _write_safetensors,
    ExportFormat.onnx: _write_onnx,
    ExportFormat.torch: _write_torch,
}


def _plain(net: TrainedModel) -> AlexNet:
    """The net as runtimes want it: float32, channels first."""
    model = copy.deepcopy(net.model).float()
    model.precision = Precision.fp32
    model.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return model


def _mean(net: TrainedModel) -> Tensor:
    """The centre of the mean image: [3, S, S]."""
    size = net.model.config.input_size
    return centre_crop(torch.from_numpy(net.mean_image), size).permute(2, 0, 1).contiguous()


def _pixels(net: TrainedModel, pictures: Tensor) -> Tensor:
    """The centres of pictures as a graph takes them: uint8 [N, P, P, 3] → float32 [N, 3, S, S]."""
    size = net.model.config.input_size
    crops = [centre_crop(picture, size) for picture in pictures]
    return torch.stack(crops).permute(0, 3, 1, 2).float().contiguous()
>>>>>>> f44eff2956e7b48e3761b45e48c6b66da4fbd61b


def main() -> None:
    hydra_main("export", ExportConfig, run)


if __name__ == "__main__":
    main()
