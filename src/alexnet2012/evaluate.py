"""Errors of a trained net: ``python -m alexnet2012.evaluate checkpoint=RUN [views=10] …``.

Several checkpoints make an ensemble whose probabilities are averaged.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from alexnet2012.config.schema import ConfigError, EvaluateConfig
from alexnet2012.data.loaders import EvalLoader
from alexnet2012.data.store import Split, Store
from alexnet2012.data.tower_feed import Place
from alexnet2012.distributed.launch import hydra_main, reuse_memory
from alexnet2012.inference.trained_model import Trained, load_all
from alexnet2012.training.evaluation import Errors, evaluate
from alexnet2012.utils.metrics import error_interval_pct


def evaluate_checkpoints(config: EvaluateConfig) -> Errors:
    """Errors on the validation pictures of the store.

    Raises:
        ConfigError: a checkpoint that is none, or that was trained on other classes.
    """
    reuse_memory()
    nets = load_all(config.checkpoint, config.device)
    store, split = _validation_pictures(config, nets[0])
    paths = config.checkpoint if isinstance(config.checkpoint, list) else [config.checkpoint]
    _check_alike(paths, nets, store)
    loader = EvalLoader(
        replace(store, mean_image=nets[0].mean_image),
        split,
        nets[0].model.recipe.augment,
        input_size=nets[0].model.config.input_size,
        views=config.views,
        batch_size=max(1, config.batch_size // config.views),
        place=Place(device=nets[0].model.mesh.device, threads=config.decode_threads),
    )
    mesh = nets[0].model.mesh
    return evaluate([net.model for net in nets], loader.batches(), mesh)


def _validation_pictures(config: EvaluateConfig, net: Trained) -> tuple[Store, Split]:
    """Those of the given store, or of what the net was trained on."""
    if config.store is not None:
        store = Store.open(Path(config.store))
        return store, store.split("val")
    if net.data is None or net.data.store is None:
        remedy = "does not say what it was trained on; set store=…"
        raise ConfigError("checkpoint", config.checkpoint, remedy)
    store = Store.open(Path(net.data.store)).narrowed(net.data.first_classes)
    return store, store.split("val", net.data.limit)


def run(config: EvaluateConfig, run_dir: Path) -> None:
    errors = evaluate_checkpoints(config)
    views = "1 view" if config.views == 1 else f"{config.views} views averaged"
    table = Table()
    for heading in ("", "error, %", "95% interval"):
        table.add_column(heading, justify="right")
    for name, count in (("top-1", errors.top1_errors), ("top-5", errors.top5_errors)):
        low, high = error_interval_pct(count, errors.pictures)
        table.add_row(name, f"{100 * count / errors.pictures:.2f}", f"{low:.2f} – {high:.2f}")
    console = Console()
    console.print(f"{errors.pictures:,} validation pictures, {views}", highlight=False)
    console.print(table)
    if config.out is not None:
        found = {
            "checkpoint": config.checkpoint,
            "views": config.views,
            **errors.summary(),
        }
        Path(config.out).expanduser().write_text(
            json.dumps(found, indent=1) + "\n", encoding="utf-8"
        )


def _check_alike(paths: Sequence[object], nets: Sequence[Trained], store: Store) -> None:
    """Refuse nets that cannot be shown the same pictures."""
    first = nets[0].model
    for path, net in zip(paths, nets, strict=True):
        if net.classes != store.classes:
            remedy = f"was trained on other classes than those of {store.root}; set store=…"
            raise ConfigError("checkpoint", path, remedy)
        if len(net.mean_image) != store.size:
            remedy = f"was trained on pictures of {len(net.mean_image)} pixels, {store.root} has "
            raise ConfigError("checkpoint", path, f"{remedy}{store.size}; set store=…")
        augment = net.model.recipe.augment
        alike = (
            net.model.config.input_size == first.config.input_size
            and net.model.precision is first.precision
            and augment.mean_follows_crop == first.recipe.augment.mean_follows_crop
            and np.array_equal(net.mean_image, nets[0].mean_image)
        )
        if not alike:
            remedy = (
                f"differs from {paths[0]} in input size, precision, recipe or training pictures"
            )
            raise ConfigError("checkpoint", path, f"{remedy}; an ensemble needs them alike")


def main() -> None:
    hydra_main("evaluate", EvaluateConfig, run)


if __name__ == "__main__":
    main()
