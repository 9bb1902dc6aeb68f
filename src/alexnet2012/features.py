"""Last hidden activations: ``python -m alexnet2012.features checkpoint=RUN FOLDER out=FILE.npy``.

FILE.npy is [M, 4096], a row a picture, as fc8 reads them (after dropout's factor), centre view;
FILE.npy.json names the pictures and the net.

Legend: M pictures, U hidden units.
"""

from __future__ import annotations

import sys
from pathlib import Path

from alexnet2012.checkpoint import manifest
from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import FeaturesConfig
from alexnet2012.config.schema import RunError
from alexnet2012.distributed.launch import reuse_memory
from alexnet2012.inference.features import Features, activations_of, digest
from alexnet2012.inference.images import collect_images, find_images
from alexnet2012.inference.trained_model import load_trained


def run(config: FeaturesConfig, run_dir: Path) -> None:
    """Raises RunError: some pictures cannot be used; the file holds the others."""
    reuse_memory()
    names = find_images(config.images)
    given = Path(config.checkpoint).expanduser()
    given = (manifest.latest(given) or given).absolute()
    net = load_trained(given, config.device)
    used, activations, rejected = activations_of(net, names, config)
    out = Path(config.out).expanduser()
    Features(activations.numpy(), used, str(given), digest(net)).save(out)
    print(f"{out}: {len(used)} pictures, {activations.shape[1]} activations each")
    if rejected:
        raise RunError(f"{len(rejected)} of {len(names)} pictures could not be used")


def main() -> None:
    sys.argv[1:] = collect_images(sys.argv[1:])
    hydra_main("features", FeaturesConfig, run)


if __name__ == "__main__":
    main()
