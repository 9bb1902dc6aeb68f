"""Import a model of Caffe or torchvision as a checkpoint, or one of the 2012 code as a recipe.

``python -m alexnet2012.import_net source=FILE out=FOLDER``. FILE is a ``.caffemodel``
(bvlc_alexnet, CaffeNet) or a state dict with torchvision's names (``.pth``, ``.safetensors``).
FOLDER becomes a checkpoint for ``evaluate``, ``predict`` and ``export``.

``source=layers-145.cfg params=layer-params-145.cfg out=FOLDER`` reads a definition of the 2012
code, and writes a recipe and a schedule for ``train``.
"""

from __future__ import annotations

import shlex
from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.utils.text import say


def run(config: ImportConfig, run_dir: Path) -> None:
    out = Path(config.out)
    if config.params is not None or config.source.endswith(".cfg"):
        _import_definition(config, out)
        return
    from alexnet2012.inference.importers.checkpoint_from_file import import_checkpoint

    model = import_checkpoint(config, out)
    shapes = model.full_shapes().items()
    layers = ", ".join(f"{name} {list(shape)}" for name, shape in shapes if "weight" in name)
    say(f"{out}: {layers}")


def _import_definition(config: ImportConfig, out: Path) -> None:
    from alexnet2012.inference.importers.definition_to_recipe import import_definition

    definition = import_definition(config, out)
    for paragraph in (definition.notes, "\n".join(definition.remarks)):
        if paragraph:
            say(f"{paragraph}\n")
    files = " ".join(
        f"{name}={shlex.quote(f'{out}/{name}.yaml')}" for name in ("recipe", "schedule")
    )
    single = " mesh=one_process" if definition.recipe.towers == 1 else ""
    say(f"next: alexnet2012 train {files}{single}")


def main() -> None:
    hydra_main("import_net", ImportConfig, run)


if __name__ == "__main__":
    main()
