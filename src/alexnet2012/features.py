"""Extract features: ``python -m alexnet2012.features checkpoint=RUN FOLDER out=FILE.npy``.

FILE.npy is float32 [M, U]: the last hidden activations of M images (centre crop), as fc8 reads
them after the scaling of dropout. FILE.npy.json lists the images and identifies the model.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.cli.args import collect_images
from alexnet2012.config.inference_schema import FeaturesConfig
from alexnet2012.config.schema import RunError
from alexnet2012.utils.text import say


def run(config: FeaturesConfig, run_dir: Path) -> None:
    from alexnet2012.checkpoint import manifest
    from alexnet2012.distributed.launch import reuse_memory
    from alexnet2012.inference.features import Features, compute_features, digest
    from alexnet2012.inference.images import find_images
    from alexnet2012.inference.trained_model import load_trained

    reuse_memory()
    names = find_images(config.images)
    checkpoint = Path(config.checkpoint)
    checkpoint = (manifest.latest(checkpoint) or checkpoint).absolute()
    trained = load_trained(checkpoint, config.device)
    used, activations, rejected = compute_features(trained, names, config)
    out = Path(config.out)
    Features(activations.numpy(), used, str(checkpoint), digest(trained)).save(out)
    say(f"{out}: {len(used)} images, {activations.shape[1]} activations each")
    if rejected:
        raise RunError(f"{len(rejected)} of {len(names)} images could not be used")


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("features", FeaturesConfig, run)


if __name__ == "__main__":
    main()
