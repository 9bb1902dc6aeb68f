"""Serve a page that shows activations and predictions for an image.

``python -m alexnet2012.serve checkpoint=RUN``. The page shows the activations of every layer of
each tower, the exchanges between the towers, and the five most probable classes.
"""

from __future__ import annotations

from pathlib import Path

from alexnet2012.cli.app import hydra_main
from alexnet2012.config.inference_schema import ServeConfig


def run(config: ServeConfig, run_dir: Path) -> None:
    from alexnet2012.distributed.launch import reuse_memory
    from alexnet2012.inference.trained_model import load_trained
    from alexnet2012.inference.web.server import ModelSession, Server

    reuse_memory()
    with Server(config.host, config.port) as server:
        trained = load_trained(Path(config.checkpoint), config.device)
        server.session = ModelSession(trained, config.views)
        print(f"Open {server.address} (press Ctrl-C to stop)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:  # the intended way to stop
            print()


def main() -> None:
    hydra_main("serve", ServeConfig, run)


if __name__ == "__main__":
    main()
