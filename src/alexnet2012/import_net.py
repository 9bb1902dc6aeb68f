"""A checkpoint of somebody else's net: ``python -m alexnet2012.import_net source=FILE out=FOLDER``.

FILE is a ``.caffemodel`` (bvlc_alexnet, CaffeNet) or a state dict as torchvision's (``.pth``,
``.safetensors``). FOLDER is then what ``evaluate``, ``predict`` and ``export`` take.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from alexnet2012.checkpoint import io as checkpoint
from alexnet2012.checkpoint.manifest import Progress, to_plain
from alexnet2012.checkpoint.state import TrainingState
from alexnet2012.cli.app import hydra_main
from alexnet2012.config.compose import compose_config
from alexnet2012.config.inference_schema import ImportConfig
from alexnet2012.config.schema import ConfigError, TrainConfig
from alexnet2012.config.validation import load_recipe
from alexnet2012.inference.importers.caffe import read_caffemodel, read_mean_image
from alexnet2012.inference.importers.recipe_from_net import IMAGENET_MEAN, ImportedNet, as_alexnet
from alexnet2012.inference.importers.torchvision import from_state_dict, read_state_dict

CAFFE = ".caffemodel"


def run(config: ImportConfig, run_dir: Path) -> None:
    """Raises ConfigError: a file that cannot be read, or whose net no recipe can be."""
    out = Path(config.out).expanduser()
    if out.exists():
        raise ConfigError("out", out, "is there already; remove it, or give another place")
    source = Path(config.source).expanduser()
    try:
        if source.suffix == CAFFE:
            net, name = read_caffemodel(source.read_bytes()), "caffe"
        else:
            net, name = from_state_dict(read_state_dict(source)), "torchvision"
        model = as_alexnet(net, load_recipe("paper"), name)
    except ValueError as error:
        raise ConfigError("source", source, str(error)) from error
    mean_image = _mean_image(config, net)
    if len(mean_image) < net.input_size:
        remedy = f"must be at least {net.input_size}, what the net reads"
        raise ConfigError("picture_size", len(mean_image), remedy)
    settings, _ = compose_config("train", TrainConfig, ["mesh=one_process"])
    settings.recipe, settings.model = model.recipe, model.config
    settings.data.source = settings.data.store = None
    settings.data.store_size = len(mean_image)
    progress = Progress(
        step=0,
        epoch=0,
        settings=to_plain(settings),
        classes=_classes(config, net.num_classes),
    )
    checkpoint.save(out, TrainingState.of(model, None, progress, mean_image), model.mesh)
    layers = ", ".join(f"{n} {list(s)}" for n, s in model.full_shapes().items() if "weight" in n)
    print(f"{out}: {layers}")


def _mean_image(config: ImportConfig, net: ImportedNet) -> npt.NDArray[np.float32]:
    """[P, P, 3], RGB: of a file, or one colour."""
    if config.mean is not None:
        path = Path(config.mean).expanduser()
        try:
            return read_mean_image(path.read_bytes())
        except ValueError as error:
            raise ConfigError("mean", path, str(error)) from error
    shape = (config.picture_size, config.picture_size, 3)
    return np.full(shape, net.mean or IMAGENET_MEAN, dtype=np.float32)


def _classes(config: ImportConfig, count: int) -> list[str]:
    if config.classes is None:
        return [str(number) for number in range(count)]
    path = Path(config.classes).expanduser()
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines if line.strip()]
    if len(names) != count:
        remedy = f"has {len(names)} lines, and the net has {count} classes"
        raise ConfigError("classes", path, remedy)
    return names


def main() -> None:
    hydra_main("import_net", ImportConfig, run)


if __name__ == "__main__":
    main()
