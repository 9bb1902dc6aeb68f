"""Export a trained model: ``python -m alexnet2012.export checkpoint=RUN format=onnx out=FILE``.

``safetensors`` holds the tensors under their public names, and ``predict`` reads it back. ``onnx``
and ``torch`` are graphs whose input is RGB pixels, 0-255; they subtract the mean image themselves.
``torchvision`` is a state dict for ``torchvision.models.alexnet``, if the model has its layers.
"""

from __future__ import annotations

from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.enums import Device, ExportFormat
from alexnet2012.config.inference_schema import ExportConfig
from alexnet2012.utils.text import say


def run(config: ExportConfig, run_dir: Path) -> None:
    from alexnet2012.inference.export import TEST_PHOTOS, export
    from alexnet2012.inference.importers.torchvision import has_torchvisions_mean
    from alexnet2012.inference.trained_model import load_trained

    trained = load_trained(Path(config.checkpoint), Device.cpu)
    out = Path(config.out)
    difference = export(trained, config.format, out)
    say(
        f"{out}: {out.stat().st_size:,} bytes\n"
        f"  verified on {len(TEST_PHOTOS)} photographs: logits differ from the model's by at most "
        f"{difference:.0e} of the largest logit"
    )
    if config.format is ExportFormat.torchvision:
        standard = has_torchvisions_mean(trained.mean_image)
        other = "RGB values 0-255 minus the model's mean image (see format=safetensors)"
        print(f"  input: {'normalised as by torchvision' if standard else other}")


def main() -> None:
    hydra_main("export", ExportConfig, run)


if __name__ == "__main__":
    main()
