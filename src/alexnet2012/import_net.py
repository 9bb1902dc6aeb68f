"""Import a model of Caffe or torchvision as a checkpoint.

``python -m alexnet2012.import_net source=FILE out=FOLDER``. FILE is a ``.caffemodel``
(bvlc_alexnet, CaffeNet) or a state dict with torchvision's names (``.pth``, ``.safetensors``).
FOLDER becomes a checkpoint for ``evaluate``, ``predict`` and ``export``.
"""

from __future__ import annotations

from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.utils.text import say


def run(config: ImportConfig, run_dir: Path) -> None:
    from alexnet2012.inference.importers.checkpoint_from_file import import_checkpoint

    out = Path(config.out)
    model = import_checkpoint(config, out)
    shapes = model.full_shapes().items()
    layers = ", ".join(f"{name} {list(shape)}" for name, shape in shapes if "weight" in name)
    say(f"{out}: {layers}")


def main() -> None:
    hydra_main("import_net", ImportConfig, run)


if __name__ == "__main__":
    main()
